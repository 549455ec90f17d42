"""Every shape of a log says the same: who asked what and when, and what the app was answered."""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import log_samples as samples
import pytest
from log_samples import ANSWER, MODEL, PROMPT, SAMPLES, USER, WHEN

from pipelines.errors import InvalidMessage, SettingsError
from pipelines.records.common import user_key
from pipelines.types import PromptEvent, Task
from service.care.import_log import ImportPolicy, Understood, understanding
from service.care.logs.reading import read_logs
from service.care.logs.shapes import SHAPES

TASK = Task(name="support", models=(MODEL,), labels=("refund", ANSWER))
POLICY = ImportPolicy(model=MODEL, tasks={"support": TASK}, user_salt=b"salt")
STRANGE: tuple[Any, ...] = (
    None, "", 0, -1.5, True, 10**30, [], {}, [None], ["x"], {"id": 1}, [[]], "[", '{"a": 1}',
    "nul \0", "half \ud83d", "2026-99-99", float("nan"), 10**400,
    [{"role": "user"}], {"role": "x", "content": 5},
)  # fmt: skip


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def understood(
    *paths: Path, policy: ImportPolicy = POLICY
) -> tuple[list[tuple[str, Understood]], list[str]]:
    """Calls with the shape each was taken for, and the reasons why others could not be used."""
    understand, calls, problems = understanding(policy), [], []
    for found in read_logs(paths, policy.columns):
        if found.call is None:
            continue
        try:
            calls.append((found.shape, understand(found)))
        except InvalidMessage as problem:
            problems.append(f"{found.line}: {problem}")
    return calls, problems


def only(*paths: Path, policy: ImportPolicy = POLICY) -> PromptEvent:
    ((_, one),), problems = understood(*paths, policy=policy)
    assert problems == []
    return one.event


def assert_the_call(event: PromptEvent, silent: set[str]) -> None:
    said = [(message.role, message.content) for message in event.messages]
    system = [] if "system" in silent else [("system", "Sort.")]
    assert said == [*system, ("user", PROMPT)]
    assert event.answer == (None if "answer" in silent else ANSWER)
    assert event.task == "support"
    assert event.teacher_answer is None
    assert event.user_key == (None if "user" in silent else user_key(USER, b"salt"))
    if "time" not in silent:
        assert event.occurred_at == WHEN
    assert event.event_id.startswith("import-")
    if "metadata" not in silent:
        assert event.attributes["region"] == "eu"
    assert not any("user_api_key" in name for name in event.attributes)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_shape_is_told_apart_and_says_all_that_it_holds(tmp_path: Path, name: str) -> None:
    shape, row, silent = SAMPLES[name]
    ((taken_for, one),), problems = understood(written(tmp_path / "log.jsonl", row))
    assert problems == []
    assert taken_for == shape
    assert_the_call(one.event, silent)


@pytest.mark.parametrize("name", SAMPLES)
def test_calls_that_differ_in_their_logs_id_alone_are_two(tmp_path: Path, name: str) -> None:
    """And one that stands in the log twice with all the same is two as well."""
    _, row, _ = SAMPLES[name]
    text = json.dumps(row)
    for given in ("chatcmpl-7", "obs-1", "req-1", "resp_1", "own-1", "e-1", "eee19b7ec3c1b174"):
        text = text.replace(given, "other")
    other = {**json.loads(text), **({"id": 18} if row.get("id") == 17 else {})}
    calls, _ = understood(written(tmp_path / "log.jsonl", row, other, row))
    ids = [one.event.event_id for _, one in calls]
    assert len(set(ids)) == 3
    again, _ = understood(written(tmp_path / "again.jsonl", row))
    assert again[0][1].event.event_id == ids[0]


def test_every_shape_of_the_table_has_a_sample() -> None:
    in_two_files = {"OpenAI batch, output"}
    assert {shape.name for shape in SHAPES} - in_two_files == {one[0] for one in SAMPLES.values()}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("name", SAMPLES)
def test_whatever_stands_anywhere_in_a_record_is_read_or_refused(
    tmp_path: Path, name: str, ending: str
) -> None:
    """No place and no value ends the import, and no reason quotes the record."""
    _, row, _ = SAMPLES[name]
    changed = [json.dumps(put(row, place, one)) for place in places(row) for one in STRANGE]
    path = tmp_path / f"log.{ending}"
    path.write_text("\n".join(changed) if ending == "jsonl" else f"[{','.join(changed)}]")
    calls, problems = understood(path)
    assert calls
    assert not [one for one in problems if PROMPT in one or USER in one or "\ud83d" in one]


@pytest.mark.parametrize("name", ["input", "data", "_source", "messages", "message"])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_what_is_nested_without_end_is_read_or_refused(
    tmp_path: Path, name: str, ending: str
) -> None:
    for depth in (50, 900, 50_000):
        deep = f'{{"{name}":' * depth + '"x"' + "}" * depth
        for around in ("%s", '{"input": %s, "output": "x", "traceId": "t"}', '{"text": %s}'):
            path = tmp_path / f"log.{ending}"
            path.write_text(around % deep)
            assert any(understood(path))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()  # fmt: skip
    for name, inner in items:
        yield from places(inner, (*path, name))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy: Any = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def test_bodies_may_lie_inside_a_request_and_its_response(tmp_path: Path) -> None:
    row = {"request": {"url": "/v1/chat/completions", "body": samples.REQUEST},
           "response": {"status": 200, "body": json.dumps(samples.COMPLETION)}}  # fmt: skip
    assert_the_call(only(written(tmp_path / "x.jsonl", row)), set())


ODD = [
    pytest.param({"status": "failure", "response": {"error": {"message": "x"}}}, id="failed"),
    pytest.param({"response": {}}, id="empty"),
    pytest.param({"response": None}, id="none"),
    pytest.param({"response": {"choices": []}}, id="no choice"),
]


@pytest.mark.parametrize("changed", ODD)
def test_a_call_that_failed_is_a_prompt_without_an_answer(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    event = only(written(tmp_path / "log.jsonl", {**samples.LITELLM, **changed}))
    assert (event.messages[-1].content, event.answer) == (PROMPT, None)


OUTPUTS = [
    pytest.param(ANSWER, id="text"),
    pytest.param({"content": ANSWER}, id="content alone"),
    pytest.param([samples.REPLY], id="list"),
    pytest.param(samples.COMPLETION, id="completion"),
    pytest.param(json.dumps(samples.REPLY), id="message in a text"),
    pytest.param(samples.RESPONSES, id="response"),
    pytest.param(samples.RESPONSES["output"], id="what a response put out"),
    pytest.param(
        {"role": "assistant", "content": [{"type": "text", "text": ANSWER}], "tool_calls": None},
        id="parts",
    ),
    pytest.param(
        {"type": "message", "role": "assistant", "stop_reason": "end_turn",
         "content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": ANSWER}]},
        id="thoughts",
    ),
]  # fmt: skip


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_answer_is_found_in_whatever_the_tool_has_put_it(tmp_path: Path, output: Any) -> None:
    assert only(written(tmp_path / "x.jsonl", {**samples.LANGFUSE, "output": output})).answer == (
        ANSWER
    )


@pytest.mark.parametrize("output", [{"label": "delivery"}, ["delivery"], 3, True])
def test_an_answer_that_is_json_stays_json(tmp_path: Path, output: Any) -> None:
    event = only(written(tmp_path / "x.jsonl", {**samples.LANGFUSE, "output": output}))
    assert event.answer is not None
    assert json.loads(event.answer) == output


def test_a_text_that_looks_like_json_is_still_the_prompt(tmp_path: Path) -> None:
    for text in ('{"order": 7}', "[sic] where is it", "{", '["a"', "{}"):
        event = only(written(tmp_path / "x.jsonl", {"text": text}))
        assert event.messages[-1].content == text


def test_spans_that_are_no_model_calls_are_no_records(tmp_path: Path) -> None:
    http = {"name": "GET /", "attributes": samples.otlp_attributes({"http.method": "GET"})}
    tool = samples.span({"gen_ai.operation.name": "execute_tool", **samples.NEWER})
    embedding = samples.span({"gen_ai.operation.name": "embeddings"})
    path = written(
        tmp_path / "spans.jsonl",
        samples.otlp(http, tool, embedding, samples.span(samples.NEWER)),
        samples.otlp(http),
        {**samples.LANGFUSE, "type": "SPAN"},
        {**samples.LITELLM, "call_type": "aembedding"},
    )
    calls, problems = understood(path)
    assert [shape for shape, _ in calls] == ["OpenTelemetry"]
    assert problems == []


def test_an_instruction_beside_the_messages_is_part_of_the_prompt(tmp_path: Path) -> None:
    """LiteLLM's log of a call to `/v1/responses`."""
    row = {**samples.LITELLM, "call_type": "aresponses", "messages": samples.ASKED[1:],
           "model_parameters": {"instructions": "Sort."},
           "response": samples.RESPONSES}  # fmt: skip
    event = only(written(tmp_path / "x.jsonl", row))
    assert_the_call(event, set())


def test_message_events_are_told_apart_by_their_spans(tmp_path: Path) -> None:
    def moved(record: dict[str, Any], span: str | None) -> dict[str, Any]:
        return {**record, "spanId": span}

    details = {**samples.log_record("gen_ai.client.inference.operation.details", {}),
               "attributes": samples.otlp_attributes(samples.NEWER)}  # fmt: skip
    asked, answered = samples.LOG_EVENTS[1], samples.LOG_EVENTS[2]
    logs = [moved(asked, "a"), moved(asked, "b"), moved(answered, "b"), details,
            moved(answered, "a"), {**details, "timeUnixNano": "1767323046000000000"},
            moved(asked, None)]  # fmt: skip
    row = {"resourceLogs": [{"scopeLogs": [{"logRecords": logs}]}]}
    calls, problems = understood(written(tmp_path / "x.jsonl", row))
    assert [one.event.answer for _, one in calls] == [ANSWER] * 4
    assert len({one.event.event_id for _, one in calls}) == 4
    assert problems == ["1: message events outside of any span: nobody knows what goes together"]


def test_a_span_without_its_content_says_so(tmp_path: Path) -> None:
    empty = samples.log_record("gen_ai.user.message", {})
    logs = {"resourceLogs": [{"scopeLogs": [{"logRecords": [empty]}]}]}
    path = written(tmp_path / "x.jsonl", samples.otlp(samples.span({})), logs)
    calls, problems = understood(path)
    assert calls == []
    reason = "the span has no prompt: its content was not captured"
    assert problems == [f"1: {reason}", f"2: {reason}"]


def test_texts_that_a_tool_left_out_are_no_prompt(tmp_path: Path) -> None:
    redacted = [{"role": "user", "content": "redacted-by-litellm"}]
    path = written(
        tmp_path / "x.jsonl",
        {**samples.LITELLM, "messages": redacted},
        {**samples.HELICONE, "request_body": None},
        samples.COMPLETION,
    )
    calls, problems = understood(path)
    assert calls == []
    assert [problem.partition(": ")[2] for problem in problems] == [
        "the tool that wrote it left the texts out",
        "the export has no bodies (Helicone: --include-body)",
        "a completion without its messages: what was asked is not in it",
    ]


def test_what_no_student_may_answer_is_kept_with_the_reason(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    blob = '[{"role":"user","parts":[{"type":"blob","content":"aGk=","mime_type":"image/png"}]}]'
    path = written(
        tmp_path / "x.jsonl",
        {**samples.LITELLM, "model_parameters": {"tools": tools}},
        {**samples.NVIDIA, "request": {**samples.REQUEST, "n": 2}},
        {**samples.LANGFUSE, "input": {"messages": samples.ASKED, "tools": tools}},
        {**samples.HELICONE, "request_body": {"model": MODEL, "messages": image}},
        samples.otlp(samples.span({"gen_ai.input.messages": blob})),
        {"messages": [*samples.ASKED, samples.REPLY], "tools": tools},
    )
    calls, problems = understood(path)
    assert problems == []
    assert [one.event.task for _, one in calls] == ["support"] * 6
    assert [one.event.past for _, one in calls] == [
        "tools", "choices", "tools", "content", "content", "tools",
    ]  # fmt: skip
    assert b"aGk=" not in calls[4][1].value
    assert b"sha256" in calls[4][1].value


def test_what_decides_about_an_answer_is_kept_for_the_teacher(tmp_path: Path) -> None:
    asked = {"response_format": {"type": "json_object"}, "temperature": 0, "stop": ["\n"]}
    path = written(
        tmp_path / "x.jsonl",
        {**samples.LITELLM, "model_parameters": {**asked, "max_tokens": 5, "user": "anna"}},
        {**samples.NVIDIA, "request": {**samples.REQUEST, **asked, "max_completion_tokens": 5}},
        {**samples.BATCH_INPUT, "body": {**samples.REQUEST, **asked, "max_tokens": 5}},
        {**samples.LANGFUSE, "modelParameters": {**asked, "temperature": "0", "max_tokens": "5",
                                                 "seed": "none"}},
        samples.otlp(samples.span({**samples.NEWER, "gen_ai.request.temperature": 0,
                     "gen_ai.request.max_tokens": 5, "gen_ai.request.stop_sequences": ["\n"]})),
    )  # fmt: skip
    calls, problems = understood(path)
    assert problems == []
    *others, otel = [one.event.asked for _, one in calls]
    assert others == [{**asked, "max_tokens": 5}] * 4
    assert otel == {"temperature": 0, "stop": ["\n"], "max_tokens": 5}


def test_a_tools_turn_keeps_its_ids(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "customer 7", "tool_call_id": "c1"},
        {"role": "user", "content": PROMPT},
    ]
    event = only(written(tmp_path / "x.jsonl", {**samples.LITELLM, "messages": turns}))
    assert event.past == ""
    assert event.messages[1].tool_calls == [call]
    assert event.messages[2].tool_call_id == "c1"


def test_batches_are_joined_whatever_the_order_of_their_files(tmp_path: Path) -> None:
    asked = written(tmp_path / "in.jsonl", *({**samples.BATCH_INPUT, "custom_id": name}
                                             for name in "abcd"))  # fmt: skip
    failed = {"custom_id": "c", "response": None, "error": {"code": "expired"}}
    refused = {"custom_id": "d", "response": {"status_code": 400, "body": {}}, "error": None}
    answers = written(
        tmp_path / "out.jsonl",
        {**samples.BATCH_OUTPUT, "custom_id": "b"},
        failed,
        {**samples.BATCH_OUTPUT, "custom_id": "a"},
        refused,
        {**samples.BATCH_OUTPUT, "custom_id": "stranger"},
    )
    for paths in ((asked, answers), (answers, asked)):
        calls, problems = understood(*paths)
        assert [one.event.answer for _, one in calls] == [ANSWER, ANSWER, None, None]
        assert_the_call(calls[0][1].event, set())
        assert problems == ["5: its request is in none of the files"]


def test_a_batchs_answer_alone_or_twice_is_not_guessed(tmp_path: Path) -> None:
    asked = written(tmp_path / "in.jsonl", samples.BATCH_INPUT, samples.BATCH_INPUT)
    once = written(tmp_path / "once.jsonl", samples.BATCH_OUTPUT)
    twice = written(tmp_path / "twice.jsonl", samples.BATCH_OUTPUT, samples.BATCH_OUTPUT)
    calls, problems = understood(once)
    assert calls == []
    assert "name the batch's input file" in problems[0]
    calls, problems = understood(asked, once)
    assert [one.event.answer for _, one in calls] == [ANSWER]
    assert problems == ["2: an earlier request has the same custom_id"]
    calls, problems = understood(asked, twice)
    assert [one.event.answer for _, one in calls] == [None, None]
    assert len(problems) == 2


# Files


def as_csv(rows: list[Mapping[str, Any]], separator: str) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, [*rows[0]], delimiter=separator)
    table.writeheader()
    for row in rows:
        table.writerow({k: json.dumps(v) if isinstance(v, (dict, list)) else v
                        for k, v in row.items()})  # fmt: skip
    return text.getvalue()


JSON_LINES = json.dumps(samples.LANGFUSE) + "\n" + json.dumps(samples.LANGFUSE) + "\n"
INDENTED = json.dumps(samples.LANGFUSE, indent=2) * 2
FILES: dict[str, bytes] = {
    "log.jsonl": JSON_LINES.encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + JSON_LINES.encode(),
    "crlf.jsonl": JSON_LINES.replace("\n", "\r\n").encode(),
    "log.jsonl.gz": gzip.compress(JSON_LINES.encode()),
    "packed.log": gzip.compress(b"\xef\xbb\xbf" + JSON_LINES.encode()),
    "utf16.jsonl": JSON_LINES.encode("utf-16"),
    "utf16be.json": b"\xfe\xff" + JSON_LINES.encode("utf-16-be"),
    "array.json": json.dumps([samples.LANGFUSE] * 2).encode(),
    "array-indented.json": json.dumps([samples.LANGFUSE] * 2, indent=1).encode(),
    "array.jsonl": json.dumps([samples.LANGFUSE] * 2).encode(),
    "array.json.gz": gzip.compress(json.dumps([samples.LANGFUSE] * 2).encode("utf-16")),
    "one-after-the-other.json": INDENTED.encode(),
    "page.json": json.dumps({"data": [samples.LANGFUSE] * 2, "meta": {}}, indent=2).encode(),
    "comma.csv": as_csv([samples.LANGFUSE] * 2, ",").encode(),
    "semicolon.csv": as_csv([samples.LANGFUSE] * 2, ";").encode("utf-8-sig"),
    "excel.csv": ("sep=;\r\n" + as_csv([samples.LANGFUSE] * 2, ";")).encode("utf-16"),
    "tab.tsv": as_csv([samples.LANGFUSE] * 2, "\t").encode(),
    "no-ending": as_csv([samples.LANGFUSE] * 2, "|").encode(),
    "log.csv.gz": gzip.compress(as_csv([samples.LANGFUSE] * 2, ";").encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_by_what_it_is_not_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    calls, problems = understood(tmp_path / name)
    assert problems == []
    assert len(calls) == 2
    for _, one in calls:
        assert_the_call(one.event, set())


def test_a_broken_line_of_json_spoils_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text('{"text": "a"}\n{"text": \n{"text": NaN}\n{"text": "b"}\n[]\n')
    calls, problems = understood(path)
    assert [one.event.messages[0].content for _, one in calls] == ["a", "b"]
    assert [problem.partition(":")[0] for problem in problems] == ["2", "3", "5"]


def test_what_follows_a_break_in_an_array_or_an_archive_is_said_to_be_missing(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.json").write_text(
        '[{"text": "a"}, {"text": "b"}, {"text": oops}, {"text": "c"}]'
    )
    calls, problems = understood(tmp_path / "a.json")
    assert [one.event.messages[0].content for _, one in calls] == ["a", "b"]
    assert problems == ["3: not JSON from here on; the rest was not read"]
    (tmp_path / "cut.json").write_text('[{"text": "a"}, {"text": "b')
    assert understood(tmp_path / "cut.json")[1] == [
        "2: not JSON from here on; the rest was not read"
    ]
    whole = gzip.compress(b"".join(b'{"text": "prompt %d"}\n' % i for i in range(50_000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    calls, problems = understood(tmp_path / "cut.jsonl.gz")
    assert len(calls) > 1000
    assert "cannot be read any further" in problems[-1]


def test_a_large_array_is_never_held_whole(tmp_path: Path) -> None:
    """Values longer than a chunk, and many chunks: each comes as soon as it is there."""
    long = "x" * 3_000_000
    with (tmp_path / "a.json").open("w") as file:
        file.write("[\n")
        file.write(",\n".join(json.dumps({"text": f"{i} {long}"}) for i in range(8)))
        file.write("\n]")
    seen = [
        int(str(found.call.messages[0]["content"]).partition(" ")[0])
        for found in read_logs([tmp_path / "a.json"], {})
        if found.call and not isinstance(found.call, InvalidMessage)
    ]
    assert seen == [*range(8)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("log.csv", b"question,reply\nwhere,delivery\n", "--map text=COLUMN"),
        ("book.xlsx", b"PK\x03\x04 sheets", "save it as CSV"),
        ("log.parquet", b"PAR1 not really", "not a Parquet file"),
        ("torn.gz", b"\x1f\x8b\x08", "cannot be read"),
    ],
)
def test_what_can_be_no_log_is_said_before_anything_is_sent(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=reason):
        read_logs([tmp_path / name], {})
