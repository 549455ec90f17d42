"""The map of the files: each says itself what it is."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from generator.places import NOTE, ROOT, first_line

CODE_FOLDERS = ("pipelines", "storage", "service", "deploy", "docs", "benchmarks", "tests")
# Many files of one kind: a line for the folder says enough.
ONE_LINE_FOLDERS = {
    "service/console/static": "Style sheet and script of the console.",
    "service/console/templates": "The pages of the console.",
    "benchmarks/results": "What the benchmarks found, as they wrote it.",
    "docs/images": "Pictures of the console, and plots of what the benchmarks found.",
}
TOP_FILES = {
    "Makefile": "Every command for people who work on it.",
    "pyproject.toml": "Dependencies and the settings of all tools.",
    "core.lock": "The core's dependencies, with hashes.",
    "training.lock": "The core and the training stack, with hashes.",
    "dev.lock": "What tests and checks need on top, with hashes.",
    "installer.lock": "The installer itself, with hashes.",
    "flywheel.example.toml": "Settings to start from.",
    "CONTRIBUTING.md": "How to work on it: set-up, tests, where to put what, style.",
    "CHANGELOG.md": "What operators notice, release by release.",
    "LICENSE": "Apache 2.0.",
}
# Files that cannot say themselves what they are.
OTHER_FILES = {
    "deploy/tools.lock": "What the checks of deploy/ need, with hashes.",
    "deploy/example-app/prompt.txt": "The example app's system prompt.",
    "deploy/helm/flywheel/templates/NOTES.txt": "What Helm says after an installation.",
    "service/demo/messages.jsonl": "The hand-written messages of the demonstration's desk.",
    "deploy/kafka/server.properties": "The development broker's settings.",
}


def files_page() -> Iterator[str]:
    yield NOTE.format(source="every file's first sentence")
    yield ""
    yield "# Every file, in its own words"
    yield ""
    yield "```text"
    yield from file_tree()
    yield "```"


def file_tree() -> Iterator[str]:
    lines: list[tuple[str, str]] = []
    for folder in CODE_FOLDERS:
        if (ROOT / folder).is_dir() and any((ROOT / folder).iterdir()):
            lines += _folder(ROOT / folder, depth=0)
    lines += TOP_FILES.items()
    width = min(max(len(name) for name, _ in lines), 40)
    for name, text in lines:
        yield f"{name:<{width}}  {text}".rstrip()


def _folder(folder: Path, depth: int) -> Iterator[tuple[str, str]]:
    indent = "  " * depth
    where = folder.relative_to(ROOT).as_posix()
    if where in ONE_LINE_FOLDERS:
        yield f"{indent}{folder.name}/", ONE_LINE_FOLDERS[where]
        return
    init = folder / "__init__.py"
    yield f"{indent}{folder.name}/", what_it_is(init) if init.exists() else ""
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]
    for path in inside:
        if path.is_file() and path.suffix != ".pyc":
            yield f"{indent}  {path.name}", what_it_is(path)
    for path in inside:
        if path.is_dir() and any(path.iterdir()):
            yield from _folder(path, depth + 1)


def what_it_is(path: Path) -> str:
    """The first sentence that a file says about itself; empty when it says none."""
    named = OTHER_FILES.get(path.relative_to(ROOT).as_posix())
    if named:
        return named
    text = path.read_text(errors="replace")
    match path.suffix:
        case ".py":
            return first_line(ast.get_docstring(ast.parse(text)))
        case ".md":
            return _found(r"^# (.+)", text)
        case ".json":
            content = json.loads(text)
            return str(content.get("title", "")) if isinstance(content, dict) else ""
        case ".xml":
            return _found(r"<!-- (.+?)(?: -->|$)", text)
        case ".sql":
            return _found(r"^-- ?(.+)", text)
        case _:
            return _found(r"^(?:#|\{\{/\*) ?([^!].+)", text)


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.M)
    return found[1].strip() if found else ""
