"""Where the repository is, and the line that generated pages begin with."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTE = "<!-- Written by `make docs` from {source}; changes belong there. -->"


def first_line(text: str | None) -> str:
    """What a docstring says first."""
    return (text or "").strip().partition("\n")[0]
