"""Scripts that measure; each prints a table and names its peers."""
