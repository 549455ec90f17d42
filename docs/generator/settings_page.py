"""The reference of the settings, from the models that read them and the comments beside them."""

import ast
import inspect
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from generator.places import NOTE
from service.host.durations import check_schedule, format_duration
from service.sections import RecipeSettings, Section, TaskSettings
from service.settings import Settings

# Tables of which there are several, by the name of the first part of their names.
NAMED_TABLES: dict[str, type[BaseModel]] = {"recipes": RecipeSettings, "tasks": TaskSettings}


def settings_page() -> Iterator[str]:
    yield from (
        NOTE.format(source="service/settings.py and service/sections.py"),
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
    source = Path(inspect.getfile(model)).read_text()
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
