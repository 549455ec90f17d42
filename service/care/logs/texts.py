"""Prompts, answers and times as logs hold them: messages, parts, JSON in a text, a bare text."""

from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec

from pipelines.errors import InvalidMessage
from pipelines.records.common import EARLIEST, LATEST, MAX_AHEAD
from pipelines.replies import CUT, THOUGHTS, read_reply, text_of
from service.care.logs.call import Row, Said

# Numbers from here on are milliseconds, microseconds, nanoseconds: as seconds they would lie
# after the year 5000.
SCALES = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
LEFT_OUT = "redacted-by-litellm"
ROLES_OF_TYPES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


def parsed(given: object) -> object:
    """What a text of JSON holds; anything else as it is."""
    if isinstance(given, str) and given.lstrip()[:1] in ("{", "["):
        with suppress(msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return msgspec.json.decode(given)
    return given


def table(given: object) -> Row:
    """An object, also one in a text of JSON; empty where it is none."""
    found = parsed(given)
    return found if isinstance(found, dict) else {}


def listed(given: object) -> list[Any]:
    """A list, also one in a text of JSON; empty where it is none."""
    found = parsed(given)
    return found if isinstance(found, list) else []


def first_of(*given: object) -> Any:
    """The first that says something."""
    return next((one for one in given if one not in (None, "")), None)


# Prompts


def conversation(given: object) -> list[dict[str, Any]]:
    """A prompt as messages. Raises `InvalidMessage` where it is none that is known."""
    found = _conversation(parsed(given))
    if found is None and isinstance(given, str) and given:
        found = [{"role": "user", "content": given}]  # a text that only looked like JSON
    if not found:
        raise InvalidMessage("no prompt where its tool puts it: say where it is with --map")
    if any(message.get("content") == LEFT_OUT for message in found):
        raise InvalidMessage("the tool that wrote it left the texts out")
    return found


def _conversation(given: object) -> list[dict[str, Any]] | None:
    if isinstance(given, dict):
        return _of_request(given)
    if isinstance(given, list):
        if len(given) == 1 and isinstance(given[0], list):  # a batch of one
            return _conversation(given[0])
        if given and all(isinstance(one, str) for one in given):
            return [{"role": "user", "content": "\n".join(given)}]
        turns = [one for one in given if not (isinstance(one, dict) and _is_step(one))]
        read = [one for one in map(_message, turns) if one is not None]
        return read if len(read) == len(turns) else None
    return [{"role": "user", "content": given}] if isinstance(given, str) and given else None


def _of_request(given: Row) -> list[dict[str, Any]] | None:
    """The body of a request: of chat, of Responses, of completions, or a message alone."""
    asked = first_of(given.get("messages"), given.get("input"), given.get("prompt"))
    if asked is None:
        alone = _message(given)
        return None if alone is None else [alone]
    read = _conversation(parsed(asked))
    if read is None and isinstance(asked, str):
        read = [{"role": "user", "content": asked}]
    told = first_of(given.get("instructions"), given.get("system"))
    if read is None or told is None or isinstance(told, dict):
        return read
    return [{"role": "system", "content": told}, *read]


def _message(given: object) -> dict[str, Any] | None:
    """A message; None where it is none. Its parts may be named as OpenTelemetry names them."""
    if not isinstance(given, dict):
        return None
    role = given.get("role") or ROLES_OF_TYPES.get(str(given.get("type")))
    if "parts" in given and role:
        return {"role": role, "content": [*map(_part, listed(given["parts"]))]}
    if "content" not in given and not given.get("tool_calls"):
        return None
    return {**given, "role": role, "content": given.get("content")} if role else None


def _is_step(given: Row) -> bool:
    """What a model did between its turns, as Responses lists it among them."""
    return given.get("type") in ("reasoning", "function_call", "function_call_output")


def _part(given: object) -> object:
    if not isinstance(given, dict):
        return given
    kind = given.get("type")
    if kind in ("tool_call", *THOUGHTS):
        return {"text": ""}
    said = first_of(given.get("content"), given.get("text"), given.get("response"))
    if kind in ("text", "tool_call_response") and said is not None:
        return {"type": "text", "text": said if isinstance(said, str) else _json(said)}
    return given  # an image, a sound, a file


# Answers


def said(given: object) -> Said | None:
    """What was answered: a text, a message, a completion, a list of choices. None: nothing was."""
    found = parsed(given)
    if isinstance(given, str) and (found is given or not _is_reply(found)):
        return Said(given) if given else None  # also JSON that is itself the answer
    if isinstance(found, dict):
        return _said_by(found) if found else None
    if isinstance(found, list):
        if not _is_reply(found):
            return Said(_json(found)) if found else None
        if all(isinstance(one, dict) and _is_text(one) for one in found):
            return _text(text_of(found))
        answers = [one for one in found if isinstance(one, dict) and _answers(one)]
        return said(answers[0]) if answers else None
    return None if found is None else Said(_json(found))


def _is_reply(given: object) -> bool:
    """Whether this is how a tool writes an answer down, rather than an answer that is JSON."""
    if isinstance(given, list):
        return bool(given) and all(isinstance(one, dict) and _is_reply(one) for one in given)
    return isinstance(given, dict) and (
        isinstance(given.get("choices"), list)
        or ("role" in given and ("content" in given or "parts" in given))
        or given.get("object") == "response"
        or isinstance(given.get("message"), dict)
        or _is_text(given)
        or given.get("type") in ("message", "reasoning", "function_call")
        or (set(given) >= {"error"} and isinstance(given["error"], dict))
    )


def _is_text(given: Row) -> bool:
    return given.get("type") in ("text", "output_text") and isinstance(given.get("text"), str)


def _answers(given: Row) -> bool:
    return given.get("role", "assistant") in ("assistant", "ai", "model") and given.get(
        "type"
    ) not in ("reasoning", "function_call")


def _said_by(given: Row) -> Said | None:
    if isinstance(given.get("choices"), list):
        reply = read_reply(msgspec.json.encode(given))
        if reply is None or not reply.content:
            return None
        return Said(reply.content, not reply.unusable)
    if given.get("object") == "response":
        return _of_response(given)
    if isinstance(given.get("message"), dict):
        inner = said(given["message"])
        return inner and Said(inner.text, _ended(given) and inner.whole)
    if not _is_reply(given):
        only = set(given) == {"content"} and isinstance(given["content"], str)
        return _text(given["content"]) if only else Said(_json(given))
    if "parts" in given:
        texts = [part for part in map(_part, listed(given["parts"])) if isinstance(part, dict)]
        return _text(text_of(texts), whole=_ended(given))
    return _text(text_of(given.get("content", given)), whole=_ended(given))


def _of_response(given: Row) -> Said | None:
    """The answer of OpenAI's Responses: the messages among what came out."""
    came = [one for one in listed(given.get("output")) if isinstance(one, dict)]
    texts = [text_of(one.get("content")) for one in came if one.get("type") == "message"]
    return _text(
        "".join(filter(None, texts)), whole=given.get("status", "completed") == "completed"
    )


def _ended(given: Row) -> bool:
    reason = first_of(given.get("finish_reason"), given.get("stop_reason"))
    return str(reason).casefold() not in CUT | {"content_filter", "refusal"}


def _text(text: str | None, *, whole: bool = True) -> Said | None:
    return Said(text, whole) if text else None


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


# Times


def moment(given: object) -> datetime | None:
    """RFC 3339, or a number since 1970 in seconds or finer units; without a zone it is UTC.

    None for what cannot be its time: that costs the time, not the prompt, and is counted.
    """
    found = given if isinstance(given, datetime) else None
    if isinstance(given, date) and found is None:
        found = datetime(given.year, given.month, given.day, tzinfo=UTC)
    if isinstance(given, str | int | float) and not isinstance(given, bool):
        found = _from_text(str(given).strip())
    if found is None:
        return None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    latest = min(LATEST, datetime.now(UTC) + MAX_AHEAD - timedelta(minutes=1))
    return found if EARLIEST <= found < latest else None


def _from_text(given: str) -> datetime | None:
    with suppress(ValueError):
        return _from_unix(float(given))
    with suppress(ValueError):
        return datetime.fromisoformat(given.removesuffix("UTC").strip())
    return None


def _from_unix(number: float) -> datetime | None:
    scale = next((scale for start, scale in SCALES if number >= start), 1.0)
    try:
        return datetime.fromtimestamp(number / scale, UTC)
    except (ValueError, OverflowError, OSError):
        return None
