"""Rooms stay small: no file over 400 lines, no function over 60, the median file under 150."""

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipelines", "service", "storage")
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
MEDIAN_BELOW = 150


def files() -> dict[str, str]:
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def lengths() -> dict[str, int]:
    return {name: len(text.splitlines()) for name, text in files().items()}


def functions() -> Iterator[tuple[str, int]]:
    for name, text in files().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}:{node.lineno} {node.name}", _lines(node)


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_file_is_too_long_to_be_one_idea() -> None:
    assert {name: count for name, count in lengths().items() if count > MOST_LINES_OF_A_FILE} == {}


def test_no_function_is_too_long_to_be_seen_at_once() -> None:
    assert {name: count for name, count in functions() if count > MOST_LINES_OF_A_FUNCTION} == {}


def test_the_usual_file_is_short() -> None:
    found = median(lengths().values())
    assert found < MEDIAN_BELOW, f"half of the files have {found:g} lines or more"
