"""The student families."""
