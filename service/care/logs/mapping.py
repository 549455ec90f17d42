"""`--map field=column`: which column, or which place inside one, holds what."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.errors import InvalidMessage, SettingsError
from service.care.logs.call import LoggedCall, Row
from service.care.logs.texts import conversation, first_of, moment, parsed, said, table

FIELDS = ("text", "messages", "system", "model", "answer", "label", "user", "time", "id",
          "metadata")  # fmt: skip
PROMPT = frozenset({"text", "messages"})


def read_map(given: Sequence[str]) -> dict[str, str]:
    """The options as field -> column. Raises `SettingsError` for what is no field."""
    found: dict[str, str] = {}
    for one in given:
        field, _, column = (part.strip() for part in one.partition("="))
        known = field in FIELDS or (field.startswith("metadata.") and field != "metadata.")
        if not known or not column:
            raise SettingsError(
                f"--map {one}: write field=column, where the field is one of "
                f"{', '.join(FIELDS)}, or metadata.NAME"
            )
        if field in found:
            raise SettingsError(f"--map names {field} twice")
        found[field] = column
    return found


def lookup(row: object, path: str) -> object:
    """What lies at `a.b.0.c`; None: nothing. Names may hold dots, texts may hold JSON."""
    found = parsed(row)
    if isinstance(found, list):
        head, _, rest = path.partition(".")
        if not head.removeprefix("-").isdigit() or not -len(found) <= int(head) < len(found):
            return None
        return lookup(found[int(head)], rest) if rest else found[int(head)]
    if not isinstance(found, Mapping):
        return None
    if path in found:
        return found[path]
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:cut])
        if head in found:
            inner = lookup(found[head], ".".join(parts[cut:]))
            if inner is not None:
                return inner
    return None


def has(row: Row, path: str) -> bool:
    """Whether the row has the column at all, also an empty one."""
    return path in row or lookup(row, path) is not None


def from_columns(row: Row, columns: Mapping[str, str]) -> LoggedCall:
    """A call from columns alone. Those that are not there are left out."""
    given = {field: lookup(row, path) for field, path in columns.items()}
    asked, text = given.get("messages"), _text(given.get("text"), columns.get("text", "text"))
    if asked in (None, "") and text is None:
        names = " nor ".join(columns[field] for field in ("text", "messages") if field in columns)
        raise InvalidMessage(f"neither {names}" if " nor " in names else f"no {names}")
    one: list[dict[str, Any]] = [{"role": "user", "content": text}]
    messages = one if asked in (None, "") else conversation(asked)
    return LoggedCall(
        messages=_with_system(messages, given.get("system")),
        model=given.get("model"),
        said=said(given.get("answer")),
        label=_label(given.get("label"), columns.get("label", "label")),
        user=given.get("user"),
        time=moment(given.get("time")),
        source_id=given.get("id"),
        metadata=_metadata(given),
        request={name: row[name] for name in ("tools", "functions") if name in row},
    )


def overlaid(call: LoggedCall, row: Row, columns: Mapping[str, str]) -> LoggedCall:
    """A call of a known shape, with what the operator says lies elsewhere."""
    given = {field: lookup(row, path) for field, path in columns.items()}
    answer = said(given["answer"]) if "answer" in given else call.said
    return replace(
        call,
        messages=_with_system(call.messages, given.get("system")),
        model=first_of(given.get("model"), call.model),
        said=answer,
        label=_label(given.get("label"), columns.get("label", "label")) or call.label,
        user=first_of(given.get("user"), call.user),
        time=moment(given.get("time")) or call.time,
        source_id=first_of(given.get("id"), call.source_id),
        metadata={**table(call.metadata), **_metadata(given)},
    )


def _with_system(messages: list[dict[str, Any]], system: object) -> list[dict[str, Any]]:
    text = _text(system, "system")
    return messages if text is None else [{"role": "system", "content": text}, *messages]


def _metadata(given: Mapping[str, object]) -> dict[str, object]:
    named = {
        field.removeprefix("metadata."): value
        for field, value in given.items()
        if field.startswith("metadata.") and value not in (None, "")
    }
    return {**table(given.get("metadata")), **named}


def _text(found: object, column: str) -> str | None:
    """Numbers become text, because tables keep ids and labels as numbers. Empty is absent."""
    if found is None or found == "":
        return None
    if isinstance(found, (str, int)) and not isinstance(found, bool):
        return str(found)
    raise InvalidMessage(f"{column} is not a text")


def _label(found: object, column: str) -> str | None:
    answer = said(found) if isinstance(found, (dict, list)) else None
    return answer.text if answer else _text(found, column)
