"""A logged call to the record that goes onto the topic, and the id that it gets."""

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from pipelines.chat_request import ChatRequest, attachments, plain_messages, why_past
from pipelines.decode import MAX_REASON_CHARACTERS
from pipelines.errors import InvalidMessage
from pipelines.identities import IMPORTED
from pipelines.records.common import refuse_unknown_role, user_name
from pipelines.records.mending import attributes_of, chat_of, id_of
from pipelines.records.native import SCHEMA, NativeRecord, encode_native
from pipelines.replies import text_of
from service.care.logs.call import LoggedCall, Row, Said
from service.care.logs.texts import parsed

NUMBERS = ("n", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens")
REQUEST_FIELDS = frozenset(ChatRequest.__struct_fields__) - {"model", "messages"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What the operator says about all of a log's calls."""

    model: str | None = None  # where a call names none
    task: str | None = None  # whatever its model
    teacher_model: str | None = None
    signed: bool = False  # else nothing in it can be a label
    teacher_answers: bool = False


class Identities:
    """Gives each record its id: the same log imported twice has the same ones.

    The hash of the record and its ordinal among equals, whatever id its log gave it: those are
    not unique (`pipelines.identities.event_identity`).
    """

    def __init__(self) -> None:
        self._equals: Counter[bytes] = Counter()

    def identified(self, record: NativeRecord) -> bytes:
        return encode_native(
            msgspec.structs.replace(record, event_id=self.made(encode_native(record)))
        )

    def made(self, content: bytes) -> str:
        digest = blake2b(content, digest_size=12)
        before = self._equals[digest.digest()]
        self._equals[digest.digest()] += 1
        return f"{IMPORTED}{digest.hexdigest()}{f'-{before}' if before else ''}"


def record_of(call: LoggedCall, naming: Naming, identities: Identities) -> bytes:
    """The call's record. Raises `InvalidMessage` where there cannot be one."""
    try:
        if call.native is not None:
            return _of_our_own(call.native, naming, identities)
        return identities.identified(_native(call, naming))
    except UnicodeEncodeError:
        raise InvalidMessage("not UTF-8") from None
    except (msgspec.MsgspecError, RecursionError, OverflowError) as problem:
        raise InvalidMessage(str(problem)[:MAX_REASON_CHARACTERS]) from None


def _native(call: LoggedCall, naming: Naming) -> NativeRecord:
    messages, answer = _without_answer(call)
    asked = {name: _asked(name, call.request.get(name)) for name in REQUEST_FIELDS}
    asked |= {"model": _model(call, naming), "messages": chat_of(messages)}
    request = msgspec.convert(asked, ChatRequest)
    for message in request.messages:
        refuse_unknown_role(message.role)
    record = NativeRecord(
        schema=SCHEMA,
        event_id=id_of(_text(call.source_id)),
        task=naming.task,
        model=request.model,
        occurred_at=call.time,
        messages=plain_messages(request.messages),
        asked=request.asked(),
        past=why_past(request),
        attachments=attachments(request.messages) or None,
        answer=answer.text if answer else None,
        user=user_name(parsed(call.user)),
        attributes=attributes_of(parsed(call.metadata)),
    )
    return _labelled(record, call.label, answer, naming)


def _without_answer(call: LoggedCall) -> tuple[list[dict[str, Any]], Said | None]:
    """What is asked must not hold what was answered: files for fine-tuning end with it."""
    messages, answer = call.messages, call.said
    if len(messages) > 1 and messages[-1].get("role") == "assistant":
        text, messages = text_of(messages[-1].get("content")), messages[:-1]
        answer = answer or (Said(text) if text else None)
    return messages, answer


def _labelled(
    record: NativeRecord, label: str | None, answer: Said | None, naming: Naming
) -> NativeRecord:
    """With the label that the log names, or the app's answer where that is the teacher's.

    An answer that was cut or filtered could be read as another label: it stays the app's. So do
    those to requests that no student may answer.
    """
    if label is not None and not naming.signed:
        raise InvalidMessage(
            "it has a label, and labels count only when they are signed "
            "(--producer, or --teacher-answers)"
        )
    usable = answer is not None and answer.whole and record.past is None
    if label is None and naming.teacher_answers and answer is not None and usable:
        label = answer.text
    if label is None:
        return record
    return msgspec.structs.replace(record, teacher_answer=label, teacher_model=naming.teacher_model)


def _of_our_own(row: Row, naming: Naming, identities: Identities) -> bytes:
    """A native record, as it is: what is odd in it is set right by whoever reads it."""
    try:
        record = msgspec.convert(row, NativeRecord)
    except msgspec.ValidationError:
        named = identities.made(msgspec.json.encode(row))
        return msgspec.json.encode({**row, "event_id": named})
    if naming.task is not None:
        record = msgspec.structs.replace(record, task=naming.task)
    if record.teacher_answer is None and record.served_by == "app" and record.answer:
        record = _labelled(record, None, Said(record.answer), naming)
    return identities.identified(record)


def _asked(name: str, given: object) -> object:
    """A field of the request; some tools write down everything as text, and the teacher is asked
    with it as it was."""
    found = parsed(given)
    if name not in NUMBERS or not isinstance(found, str):
        return found
    try:
        return msgspec.json.decode(found, type=int | float)
    except msgspec.DecodeError:
        return None


def _model(call: LoggedCall, naming: Naming) -> str:
    model = _text(call.model) or naming.model
    if not model:
        raise InvalidMessage("no model, and none was named for the whole file (--model)")
    return model


def _text(found: object) -> str | None:
    told = isinstance(found, (str, int)) and not isinstance(found, bool)
    return str(found) if told else None
