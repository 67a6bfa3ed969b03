"""Population training on Ray: the head, the journal and everything that must not depend on a backend."""

__version__ = "0.1.0"
