"""Models: the canonical list of tensors of each, and its initial values."""
