"""The first records of a log as they were understood, for `flywheel import --look`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.errors import InvalidMessage
from service.care.import_log import ImportPolicy, understanding
from service.care.logs.call import Progress
from service.care.logs.reading import Found, read_logs
from service.terminal import printable, when

SHOWN = 5
LONGEST = 300  # characters of a text

Seen = Mapping[str, Any]


def looked_at(
    paths: Sequence[Path], policy: ImportPolicy, progress: Progress = lambda _: None
) -> list[Seen]:
    """The first records. Nothing is sent or written."""
    understand = understanding(policy)
    found_all = read_logs(paths, policy.columns, progress)
    calls = (found for found in found_all if found.call is not None)
    return [_seen(found, understand) for found in islice(calls, SHOWN)]


def _seen(found: Found, understand: Any) -> Seen:
    place = {"file": found.path.name, "line": found.line, "shape": found.shape}
    try:
        event = understand(found).event
    except InvalidMessage as problem:
        return {**place, "problem": str(problem)}
    return {
        **place,
        "problem": None,
        "task": event.task,
        "past": event.past,
        "model": event.model,
        "time": event.occurred_at.isoformat(),
        "user_key": event.user_key,
        "attributes": event.attributes,
        "messages": [{"role": one.role, "content": one.content} for one in event.messages],
        "answer": event.answer,
        "teacher_answer": event.teacher_answer,
    }


def look_lines(seen: Sequence[Seen]) -> Iterator[str]:
    """A few lines a record. What stands in it must not drive the terminal."""
    for one in seen:
        read_as = f", read as {one['shape']}" if one["shape"] else ""
        yield f"{one['file']} line {one['line']}{read_as}"
        if one["problem"]:
            yield f"  cannot be used: {one['problem']}"
        else:
            yield from (f"  {name:10}{value}" for name, value in _told(one) if value)
        yield ""
    yield "Nothing was sent." if seen else "It holds no model call. Nothing was sent."


def _told(one: Seen) -> Iterator[tuple[str, str]]:
    past = f"; no student may answer it: {one['past']}" if one["past"] else ""
    yield "task", (one["task"] or "none claims the model") + past
    yield "model", _short(one["model"])
    yield "time", when(one["time"])
    yield "user", (one["user_key"] or "")[:12]
    yield "metadata", _short(", ".join(f"{k}={v}" for k, v in one["attributes"].items()))
    for message in one["messages"]:
        yield printable(message["role"], 9), _short(message["content"])
    if one["teacher_answer"] is not None:
        yield "label", _short(one["teacher_answer"]) + "  (the teacher's)"
    elif one["answer"] is not None:
        yield "answer", _short(one["answer"]) + "  (the app's)"
    else:
        yield "answer", "none"


def _short(text: str) -> str:
    return printable(text, LONGEST)
