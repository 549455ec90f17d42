"""A logged call to the record that goes onto the topic, and the id that it gets."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from pipelines.decode import MAX_REASON_CHARACTERS
from pipelines.errors import InvalidMessage
from pipelines.records.common import refuse_unknown_role, user_name
from pipelines.records.mending import attributes_of, id_of, plain_messages, storable
from pipelines.records.native import SCHEMA, NativeRecord, encode_native
from pipelines.types import Message
from service.care.logs.call import LoggedCall, Row, Said
from service.care.logs.texts import parsed

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What the operator says about all of a log's calls."""

    model: str | None = None  # where a call names none
    task: str | None = None  # whatever its model
    teacher_model: str | None = None
    signed: bool = False  # else nothing in it can be a label
    teacher_answers: bool = False


class Recorded(NamedTuple):
    """The value for the topic."""

    value: bytes
    beyond_students: bool = False


def record_of(call: LoggedCall, number: int, naming: Naming) -> Recorded:
    """The call's record. Raises `InvalidMessage` where there cannot be one."""
    try:
        if call.native is not None:
            return Recorded(_of_our_own(call.native, number, naming))
        asked, answer = _without_answer(call)
        messages, beyond = plain_messages(asked)
        if beyond or _asks_more(call.request):
            return Recorded(_pair(call, asked, answer, number, naming), beyond_students=True)
        return Recorded(_native(call, messages, answer, number, naming))
    except UnicodeEncodeError:
        raise InvalidMessage("not UTF-8") from None
    except (msgspec.MsgspecError, RecursionError) as problem:
        raise InvalidMessage(str(problem)[:MAX_REASON_CHARACTERS]) from None


def _without_answer(call: LoggedCall) -> tuple[Messages, Said | None]:
    """What is asked must not hold what was answered: files for fine-tuning end with it."""
    messages, answer = call.messages, call.said
    if len(messages) > 1 and messages[-1].get("role") == "assistant":
        ((last,), _), messages = plain_messages(messages[-1:]), messages[:-1]
        answer = answer or (Said(last["content"]) if last["content"] else None)
    return messages, answer


def _native(
    call: LoggedCall, messages: Messages, answer: Said | None, number: int, naming: Naming
) -> bytes:
    for message in messages:
        refuse_unknown_role(str(message["role"]))
    record = NativeRecord(
        schema=SCHEMA,
        event_id=id_of(_text(call.source_id)),
        task=naming.task,
        model=_model(call, naming),
        occurred_at=call.time,
        messages=msgspec.convert(messages, tuple[Message, ...]),
        answer=answer.text if answer else None,
        user=user_name(parsed(call.user)),
        attributes=attributes_of(parsed(call.metadata)),
    )
    return _identified(_labelled(record, call.label, answer, naming), number)


def _labelled(
    record: NativeRecord, label: str | None, answer: Said | None, naming: Naming
) -> NativeRecord:
    """With the label that the log names, or the app's answer where that is the teacher's.

    An answer that was cut or filtered could be read as another label: it stays the app's.
    """
    if label is not None and not naming.signed:
        raise InvalidMessage(
            "it has a label, and labels count only when they are signed "
            "(--producer, or --teacher-answers)"
        )
    if label is None and naming.teacher_answers and answer is not None and answer.whole:
        label = answer.text
    if label is None:
        return record
    return msgspec.structs.replace(record, teacher_answer=label, teacher_model=naming.teacher_model)


def _of_our_own(row: Row, number: int, naming: Naming) -> bytes:
    """A native record, as it is: what is odd in it is set right by whoever reads it."""
    try:
        record = msgspec.convert(row, NativeRecord)
    except msgspec.ValidationError:
        named = id_of(row.get("event_id")) or _made_id(number, msgspec.json.encode(row))
        return msgspec.json.encode({**row, "event_id": named})
    if naming.task is not None:
        record = msgspec.structs.replace(record, task=naming.task)
    if record.teacher_answer is None and record.served_by == "app" and record.answer:
        record = _labelled(record, None, Said(record.answer), naming)
    return _identified(record, number)


def _pair(
    call: LoggedCall, asked: Messages, answer: Said | None, number: int, naming: Naming
) -> bytes:
    """What no student can answer, in the one form that can say so."""
    request = {
        **{name: call.request[name] for name in ("tools", "functions", "n")
           if call.request.get(name)},
        "model": _model(call, naming),
        "messages": asked,
        "user": user_name(parsed(call.user)),
        "metadata": attributes_of(parsed(call.metadata)),
    }  # fmt: skip
    response = {
        "id": id_of(_text(call.source_id))
        or _made_id(number, msgspec.json.encode(storable(request))),
        "created": call.time.timestamp() if call.time else None,
        "choices": [{"message": {"content": answer.text}}] if answer else [],
    }
    return msgspec.json.encode(storable({"request": request, "response": response}))


def _asks_more(request: Mapping[str, Any]) -> bool:
    """Tools, or several answers: nothing that a student could give."""
    tools = any(parsed(request.get(name)) for name in ("tools", "functions"))
    many = str(request.get("n"))
    return tools or (many.isdigit() and int(many) > 1)


def _model(call: LoggedCall, naming: Naming) -> str:
    model = _text(call.model) or naming.model
    if not model:
        raise InvalidMessage("no model, and none was named for the whole file (--model)")
    return model


def _text(found: object) -> str | None:
    told = isinstance(found, (str, int)) and not isinstance(found, bool)
    return str(found) if told else None


def _identified(record: NativeRecord, number: int) -> bytes:
    """With the id by which the same line is known again: its own, or one that is made."""
    if record.event_id is None:
        named = _made_id(number, encode_native(record))
        record = msgspec.structs.replace(record, event_id=named)
    return encode_native(record)


def _made_id(number: int, content: bytes) -> str:
    """The one place where a record without an id gets one."""
    return f"import-{blake2b(b'%d ' % number + content, digest_size=12).hexdigest()}"
