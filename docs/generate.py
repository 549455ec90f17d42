"""Writes the parts of the documentation that come from the code; `make docs` runs it.

A test checks that what is committed equals what this would write.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast, get_args, get_origin

import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import pipelines.errors
import service.settings
from pipelines.errors import ExitCode, FlywheelError
from service.cli import app
from service.cli.help import EXIT_CODES
from service.durations import check_schedule, format_duration
from service.settings import RecipeSettings, Section, Settings, TaskSettings

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 96
# Tables of which there are several, by the name of the first part of their names.
NAMED_TABLES: dict[str, type[BaseModel]] = {"recipes": RecipeSettings, "tasks": TaskSettings}
NOTE = "<!-- Written by `make docs` from {source}; changes belong there. -->"
FILE_TREE = re.compile(
    r"(<!-- file tree -->\n```text\n).*?(\n```\n<!-- end of file tree -->)", re.S
)

LOOP_FIGURES = re.compile(r"(<!-- loop figures -->\n).*?(\n<!-- end of loop figures -->)", re.S)
RECIPE_FIGURES = re.compile(
    r"(<!-- recipe figures -->\n).*?(\n<!-- end of recipe figures -->)", re.S
)

CODE_FOLDERS = ("pipelines", "storage", "service", "deploy", "docs", "benchmarks", "tests")
# Many files of one kind: a line for the folder says enough.
ONE_LINE_FOLDERS = {
    "service/console/static": "Style sheet and script of the console.",
    "service/console/templates": "The pages of the console.",
    "benchmarks/results": "What the benchmarks found, as they wrote it.",
    "docs/images": "Plots that the benchmarks draw from their results.",
}
TOP_FILES = {
    "Makefile": "Every command for people who work on it.",
    "pyproject.toml": "Dependencies and the settings of all tools.",
    "core.lock": "The core's dependencies, with hashes.",
    "training.lock": "The core and the training stack, with hashes.",
    "dev.lock": "What tests and checks need on top, with hashes.",
    "installer.lock": "The installer itself, with hashes.",
    "flywheel.example.toml": "Settings to start from.",
    "CHANGELOG.md": "What operators notice, release by release.",
    "LICENSE": "Apache 2.0.",
}
# Files that cannot say themselves what they are.
OTHER_FILES = {
    "service/demo/messages.jsonl": "The hand-written messages of the demonstration's desk.",
    "deploy/kafka/server.properties": "The development broker's settings.",
}


def documents() -> Mapping[Path, str]:
    """Every generated file, with the content it should have."""
    readme = ROOT / "README.md"
    recipes = ROOT / "docs" / "explanation" / "recipes.md"
    measured = "\n".join(recipe_figures())
    tree, figures = "\n".join(file_tree()), "\n".join(loop_figures())
    text = FILE_TREE.sub(lambda found: found[1] + tree + found[2], readme.read_text())
    return {
        ROOT / "docs" / "reference" / "settings.md": "\n".join(settings_page()) + "\n",
        ROOT / "docs" / "reference" / "command-line.md": "\n".join(command_line_page()) + "\n",
        ROOT / "docs" / "reference" / "exit-codes.md": "\n".join(exit_codes_page()) + "\n",
        recipes: RECIPE_FIGURES.sub(
            lambda found: found[1] + measured + found[2], recipes.read_text()
        ),
        readme: LOOP_FIGURES.sub(lambda found: found[1] + figures + found[2], text),
    }


# Figures


def loop_figures() -> Iterator[str]:
    """The loop benchmark's table, as its results file has it."""
    found = json.loads((ROOT / "benchmarks" / "results" / "loop.json").read_text())
    yield "| version | labels bought | trained on | accuracy | trusted coverage at approval |"
    yield "|---|---:|---:|---:|---:|"
    for point in found["points"]:
        number = point["version"].split("-")[-2]
        yield (
            f"| {number} | {point['labels_bought']:,} | {point['labels_trained']:,} | "
            f"{point['accuracy']:.1%} | {point['coverage']:.0%} |"
        )
    yield ""
    yield (
        f"{found['prompts']:,} prompts, seed {found['seed']}, {found['machine']['cores']} cores, "
        f"{found['figures']['minutes']:g} minutes for the whole run: benchmarks/results/loop.json."
    )


def recipe_figures() -> Iterator[str]:
    """The recipes' table, a line for each number of labels, as the results file has it."""
    found = json.loads((ROOT / "benchmarks" / "results" / "recipes.json").read_text())
    yield (
        "| recipe | labels | accuracy | above `head`, for each seed (95 % interval) "
        "| processor minutes | peak MB | published MB | ms |"
    )
    yield "|---|---:|---:|---|---:|---:|---:|---:|"
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for point in found["points"]:
        groups.setdefault((point["recipe"], point["labels"]), []).append(point)
    order = list(dict.fromkeys(recipe for recipe, _ in groups))
    for recipe, labels in sorted(groups, key=lambda key: (order.index(key[0]), key[1])):
        yield _recipe_row(recipe, labels, groups[recipe, labels])
    machine, seeds = found["machine"], ", ".join(map(str, found["seeds"]))
    yield ""
    yield (
        f"Means over the seeds {seeds} where they are measured; {machine['cores']} cores "
        f"({machine['processor']}, shared with other work): benchmarks/results/recipes.json."
    )
    missing: dict[str, list[str]] = {}
    for name, labels, seed in found["missing"]:
        missing.setdefault(f"{name} {labels:,}", []).append(str(seed))
    if missing:
        parts = (f"{what} (seed {', '.join(which)})" for what, which in missing.items())
        yield f"Not measured yet: {'; '.join(parts)}."


def _recipe_row(recipe: str, labels: int, points: list[dict[str, Any]]) -> str:
    def mean(name: str) -> float:
        return fmean(point[name] for point in points)

    above = [
        f"{100 * gain['value']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
        for point in points
        if (gain := point["to_head"])
    ]
    cost = "| | | "  # of the chat model used directly: nothing was trained
    if points[0]["trained"]:
        cost = (
            f"| {mean('processor_minutes'):.1f} | {mean('peak_memory_mb'):,.0f} "
            f"| {mean('size_mb'):,.1f}"
        )
    return (
        f"| {recipe} | {labels:,} | {mean('accuracy'):.1%} | {'; '.join(above)} "
        f"{cost} | {mean('latency_p50_ms'):,.0f} |"
    )


# Settings


def settings_page() -> Iterator[str]:
    yield from (
        NOTE.format(source="service/settings.py"),
        "",
        "# Settings",
        "",
        "Read once, at the start, from these places; the first that has a setting wins:",
        "",
        "1. the command line (`--config`, `--data-dir`);",
        "2. the environment: `FLYWHEEL_` and the name in capitals, `__` between table and",
        "   setting: `FLYWHEEL_TEACHER__API_KEY`;",
        "3. files in the folder that `FLYWHEEL_SECRETS_DIR` names, one a setting, called like the",
        "   variable without its prefix: `teacher__api_key`;",
        "4. the file that `--config` or `FLYWHEEL_CONFIG` names, else `flywheel.toml` in the",
        "   current folder, if it is there;",
        "5. the defaults below.",
        "",
        "A setting that does not exist is an error, wherever it stands. `flywheel check` prints",
        "what is in effect, with secrets masked, and says what is missing. Durations are written",
        "`500ms`, `30s`, `5m`, `1h30m` or `7d`; schedules `every 30s`, or as the five fields of a",
        "cron line (UTC).",
        "",
        "| setting | kind | default | meaning |",
        "|---|---|---|---|",
    )
    for name, field in Settings.model_fields.items():
        if name not in NAMED_TABLES and not _is_section(field):
            yield _setting_row(Settings, name, field)
    for name, field in Settings.model_fields.items():
        if _is_section(field):
            yield from _section(f"[{name}]", field.annotation)
    for name, model in NAMED_TABLES.items():
        yield from _section(f"[{name}.NAME]", model)


def settings_without_meaning() -> list[str]:
    """Settings that nobody explained; a test wants none."""
    found: list[str] = []
    models: list[type[BaseModel]] = [Settings, *_sections(), *NAMED_TABLES.values()]
    for model in models:
        meanings = _meanings(model)
        found += [
            f"{model.__name__}.{name}"
            for name, field in model.model_fields.items()
            if name not in meanings and name not in NAMED_TABLES and not _is_section(field)
        ]
    return found


def _sections() -> list[type[BaseModel]]:
    fields = Settings.model_fields.values()
    return [cast("type[BaseModel]", one.annotation) for one in fields if _is_section(one)]


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _section(title: str, model: Any) -> Iterator[str]:
    yield from ("", f"## `{title}`", "", " ".join((model.__doc__ or "").split()), "")
    yield from ("| setting | kind | default | meaning |", "|---|---|---|---|")
    for name, field in model.model_fields.items():
        yield _setting_row(model, name, field)


def _setting_row(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    meaning = _meanings(model).get(name, "")
    cells = (f"`{name}`", _kind(field), _default(field), meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The comments beside the declarations of the settings, or above them."""
    source = Path(service.settings.__file__).read_text()
    lines = source.splitlines()
    (found,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == model.__name__
    )
    meanings = {}
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            beside = lines[(node.end_lineno or 0) - 1][node.end_col_offset or 0 :].strip()
            above = lines[node.lineno - 2].strip()
            for text in (above, beside):
                if text.startswith("# "):
                    meanings[node.target.id] = text[2:]
    return meanings


def _kind(field: FieldInfo) -> str:
    kind = _type_name(field.annotation)
    validators = [getattr(item, "func", None) for item in field.metadata]
    if check_schedule in validators:
        kind = "schedule"
    bounds = [
        f"{sign} {getattr(item, attribute):g}"
        for item in field.metadata
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if hasattr(item, attribute)
    ]
    if least := [item.min_length for item in field.metadata if hasattr(item, "min_length")]:
        bounds.append(f"at least {least[0]}")
    return ", ".join([kind, *bounds])


def _type_name(annotation: Any) -> str:
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        Path: "path",
        SecretStr: "secret",
        timedelta: "duration",
    }
    if annotation in names:
        return names[annotation]
    inner = [item for item in get_args(annotation) if item is not type(None)]
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if get_origin(annotation) is list:
        return f"list of {_type_name(inner[0])}"
    if get_origin(annotation) is dict:
        return "table" if inner[1] is Any else f"table of {_type_name(inner[1])}"
    return _type_name(inner[0])  # an optional one


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "needed"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, timedelta):
        return f"`{format_duration(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


# Command line and exit codes


def command_line_page() -> Iterator[str]:
    yield from (NOTE.format(source="service/cli"), "", "# Command line", "")
    yield "The program is `.venv/bin/flywheel`. What it says about itself:"
    yield from _help(typer.main.get_command(app), None, "flywheel")


def _help(command: Any, parent: Any, name: str) -> Iterator[str]:
    context = command.context_class(
        command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )
    text = command.get_help(context).rstrip()
    yield from ("", f"## `{context.command_path}`", "", "```text")
    yield from (line.rstrip() for line in text.splitlines())
    yield "```"
    for verb, inner in getattr(command, "commands", {}).items():
        yield from _help(inner, context, verb)


def exit_codes_page() -> Iterator[str]:
    yield from (
        NOTE.format(source="pipelines/errors.py"),
        "",
        "# Exit codes",
        "",
        "Every way in which `flywheel` ends has a number of its own, so that a supervisor or a",
        "script can tell them apart. The message on standard error says what to do.",
        "",
        "| code | name | meaning | when |",
        "|---|---|---|---|",
    )
    for code in ExitCode:
        yield f"| {int(code)} | `{code.name}` | {EXIT_CODES[code]} | {_raised(code)} |"


def _raised(code: ExitCode) -> str:
    """What the errors with this code say of themselves."""
    if code is ExitCode.FAILURE:
        return ""
    errors = (
        value
        for value in vars(pipelines.errors).values()
        if isinstance(value, type) and issubclass(value, FlywheelError)
    )
    return " ".join(_first_line(error.__doc__) for error in errors if error.exit_code is code)


# The file tree


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
            return _first_line(ast.get_docstring(ast.parse(text)))
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


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.M)
    return found[1].strip() if found else ""


def main() -> None:
    for path, content in documents().items():
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
            print(f"{path.relative_to(ROOT)} was written")


if __name__ == "__main__":
    main()
