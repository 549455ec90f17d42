"""The reference of the record that producers put onto the topic, from its schema."""

import json
from collections.abc import Iterator
from typing import Any

from generator.places import NOTE, ROOT

SCHEMA = ROOT / "docs" / "prompt-event.schema.json"


def record_page() -> Iterator[str]:
    schema = json.loads(SCHEMA.read_text())
    yield from (
        NOTE.format(source="docs/prompt-event.schema.json"),
        "",
        "# The record on the topic",
        "",
        schema["description"],
        "The same as a [JSON schema](../prompt-event.schema.json), which a test checks against the",
        "decoder. OpenAI request/response pairs are read too; see",
        "[connect Kafka](../how-to/connect-kafka.md).",
    )
    yield from _fields(schema, "The record")
    for name, definition in schema.get("$defs", {}).items():
        yield from _fields(definition, f"`{name}`")


def _fields(schema: dict[str, Any], title: str) -> Iterator[str]:
    if "properties" not in schema:
        return
    yield from ("", f"## {title}", "")
    if title != "The record" and schema.get("description"):
        yield from (schema["description"], "")
    yield from ("| field | kind | needed | meaning |", "|---|---|---|---|")
    needed = set(schema.get("required", ()))
    for name, field in schema["properties"].items():
        mark = "yes" if name in needed else ""
        meaning = field.get("description", "").replace("|", "\\|")
        yield f"| `{name}` | {_kind(field)} | {mark} | {meaning} |"


def _kind(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return f"`{field['$ref'].rsplit('/', 1)[1]}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        kinds = [_kind(one) for one in field["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    kind = str(field.get("type", "anything"))
    if kind == "array" and "items" in field:
        kind = f"list of {_kind(field['items'])}"
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        kind = f"object of {_kind(field['additionalProperties'])}"
    limits = [
        f"at most {field[name]}" for name in ("maxLength", "maxItems", "maximum") if name in field
    ]
    return ", ".join([kind, *limits])
