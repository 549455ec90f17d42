"""What `make docs` writes, a module for each kind of page."""
