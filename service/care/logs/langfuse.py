"""Langfuse: observations from its API, its screens (JSON, CSV) and its bucket, also in traces."""

from collections.abc import Iterator, Mapping

from pipelines.errors import InvalidMessage
from service.care.logs.call import LoggedCall, Row
from service.care.logs.texts import conversation, first_of, moment, said, table

MARKS = {"traceId", "trace_id", "startTime", "start_time", "observations", "sessionId"}
KINDS = ("GENERATION", "")


def is_langfuse(row: Row) -> bool:
    return {"input", "output"} <= set(row) and (
        str(row.get("type", "")).upper() == "GENERATION" or bool(MARKS & set(row))
    )


def read_langfuse(row: Row) -> Iterator[LoggedCall | InvalidMessage]:
    """Of a trace that holds its observations the generations, else the row itself."""
    inside = row.get("observations")
    steps = [one for one in inside if isinstance(one, dict)] if isinstance(inside, list) else []
    if not steps:
        yield from _observation(row, {})
    for step in steps:
        try:
            yield from _observation(step, row)
        except InvalidMessage as problem:
            yield problem


def _observation(row: Row, trace: Row) -> Iterator[LoggedCall]:
    if str(row.get("type") or "").upper() not in KINDS:
        return
    asked = table(row.get("input"))
    user = first_of(_either(row, "userId", "user_id"), _either(trace, "userId", "user_id"))
    yield LoggedCall(
        messages=conversation(row.get("input")),
        model=first_of(row.get("model"), _either(row, "providedModelName", "provided_model_name")),
        said=None if row.get("level") == "ERROR" else said(row.get("output")),
        user=user,
        time=moment(first_of(_either(row, "startTime", "start_time"), row.get("timestamp"))),
        source_id=row.get("id"),
        metadata={**table(trace.get("metadata")), **table(row.get("metadata"))},
        request={**table(_either(row, "modelParameters", "model_parameters")), **asked},
    )


def _either(row: Mapping[str, object], *names: str) -> object:
    return first_of(*(row.get(name) for name in names))
