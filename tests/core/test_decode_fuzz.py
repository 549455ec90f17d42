"""No bytes make decode raise anything but InvalidMessage, or pass on what is not storable."""

import json
from datetime import UTC, datetime
from typing import Any

import duckdb
import msgspec
from decode_samples import (
    KEY,
    PAIR,
    PLAIN,
    POLICY,
    SOURCE,
    TOLD,
    WRITTEN_MS,
    changed,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.decode import decode
from pipelines.errors import InvalidMessage
from pipelines.records.native import json_schema
from pipelines.records.signature import sign
from pipelines.types import (
    Headers,
    PromptEvent,
)

TEXT = st.text(st.characters(codec=None), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
FIELDS = sorted(json_schema()["properties"])


def texts(event: PromptEvent) -> list[str]:
    """Every text of an event that could reach a database."""
    found: list[str] = []

    def walk(thing: Any) -> None:
        if isinstance(thing, str):
            found.append(thing)
        elif isinstance(thing, dict):
            for key, value in thing.items():
                walk(key)
                walk(value)
        elif isinstance(thing, list):
            for value in thing:
                walk(value)

    walk(msgspec.to_builtins(event))
    return found


CONNECTION = duckdb.connect(":memory:")
CONNECTION.execute("CREATE TABLE stored (text TEXT NOT NULL)")


def accepted_or_refused(value: bytes, headers: Headers = ()) -> None:
    try:
        event = decode(value, headers, SOURCE, WRITTEN_MS, POLICY)
    except InvalidMessage:
        return
    stored = texts(event)
    CONNECTION.execute("DELETE FROM stored")
    CONNECTION.execute("INSERT INTO stored SELECT unnest($texts)", {"texts": stored})
    rows = CONNECTION.execute("SELECT text FROM stored").fetchall()
    assert sorted(text for (text,) in rows) == sorted(stored)
    assert "\0" not in "".join(stored)
    assert datetime(2000, 1, 1, tzinfo=UTC) <= event.occurred_at


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.lists(st.tuples(TEXT, st.binary(max_size=70)), max_size=3))
def test_random_bytes_never_raise_anything_else(
    value: bytes, headers: list[tuple[str, bytes]]
) -> None:
    accepted_or_refused(value, tuple(headers))


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_random_json_never_raises_anything_else(thing: Any) -> None:
    accepted_or_refused(json.dumps(thing).encode("utf-8", "surrogatepass"))


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(FIELDS), JSON, st.booleans())
def test_a_record_with_one_random_field_never_raises_anything_else(
    name: str, thing: Any, ascii_only: bool
) -> None:
    text = json.dumps({**TOLD, name: thing}, ensure_ascii=ascii_only)
    value = text.encode("utf-8", "surrogatepass")
    accepted_or_refused(value)
    accepted_or_refused(value, sign(value, "gateway-1", KEY))


@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT, st.dictionaries(TEXT, TEXT, max_size=3), st.booleans())
def test_texts_of_any_kind_are_stored_or_refused(
    content: str, answer: str, attributes: dict[str, str], ascii_only: bool
) -> None:
    record = {**changed(PLAIN, "messages.0.content", content), "answer": answer,
              "attributes": attributes}  # fmt: skip
    text = json.dumps(record, ensure_ascii=ascii_only)
    accepted_or_refused(text.encode("utf-8", "surrogatepass"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_record_with_flipped_bytes_never_raises_anything_else(data: st.DataObject) -> None:
    value = bytearray(json.dumps(data.draw(st.sampled_from([TOLD, PAIR]))).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    accepted_or_refused(bytes(value))
