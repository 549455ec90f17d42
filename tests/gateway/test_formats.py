"""A student answers only what the request's own schema allows, and no schema can hurt."""

import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from core_samples import TASK
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from service.gateway.formats import MOST_REMEMBERED, Formats

INTENT = replace(TASK, answer_pointer="/label")
ALL = frozenset(TASK.labels)


class Intent(str, Enum):  # noqa: UP042 - as apps write it
    refund = "refund"
    delivery = "delivery"
    cancel = "cancel"


class WithEnum(BaseModel):
    label: Intent


class WithLiteral(BaseModel):
    """Described at length."""

    label: Literal["refund", "delivery", "cancel", "other"] = Field(
        description="which", examples=["refund"], max_length=20, pattern="^[a-z]+$"
    )
    why: str | None = None


class WithMore(BaseModel):
    label: Intent
    confidence: float
    reason: str


def asks(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}


def labels(inner: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"label": inner}, "required": ["label"], **more}


@pytest.mark.parametrize(
    "schema",
    [
        WithEnum.model_json_schema(), WithLiteral.model_json_schema(),
        labels({"anyOf": [{"const": label} for label in TASK.labels]}),
        labels({"type": "string", "nullable": True}),
        labels({"type": "string"}, additionalProperties=False),
        labels({"$ref": "#/properties/other"}) | {"properties": {
            "label": {"$ref": "#/properties/other"}, "other": {"type": "string"}}},
        labels({"type": "string"}) | {"$schema": "http://json-schema.org/draft-07/schema#"},
        {},
    ],
)  # fmt: skip
def test_what_sdks_write_is_understood(schema: Any) -> None:
    assert Formats().allowed(asks(schema), INTENT) == ALL


@pytest.mark.parametrize(
    "schema",
    [
        WithMore.model_json_schema(),
        labels({"type": "integer"}), labels({"type": "string", "maxLength": 2}),
        {"type": "array"}, {"type": "string"}, {"not": {}}, [], "object", None, 7, False,
        labels({"type": "nonsense"}), labels({"pattern": "("}), labels({"$ref": "#/nowhere"}),
        labels({"$ref": "other.json#/x"}), labels({"$dynamicRef": "#x"}),
        {"$schema": "http://example.test/meta", **labels({})},
    ],
)  # fmt: skip
def test_what_no_answer_can_have_or_nobody_can_compile_goes_to_the_teacher(schema: Any) -> None:
    assert Formats().allowed(asks(schema), INTENT) == frozenset()


def test_a_narrower_schema_allows_some_labels() -> None:
    some = asks(labels({"enum": ["refund", "cancel"]}))
    assert Formats().allowed(some, INTENT) == {"refund", "cancel"}


def test_forms_without_a_schema() -> None:
    formats, plain = Formats(), TASK
    assert formats.allowed(None, plain) == formats.allowed({"type": "text"}, plain) == ALL
    assert formats.allowed({"type": "json_object"}, INTENT) == ALL
    for wanted in ({"type": "json_object"}, asks({}), {"type": "grammar"}, {}, "json", 7):
        assert formats.allowed(wanted, plain) == frozenset(), wanted
    assert formats.allowed({"type": "json_schema"}, INTENT) == frozenset()


def test_no_schema_makes_the_gateway_fetch_anything(tmp_path: Path) -> None:
    (tmp_path / "any.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        caught: list[object] = []

        def listen() -> None:
            with suppress(TimeoutError):
                caught.append(server.accept())

        thread = threading.Thread(target=listen)
        thread.start()
        for address in (
            f"http://127.0.0.1:{server.getsockname()[1]}/any.json",
            (tmp_path / "any.json").as_uri(),
        ):
            for schema in (
                {"$ref": address}, labels({"$ref": address}), {"$schema": address, **labels({})},
                {"$id": address, **labels({"$ref": "#/properties/label"})},
            ):  # fmt: skip
                assert Formats().allowed(asks(schema), INTENT) == frozenset()
        thread.join()
    assert caught == []


def doubling(levels: int, by: str = "allOf") -> dict[str, Any]:
    """Small to write, and two to the power of its levels to walk."""
    below = {f"a{at}": {by: [{"$ref": f"#/$defs/a{at + 1}"}] * 2} for at in range(levels)}
    return {"$defs": {**below, f"a{levels}": {"type": "object"}}, "$ref": "#/$defs/a0"}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"allOf": [schema]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        doubling(40), doubling(40, "anyOf"), doubling(40, "oneOf"), deep(80), deep(900),
        {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}] * 2}}, "$ref": "#/$defs/a"},
        {"$ref": "#"}, {"enum": ["x" * 70_000]},
    ],
)  # fmt: skip
def test_a_schema_that_is_too_much_goes_to_the_teacher_at_once(schema: Any) -> None:
    started = time.perf_counter()
    assert Formats().allowed(asks(schema), INTENT) == frozenset()
    assert time.perf_counter() - started < 1.0  # a hundredth of that, on a machine at rest


def test_a_pattern_cannot_hang_it() -> None:
    wide = replace(INTENT, labels=("a" * 60 + "b", "c"))
    started = time.perf_counter()
    for pattern in ("^(a+)+$", "^(?=(a+)+$)", "(a*)*c", "^(a|aa)+$"):
        Formats().allowed(asks(labels({"pattern": pattern})), wide)
    assert time.perf_counter() - started < 2.0


def test_what_is_remembered_is_bounded_and_is_by_task() -> None:
    formats = Formats()
    for number in range(MOST_REMEMBERED + 50):
        formats.allowed(asks(labels({"type": "string", "title": str(number)})), INTENT)
    assert len(formats._known) == MOST_REMEMBERED
    narrow = asks(labels({"enum": ["refund"]}))
    assert formats.allowed(narrow, INTENT) == {"refund"}
    assert formats.allowed(narrow, replace(INTENT, labels=("cancel",))) == frozenset()
    assert formats.allowed(narrow, replace(INTENT, answer_pointer="/x")) == frozenset()


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "label", "$ref", "enum", "allOf", "items", "$defs"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(JSONS)
def test_any_schema_is_answered_without_an_error(schema: Any) -> None:
    assert Formats().allowed(asks(schema), INTENT) <= ALL
    assert Formats().allowed(schema, INTENT) <= ALL
