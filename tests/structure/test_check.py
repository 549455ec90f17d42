"""What `make check` does, as far as it takes seconds: lint and formatting. Types take a minute."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("verb", [("check",), ("format", "--check")])
def test_the_tree_is_as_ruff_wants_it(verb: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "ruff", *verb, "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_make_check_does_this_and_looks_at_types() -> None:
    told = subprocess.run(
        ["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for tool in ("ruff check", "ruff format --check", "mypy"):
        assert tool in told
