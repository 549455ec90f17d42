"""OpenTelemetry's GenAI spans and events: OTLP as JSON, spans one a line, both conventions.

The older one says prompts as numbered attributes (`gen_ai.prompt.0.content`), as one attribute
(`gen_ai.prompt`) or as events; the newer one as `gen_ai.input.messages` with parts.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.errors import InvalidMessage
from service.care.logs.call import LoggedCall, Row, Said
from service.care.logs.texts import conversation, first_of, listed, moment, parsed, said, table

OPERATIONS = ("chat", "text_completion", "generate_content", "completion", "")
USERS = ("enduser.id", "user.id", "gen_ai.user.id", "gen_ai.request.user", "llm.user",
         "traceloop.association.properties.user_id")  # fmt: skip
TOOLS = ("gen_ai.tool.definitions", "gen_ai.request.tools", "llm.request.functions.0.name")
SAID_ALIKE = ("temperature", "top_p", "seed", "max_tokens")
ROLE_OF_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message")
NUMBERED = re.compile(r"gen_ai\.(prompt|completion)\.(\d+)\.(role|content|finish_reason)")
DETAILS = "gen_ai.client.inference.operation.details"


def is_otel(row: Row) -> bool:
    return (
        "resourceSpans" in row
        or "resourceLogs" in row
        or any(name.startswith("gen_ai.") for name in _attributes(row))
    )


def read_otel(row: Row) -> Iterator[LoggedCall | InvalidMessage]:
    """Every model call in it; spans of tools, agents, embeddings and databases are none."""
    for span, events in _spans(row):
        try:
            yield from _call(span, events)
        except InvalidMessage as problem:
            yield problem


def _spans(row: Row) -> Iterator[tuple[Row, list[Row]]]:
    """Spans, each with its events; of log records those of one span together."""
    if "resourceSpans" not in row and "resourceLogs" not in row:
        yield row, _rows(row.get("events"))
    for span in _inside(row, "resourceSpans", "scopeSpans", "spans"):
        yield span, _rows(span.get("events"))
    yield from _calls_in_logs(_inside(row, "resourceLogs", "scopeLogs", "logRecords"))


def _calls_in_logs(logs: Iterable[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """One event tells a whole call; or several do, one a message, that lie in the same span."""
    of_spans: dict[tuple[str, str], list[Row]] = {}
    for log in logs:
        trace, span = str(log.get("traceId") or ""), str(log.get("spanId") or "")
        if _name(log) == DETAILS:
            yield {**log, "spanId": f"{span}/{_time(log)}"}, []
        else:
            of_spans.setdefault((trace, span), []).append(log)
    for (trace, span), told in of_spans.items():
        if trace and span:  # else nobody can say which belong together
            yield {**told[0], "attributes": []}, told
        elif any(ROLE_OF_EVENT.fullmatch(_name(one)) for one in told):
            yield {"loose": True}, []


def _inside(row: Row, outer: str, middle: str, inner: str) -> Iterator[Row]:
    for resource in _rows(row.get(outer)):
        for scope in _rows(resource.get(middle)):
            yield from _rows(scope.get(inner))


def _rows(found: object) -> list[Row]:
    return [one for one in listed(found) if isinstance(one, dict)]


def _call(span: Row, events: list[Row]) -> Iterator[LoggedCall]:
    if span.get("loose"):
        raise InvalidMessage("message events outside of any span: nobody knows what goes together")
    told = _attributes(span)
    for event in events:
        if _name(event) in (DETAILS, "gen_ai.content.prompt", "gen_ai.content.completion"):
            told = {**told, **_attributes(event)}
    asked, answer = _texts(told), _answer(told)
    if not asked:
        asked, answer = _of_events(events, answer)
    if not asked or str(told.get("gen_ai.operation.name", "")) not in OPERATIONS:
        said_so = told.get("gen_ai.operation.name") in OPERATIONS[:4]
        if not asked and (said_so or any(ROLE_OF_EVENT.fullmatch(_name(one)) for one in events)):
            raise InvalidMessage("the span has no prompt: its content was not captured")
        return
    context = table(span.get("context"))
    yield LoggedCall(
        messages=[*_system(told), *asked],
        model=first_of(told.get("gen_ai.request.model"), told.get("gen_ai.response.model")),
        said=None if _failed(span) else answer,
        user=first_of(*(told.get(name) for name in USERS)),
        time=moment(_time(span)),
        source_id=first_of(_id(span, context), told.get("gen_ai.response.id")),
        request={
            "tools": first_of(*(told.get(name) for name in TOOLS)),
            "n": told.get("gen_ai.request.choice.count"),
            "stop": told.get("gen_ai.request.stop_sequences"),
            **{name: told.get(f"gen_ai.request.{name}") for name in SAID_ALIKE},
        },
    )


def _attributes(row: Row) -> dict[str, Any]:
    """As a table: an object, OTLP's list of keys and values, or columns of their own."""
    given = parsed(first_of(row.get("attributes"), row.get("SpanAttributes")))
    if isinstance(given, dict):
        return {str(name): value for name, value in given.items()}
    if isinstance(given, list):
        return {str(one.get("key")): _value(one.get("value")) for one in _rows(given)}
    return {name: value for name, value in row.items() if name.startswith("gen_ai.")}


def _value(given: object) -> Any:
    """OTLP says the type of every value: `{"stringValue": "…"}`."""
    if not isinstance(given, dict) or len(given) != 1:
        return given
    ((kind, value),) = given.items()
    if kind == "intValue":
        return int(value) if str(value).isdigit() else value
    if kind == "arrayValue":
        return [*map(_value, listed(table(value).get("values")))]
    if kind == "kvlistValue":
        pairs = _rows(table(value).get("values"))
        return {str(one.get("key")): _value(one.get("value")) for one in pairs}
    return value if kind.endswith("Value") else given


def _texts(told: Row) -> list[dict[str, Any]]:
    found = first_of(told.get("gen_ai.input.messages"), told.get("gen_ai.prompt"))
    if found is not None:
        return conversation(found)
    numbered = _numbered(told, "prompt")
    return [{"role": one.get("role", "user"), "content": parsed_parts(one)} for one in numbered]


def parsed_parts(message: Row) -> object:
    """The content of a message; several parts are a list in a text of JSON."""
    content = message.get("content")
    found = parsed(content)
    many = isinstance(found, list) and all(isinstance(one, dict) for one in found)
    return found if many and all("type" in one for one in _rows(found)) else content


def _answer(told: Row) -> Said | None:
    found = first_of(told.get("gen_ai.output.messages"), told.get("gen_ai.completion"))
    if found is not None:
        return said(found)
    numbered = _numbered(told, "completion")
    return said({"role": "assistant", **numbered[0]}) if numbered else None


def _numbered(told: Row, kind: str) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for name, value in told.items():
        match = NUMBERED.fullmatch(name)
        if match and match[1] == kind:
            found.setdefault(int(match[2]), {})[match[3]] = value
    return [found[at] for at in sorted(found) if "content" in found[at]]


def _of_events(
    events: Iterable[Row], answer: Said | None
) -> tuple[list[dict[str, Any]], Said | None]:
    """The older convention's events: one a message, and one for each choice."""
    asked: list[dict[str, Any]] = []
    for event in events:
        name = _name(event)
        body = {**_attributes(event), **table(_body(event.get("body")))}
        role = ROLE_OF_EVENT.fullmatch(name)
        if role and first_of(body.get("content"), body.get("message")) is not None:
            content = first_of(body.get("content"), body.get("message"))
            asked += [{"role": body.get("role") or role[1], "content": parsed_parts(
                {"content": content})}]  # fmt: skip
        elif name == "gen_ai.choice" and answer is None:
            inner = parsed(first_of(body.get("message"), body))
            answer = said({"role": "assistant", "finish_reason": body.get("finish_reason"), **inner}
                          if isinstance(inner, dict) else inner)  # fmt: skip
    return asked, answer


def _name(event: Row) -> str:
    told = _attributes(event)
    return str(first_of(event.get("eventName"), event.get("name"), told.get("event.name"), ""))


def _body(given: object) -> object:
    found = parsed(given)
    return _value(found) if isinstance(found, dict) else found


def _system(told: Row) -> list[dict[str, Any]]:
    given = parsed(told.get("gen_ai.system_instructions"))
    if not given:
        return []
    return conversation(
        [{"role": "system", "parts": given if isinstance(given, list) else [given]}]
    )


def _failed(span: Row) -> bool:
    status = table(span.get("status"))
    code = first_of(status.get("code"), status.get("status_code"), span.get("StatusCode"))
    return str(code).upper().removeprefix("STATUS_CODE_") in ("2", "ERROR")


def _time(span: Row) -> object:
    names = ("startTimeUnixNano", "timeUnixNano", "observedTimeUnixNano", "start_time",
             "startTime", "Timestamp")  # fmt: skip
    return first_of(*(span.get(name) for name in names))


def _id(span: Row, context: Row) -> str | None:
    trace = first_of(*(span.get(name) for name in ("traceId", "trace_id", "TraceId")),
                     context.get("trace_id"))  # fmt: skip
    own = first_of(*(span.get(name) for name in ("spanId", "span_id", "SpanId")),
                   context.get("span_id"))  # fmt: skip
    return f"{trace}/{own}" if trace and own else None
