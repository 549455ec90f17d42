"""Invented records in the shapes of other tools' logs: each tells of the same call.

The prompt is `PROMPT`, the answer `delivery`, the app's model `support-large`, the user `anna`, the
moment `WHEN`. Where a shape cannot say one of these, `SILENT` names it.
"""

from datetime import UTC, datetime
from typing import Any

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UNIX = WHEN.timestamp()
NANO = f"{int(UNIX)}000000000"
PROMPT = "where is my parcel"
ANSWER = "delivery"
MODEL = "support-large"
USER = "anna"

SYSTEM = {"role": "system", "content": "Sort."}
ASKED = [SYSTEM, {"role": "user", "content": PROMPT}]
REPLY = {"role": "assistant", "content": ANSWER}
REQUEST: dict[str, Any] = {
    "model": MODEL,
    "messages": ASKED,
    "user": USER,
    "temperature": 0,
    "metadata": {"region": "eu"},
}
COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-7",
    "object": "chat.completion",
    "created": int(UNIX),
    "model": "provider/large-2026",
    "choices": [{"index": 0, "message": REPLY, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12},
}
LITELLM: dict[str, Any] = {
    "id": "chatcmpl-7",
    "trace_id": "t-1",
    "call_type": "acompletion",
    "status": "success",
    "model": "provider-large",
    "model_group": MODEL,
    "startTime": UNIX,
    "endTime": UNIX + 1,
    "messages": ASKED,
    "response": COMPLETION,
    "end_user": USER,
    "model_parameters": {"temperature": 0},
    "metadata": {
        "user_api_key_hash": "88dc28",
        "user_api_key_user_email": "ada@example.org",
        "requester_metadata": {"region": "eu"},
    },
    "request_tags": ["a"],
    "cache_hit": None,
}
LANGFUSE: dict[str, Any] = {
    "id": "obs-1",
    "traceId": "trace-1",
    "type": "GENERATION",
    "name": "classify",
    "startTime": "2026-01-02T03:04:05.000Z",
    "endTime": "2026-01-02T03:04:06.000Z",
    "model": MODEL,
    "modelParameters": {"temperature": 0},
    "input": ASKED,
    "output": REPLY,
    "metadata": {"region": "eu"},
    "level": "DEFAULT",
    "userId": USER,
}
LANGFUSE_BUCKET: dict[str, Any] = {
    "id": "obs-1",
    "trace_id": "trace-1",
    "type": "GENERATION",
    "start_time": "2026-01-02 03:04:05.000000",
    "provided_model_name": MODEL,
    "input": '{"messages":[{"role":"system","content":"Sort."},'
    '{"role":"user","content":"where is my parcel"}]}',
    "output": '"delivery"'[1:-1],
    "metadata": {"region": "eu"},
    "user_id": USER,
}
HELICONE: dict[str, Any] = {
    "request_id": "req-1",
    "request_created_at": "2026-01-02 03:04:05",
    "request_path": "https://example.org/v1/chat/completions",
    "request_body": {"model": MODEL, "messages": ASKED},
    "request_user_id": USER,
    "request_properties": {"region": "eu"},
    "request_model": MODEL,
    "response_id": "res-1",
    "response_status": 200,
    "response_body": COMPLETION,
    "provider": "OPENAI",
}
NVIDIA: dict[str, Any] = {
    "timestamp": int(UNIX),
    "client_id": "desk-app",
    "workload_id": "sort",
    "request": REQUEST,
    "response": COMPLETION,
}
BATCH_INPUT: dict[str, Any] = {
    "custom_id": "request-1",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": REQUEST,
}
BATCH_OUTPUT: dict[str, Any] = {
    "id": "batch_req_1",
    "custom_id": "request-1",
    "response": {"status_code": 200, "request_id": "r-1", "body": COMPLETION},
    "error": None,
}


def otlp_value(value: Any) -> dict[str, Any]:
    """A value as OTLP writes it in JSON."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, list):
        return {"arrayValue": {"values": [otlp_value(one) for one in value]}}
    if isinstance(value, dict):
        listed = [{"key": name, "value": otlp_value(one)} for name, one in value.items()]
        return {"kvlistValue": {"values": listed}}
    return {"stringValue": value}


def otlp_attributes(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": otlp_value(value)} for name, value in told.items()]


def otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    resource = {"attributes": otlp_attributes({"service.name": "desk"})}
    scope = {"name": "opentelemetry.instrumentation.openai_v2"}
    return {
        "resourceSpans": [
            {"resource": resource, "scopeSpans": [{"scope": scope, "spans": [*spans]}]}
        ]
    }


def span(told: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": "eee19b7ec3c1b174",
        "name": "chat support-large",
        "kind": 3,
        "startTimeUnixNano": NANO,
        "attributes": otlp_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": MODEL,
                "gen_ai.response.model": "large-2026",
                "gen_ai.response.id": "chatcmpl-7",
                "gen_ai.usage.input_tokens": 11,
                "enduser.id": USER,
                **told,
            }
        ),
        **more,
    }


INPUT_MESSAGES = (
    '[{"role":"system","parts":[{"type":"text","content":"Sort."}]},'
    '{"role":"user","parts":[{"type":"text","content":"where is my parcel"}]}]'
)
OUTPUT_MESSAGES = (
    '[{"role":"assistant","parts":[{"type":"reasoning","content":"a parcel"},'
    '{"type":"text","content":"delivery"}],"finish_reason":"stop"}]'
)
NEWER = {"gen_ai.input.messages": INPUT_MESSAGES, "gen_ai.output.messages": OUTPUT_MESSAGES}
NUMBERED = {
    "gen_ai.prompt.0.role": "system",
    "gen_ai.prompt.0.content": "Sort.",
    "gen_ai.prompt.1.role": "user",
    "gen_ai.prompt.1.content": PROMPT,
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.content": ANSWER,
    "gen_ai.completion.0.finish_reason": "stop",
}


def event(name: str, told: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "timeUnixNano": NANO, "attributes": otlp_attributes(told)}


def log_record(name: str, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "timeUnixNano": NANO,
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": "eee19b7ec3c1b174",
        "eventName": name,
        "attributes": otlp_attributes({"gen_ai.system": "openai"}),
        "body": otlp_value(body),
    }


MESSAGE_EVENTS = [
    event("gen_ai.system.message", {"content": "Sort."}),
    event("gen_ai.user.message", {"content": PROMPT, "role": "user"}),
    event("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": ANSWER}),
]
CONTENT_EVENTS = [
    event("gen_ai.content.prompt", {"gen_ai.prompt": '[{"role":"system","content":"Sort."},'
          '{"role":"user","content":"where is my parcel"}]'}),
    event("gen_ai.content.completion",
          {"gen_ai.completion": '[{"role":"assistant","content":"delivery"}]'}),
]  # fmt: skip
LOG_EVENTS = [
    log_record("gen_ai.system.message", {"content": "Sort."}),
    log_record("gen_ai.user.message", {"content": PROMPT}),
    log_record("gen_ai.choice",
               {"index": 0, "finish_reason": "stop", "message": {"content": ANSWER}}),
]  # fmt: skip
CONSOLE_SPAN: dict[str, Any] = {
    "name": "openai.chat",
    "context": {"trace_id": "0x5b8e", "span_id": "0xeee1", "trace_state": "[]"},
    "kind": "SpanKind.CLIENT",
    "start_time": "2026-01-02T03:04:05.000000Z",
    "status": {"status_code": "UNSET"},
    "attributes": {"gen_ai.request.model": MODEL, "enduser.id": USER, **NUMBERED},
    "events": [],
}
RESPONSES: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": int(UNIX),
    "model": MODEL,
    "status": "completed",
    "instructions": "Sort.",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": PROMPT}]}],
    "output": [
        {"type": "reasoning", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": ANSWER}],
        },
    ],
    "user": USER,
    "metadata": {"region": "eu"},
}

# name -> the shape that it is taken for, the record, what it cannot say
SAMPLES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "LiteLLM": ("LiteLLM", LITELLM, set()),
    "LiteLLM, in its callback's arguments": (
        "LiteLLM", {"model": "x", "standard_logging_object": LITELLM}, set()),
    "LiteLLM, spend logs": ("LiteLLM", {
        "request_id": "chatcmpl-7", "call_type": "completion", "model": "provider/large",
        "model_group": MODEL, "startTime": "2026-01-02 03:04:05+00:00", "end_user": USER,
        "messages": '[{"role":"system","content":"Sort."},{"role":"user","content":'
                    '"where is my parcel"}]',
        "response": '{"choices":[{"message":{"role":"assistant","content":"delivery"}}]}',
        "metadata": '{"requester_metadata":{"region":"eu"}}'}, set()),
    "Langfuse": ("Langfuse", LANGFUSE, set()),
    "Langfuse, bucket": ("Langfuse", LANGFUSE_BUCKET, set()),
    "Langfuse, a trace with its observations": ("Langfuse", {
        "id": "trace-1", "name": "desk", "input": "x", "output": "y", "userId": USER,
        "timestamp": "2026-01-02T03:04:00Z", "metadata": {"region": "eu"},
        "observations": [{**LANGFUSE, "userId": None}, {"id": "s", "type": "SPAN"}]}, set()),
    "Helicone": ("Helicone", HELICONE, set()),
    "NVIDIA": ("NVIDIA flywheel document", NVIDIA, set()),
    "pair": ("OpenAI request and response",
             {"request": REQUEST, "response": COMPLETION}, set()),
    "stored completion": ("OpenAI stored completion", {
        **COMPLETION, "model": MODEL, "messages": ASKED, "user": USER,
        "metadata": {"region": "eu"}}, set()),
    "stored response": ("OpenAI stored completion", RESPONSES, set()),
    "batch, alone": ("OpenAI batch, input", BATCH_INPUT, {"answer", "time", "id"}),
    "fine-tuning": ("OpenAI fine-tuning", {"messages": [*ASKED, REPLY]},
                    {"model", "user", "time", "id", "metadata"}),
    "fine-tuning, preferences": ("OpenAI fine-tuning", {
        "input": {"messages": ASKED}, "preferred_output": [REPLY],
        "non_preferred_output": [{"role": "assistant", "content": "refund"}]},
        {"model", "user", "time", "id", "metadata"}),
    "fine-tuning, prompts and completions": ("OpenAI fine-tuning", {
        "prompt": PROMPT, "completion": ANSWER},
        {"model", "user", "time", "id", "metadata", "system"}),
    "OTLP, newer attributes": ("OpenTelemetry", otlp(span(NEWER)), {"metadata"}),
    "OTLP, newer attributes in their own structure": ("OpenTelemetry", otlp(span({
        "gen_ai.system_instructions": [{"type": "text", "content": "Sort."}],
        "gen_ai.input.messages": [
            {"role": "user", "parts": [{"type": "text", "content": PROMPT}]}],
        "gen_ai.output.messages": [
            {"role": "assistant", "parts": [{"type": "text", "content": ANSWER}]}]})),
        {"metadata"}),
    "OTLP, newer attributes on an event": ("OpenTelemetry", otlp(span({}, events=[
        event("gen_ai.client.inference.operation.details", NEWER)])), {"metadata"}),
    "OTLP, numbered attributes": ("OpenTelemetry", otlp(span(NUMBERED)), {"metadata"}),
    "OTLP, one attribute each": ("OpenTelemetry", otlp(span({
        "gen_ai.prompt": '[{"role":"system","content":"Sort."},'
                         '{"role":"user","content":"where is my parcel"}]',
        "gen_ai.completion": ANSWER})), {"metadata"}),
    "OTLP, message events": ("OpenTelemetry", otlp(span({}, events=MESSAGE_EVENTS)),
                             {"metadata"}),
    "OTLP, content events": ("OpenTelemetry", otlp(span({}, events=CONTENT_EVENTS)),
                             {"metadata"}),
    "OTLP, log events": ("OpenTelemetry", {
        "resourceLogs": [{"scopeLogs": [{"logRecords": LOG_EVENTS}]}]},
        {"metadata", "model", "user"}),
    "a span as the console exporter prints it": ("OpenTelemetry", CONSOLE_SPAN, {"metadata"}),
    "columns": ("columns", {"messages": ASKED, "model": MODEL, "answer": ANSWER, "user": USER,
                "time": "2026-01-02T03:04:05Z", "id": "own-1", "metadata": {"region": "eu"}},
                set()),
    "columns, with a text": ("columns", {
        "text": PROMPT, "system": "Sort.", "model": MODEL, "answer": ANSWER, "user": USER,
        "time": UNIX * 1000, "id": 17, "metadata": {"region": "eu"}}, set()),
    "our own record": ("our own record", {
        "schema": "flywheel.prompt/1", "event_id": "e-1", "model": MODEL, "messages": ASKED,
        "occurred_at": "2026-01-02T03:04:05Z", "answer": ANSWER, "user": USER,
        "attributes": {"region": "eu"}}, set()),
    "a page of an API": ("Langfuse", {"data": [LANGFUSE], "meta": {"page": 1}}, set()),
    "Elasticsearch's dump": ("NVIDIA flywheel document", {
        "_index": "flywheel", "_id": "1", "_source": NVIDIA}, set()),
}  # fmt: skip
