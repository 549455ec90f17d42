"""What every shape of a record promises, whatever it looks like; one sample of each is enough."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from decode_samples import OTHER_SAMPLES, POLICY, SOURCE, changed, read, signed
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.decode import OTHER_SHAPES
from pipelines.errors import InvalidMessage
from pipelines.records.common import user_key
from pipelines.types import PromptEvent

STRANGE: tuple[Any, ...] = (None, True, -1, 2**70, 1e300, "", "\ud800", [], {}, [[]], "x" * 2_000)


def leaves(thing: Any, way: tuple[str, ...] = ()) -> Iterator[str]:
    """The way to every value that holds no other."""
    inside = thing.items() if isinstance(thing, dict) else enumerate(thing)
    for key, value in inside:
        here = (*way, str(key))
        if isinstance(value, dict | list):
            yield from leaves(value, here)
        else:
            yield ".".join(here)


def texts(event: PromptEvent) -> bytes:
    return msgspec.json.encode(event)


def said(record: dict[str, Any]) -> bytes:
    """All that is told of a record: its event, or why it was refused."""
    try:
        return texts(read(record))
    except InvalidMessage as refusal:
        return str(refusal).encode()


every_shape = pytest.mark.parametrize("mark", OTHER_SHAPES)
every_place = pytest.mark.parametrize(
    ("mark", "place"),
    [(mark, place) for mark, sample in OTHER_SAMPLES.items() for place in leaves(sample)],
)


def test_every_shape_has_a_sample_that_only_its_mark_tells() -> None:
    assert OTHER_SAMPLES.keys() == OTHER_SHAPES.keys()
    for mark, sample in OTHER_SAMPLES.items():
        assert [one for one in OTHER_SHAPES if one in sample] == [mark]


@every_shape
def test_a_sample_becomes_an_event_of_the_task_that_claims_its_model(mark: str) -> None:
    event = read(OTHER_SAMPLES[mark])
    assert (event.task, event.model, event.source) == ("support", "support-large", SOURCE)
    assert event.answer
    assert any(message.content for message in event.messages)


@every_shape
def test_nothing_in_it_is_a_label_signed_or_not(mark: str) -> None:
    for event in (read(OTHER_SAMPLES[mark]), signed(OTHER_SAMPLES[mark])):
        assert (event.served_by, event.student, event.feedback) == ("app", None, None)
        assert (event.teacher_answer, event.teacher_model) == (None, None)
    assert read(OTHER_SAMPLES[mark]).usage is None


@every_shape
def test_its_user_is_kept_as_a_keyed_hash_only(mark: str) -> None:
    event = read(OTHER_SAMPLES[mark])
    assert event.user_key == user_key("u-7", POLICY.user_salt)
    assert b"u-7" not in texts(event)


@every_shape
def test_fields_that_it_does_not_name_are_ignored(mark: str) -> None:
    assert read({**OTHER_SAMPLES[mark], "trace": {"a": [1, {"b": None}]}}) == read(
        OTHER_SAMPLES[mark]
    )


@every_place
def test_whatever_stands_in_a_place_is_read_or_refused(mark: str, place: str) -> None:
    for strange in STRANGE:
        with suppress(InvalidMessage):
            read(changed(OTHER_SAMPLES[mark], place, strange))


@every_place
def test_no_nul_gets_through_and_no_reason_quotes_the_record(mark: str, place: str) -> None:
    """NUL is taken out; where the place is no text, the reason does not say what stood there."""
    found = said(changed(OTHER_SAMPLES[mark], place, "SECRET\0WORD"))
    assert b"\\u0000" not in found
    assert b"SECRET" not in found or b'"messages":' in found  # read, not refused


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_sample_with_flipped_bytes_is_read_or_refused(data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from(list(OTHER_SAMPLES.values())))
    value = bytearray(json.dumps(sample).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidMessage):
        read(bytes(value))
