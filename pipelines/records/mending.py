"""Records with something odd at their side: it is set right or left out, and the prompt is kept.

Only for what could not be read as it is. What a prompt is made of (model, messages, roles) and what
a person said of it are never guessed: without those there is no record.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from pipelines.chat_request import WireMessage, is_text, plain_messages
from pipelines.errors import InvalidMessage
from pipelines.records.common import ROLES, Attributes, Name, moment, user_name
from pipelines.records.native import SCHEMA, NativeRecord
from pipelines.replies import first_choice, read_object, text_of, usage_of

MOST_MESSAGES = 1_000
SIDE_FIELDS = ("asked", "attachments", "cut", "event_id", "past", "task", "occurred_at", "answer",
               "served_by", "teacher_answer", "teacher_model", "usage", "user", "attributes",
               "student")  # fmt: skip
# As other tools call the roles.
SYNONYMS = {"human": "user", "ai": "assistant", "bot": "assistant", "model": "assistant"}
MILLISECONDS_FROM = 1e11  # as seconds that is after the year 5000
_TYPES = {field.name: field.type for field in msgspec.structs.fields(NativeRecord)}


def mend(value: bytes, timestamp_ms: int) -> bytes | None:
    """The record with its odd side fields set right or left out; None: it is beyond that."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return None  # another encoding: every text of this producer would be damaged
    record = read_object(value)
    if record is None or not isinstance(record.get("feedback"), None | dict):
        return None
    try:
        clean = storable(record)
    except RecursionError:
        return None
    if clean.get("schema") == SCHEMA:
        return msgspec.json.encode(_native(clean, timestamp_ms))
    if isinstance(clean.get("request"), dict):
        return msgspec.json.encode(_pair(clean, timestamp_ms))
    return None


def _native(record: dict[str, Any], timestamp_ms: int) -> dict[str, Any]:
    messages, beyond = _as_text(record.get("messages"))
    kept = {**record, "messages": messages}
    if beyond and not kept.get("past"):
        kept["past"] = "content"
    kept["user"] = user_name(record.get("user"))
    kept["attributes"] = attributes_of(record.get("attributes"))
    kept["occurred_at"] = _time(record.get("occurred_at"), timestamp_ms)
    kept["event_id"] = id_of(record.get("event_id"))
    kept["usage"] = usage_of(record.get("usage"))
    for name in ("answer", "teacher_answer"):
        kept[name] = text_of(record.get(name))
    for name in SIDE_FIELDS:
        try:
            msgspec.convert(msgspec.to_builtins(kept.get(name)), _TYPES[name])
        except msgspec.ValidationError:
            kept.pop(name, None)
    return kept


def _pair(record: dict[str, Any], timestamp_ms: int) -> dict[str, Any]:
    request, response = record["request"], record.get("response")
    asked = {
        **request,
        "messages": chat_of(request.get("messages")),
        "user": user_name(request.get("user")),
        "n": request["n"] if type(request.get("n")) is int else None,
        "metadata": attributes_of(request.get("metadata")),
    }
    said = None
    if isinstance(response, dict):
        choice = first_choice(response) or {}
        message = choice.get("message")
        content = text_of(message.get("content")) if isinstance(message, dict) else None
        content = text_of(choice.get("text")) if content is None else content
        time = _time(response.get("created"), timestamp_ms)
        said = {
            "choices": [{"message": {"content": content}}],
            "id": id_of(response.get("id")),
            "created": time.timestamp() if time else None,
            "usage": usage_of(response.get("usage")),
        }
    return {**record, "request": asked, "response": said}


def chat_of(messages: object) -> object:
    """As they are but for the names of roles, the newest where there are too many."""
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        return messages
    return [
        {**one, "role": _role(one.get("role")), "content": _readable(one)}
        for one in messages[-MOST_MESSAGES:]
    ]


def _readable(message: dict[str, Any]) -> object:
    content = message.get("content")
    if content is None:
        return "" if message.get("role") != "assistant" else None
    if isinstance(content, str | list):
        return content
    return [content]


def _as_text(messages: object) -> tuple[object, bool]:
    """As text, and whether any of it was none; as they are where they cannot be read."""
    try:
        read = msgspec.convert(chat_of(messages), list[WireMessage])
    except msgspec.ValidationError:
        return messages, False
    return msgspec.to_builtins(plain_messages(read)), not all(map(is_text, read))


def _role(role: object) -> object:
    if not isinstance(role, str):
        return role
    known = role.casefold()
    return known if known in ROLES else SYNONYMS.get(known, role)


def attributes_of(found: object) -> dict[str, str]:
    """What is one text, number or truth value a name."""
    kept = {
        name: value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, str | bool | int | float)
    }
    fitting = {name: value for name, value in kept.items() if _fits({name: value}, Attributes)}
    return dict(list(fitting.items())[:50])


def id_of(given: object) -> str | None:
    """None: the record's place on the topic is its id."""
    if not isinstance(given, str) or not given.isprintable():
        return None
    return given if _fits(given, Name) else None


def _time(given: object, timestamp_ms: int) -> datetime | None:
    """RFC 3339 or Unix time in seconds or milliseconds; None: the record's own time."""
    try:
        if isinstance(given, str) and re.fullmatch(r"\d+(\.\d+)?", given):
            given = float(given)
        if isinstance(given, str):
            found = datetime.fromisoformat(given)
            found = found if found.tzinfo else found.replace(tzinfo=UTC)
        elif isinstance(given, int | float) and not isinstance(given, bool) and given > 0:
            seconds = given / 1000 if given >= MILLISECONDS_FROM else given
            found = datetime.fromtimestamp(seconds, UTC)
        else:
            return None
        return moment(found, timestamp_ms)
    except (ValueError, OverflowError, OSError, InvalidMessage):
        return None


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def storable(value: Any) -> Any:
    """No text with NUL, at which databases and C libraries end one, nor with half a character."""
    if isinstance(value, str):
        text = value.replace("\0", "")
        return text if text.isascii() else text.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {storable(name): storable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [storable(one) for one in value]
    return value
