"""The control plane: the one process that owns the database."""
