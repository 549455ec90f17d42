"""An imported log arrives on the topic as ingest expects it, or is counted with its reason."""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from pipelines.decode import decode
from pipelines.errors import ExitCode, SettingsError
from pipelines.records.common import DecodePolicy
from pipelines.records.native import SCHEMA
from pipelines.types import Message, PromptEvent, SourceOffset, Task
from service.care.import_log import ImportCounts, ImportPolicy, import_logs
from service.terminal import import_lines
from service.topics.embedded import EmbeddedTopicReader, EmbeddedTopicWriter

KEY = b"importer's key"
DESK = Task(name="support", models=("desk",), labels=("refund", "delivery"))
SIGNING = ImportPolicy(model="support-large", producer="importer", key=KEY, teacher_model="large-1")
RULES = DecodePolicy(
    claims={"support-large": "support"}, producer_keys={"importer": KEY}, user_salt=b"salt"
)


def imported(
    path: Path, policy: ImportPolicy | None = None, **more: Any
) -> tuple[ImportCounts, Sequence[PromptEvent]]:
    """Import the file, then read the topic as the learner does."""
    topic = path.parent / "topic.sqlite"
    with closing(EmbeddedTopicWriter(topic)) as writer:
        counts = import_logs([path], writer, policy=policy, **more)
    with closing(EmbeddedTopicReader(topic)) as reader:
        reader.seek({})
        events = []
        while records := reader.poll(max_records=1000, timeout_seconds=0.05).records:
            events += [
                decode(r.value, r.headers, SourceOffset("t", 0, r.offset), r.timestamp_ms, RULES)
                for r in records
            ]
    assert counts.lines == counts.sent + counts.rejected
    return counts, events


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_bytes(
        b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    )
    return path


def test_json_lines_of_all_three_shapes_arrive(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "log.jsonl",
        {
            "schema": SCHEMA,
            "event_id": "e-1",
            "model": "support-large",
            "messages": [{"role": "user", "content": "native"}],
        },
        {
            "request": {
                "model": "support-large",
                "messages": [{"role": "user", "content": "pair"}],
            },
            "response": {"id": "c-1", "choices": [{"message": {"content": "ok"}}]},
        },
        {"text": "columns", "user": 7, "time": "2026-01-02T03:04:05+01:00", "answer": "ok"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "list"}]},
    )
    counts, events = imported(path, ImportPolicy(model="support-large"))
    assert (counts.sent, counts.rejected) == (4, 0)
    assert [e.messages[-1].content for e in events] == ["native", "pair", "columns", "list"]
    assert {e.task for e in events} == {"support"}
    assert all(e.event_id.startswith("import-") for e in events), "ours, whatever theirs are"
    assert events[2].occurred_at == datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)
    assert events[2].user_key is not None


def test_csv_columns_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "\ufeffquery,intent,who,at\n"
        '"Where is my ""card""?\nplease",card_arrival,u1,1767323045\n'
        "Lost it,card_lost,,1767323045000\n",
        encoding="utf-8",
    )
    columns = {"text": "query", "label": "intent", "user": "who", "time": "at"}
    policy = ImportPolicy(
        model="support-large", columns=columns, producer="importer", key=KEY, teacher_model="m"
    )
    counts, events = imported(path, policy)
    assert counts.rejects == []
    assert [e.messages for e in events] == [
        (Message("user", 'Where is my "card"?\nplease'),),
        (Message("user", "Lost it"),),
    ]
    assert [e.teacher_answer for e in events] == ["card_arrival", "card_lost"]
    assert {e.teacher_model for e in events} == {"m"}
    assert [e.user_key is None for e in events] == [False, True]
    assert {e.occurred_at for e in events} == {datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}


def test_parquet_arrives_with_its_times_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    with duckdb.connect(":memory:") as connection:
        connection.execute(
            f"""COPY (
                SELECT 'a "prompt"' AS text, TIMESTAMP '2026-01-02 03:04:05' AS time,
                       NULL AS messages, 1 AS label
                UNION ALL
                SELECT NULL, TIMESTAMP '2026-01-02 03:04:06',
                       [{{'role': 'user', 'content': 'listed'}}], 2
            ) TO '{path}' (FORMAT parquet)"""
        )
    counts, events = imported(path, SIGNING)
    assert counts.rejects == []
    assert [e.messages[0].content for e in events] == ['a "prompt"', "listed"]
    assert [e.occurred_at.second for e in events] == [5, 6]
    assert [e.teacher_answer for e in events] == ["1", "2"]


def test_parquet_times_with_a_zone_are_utc(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    with duckdb.connect(":memory:") as connection:
        connection.execute(
            "COPY (SELECT 'x' AS text, TIMESTAMPTZ '2026-01-02 03:04:05.5+02' AS time) "
            f"TO '{path}' (FORMAT parquet)"
        )
    _, (event,) = imported(path, SIGNING)
    assert event.occurred_at == datetime(2026, 1, 2, 1, 4, 5, 500_000, tzinfo=UTC)


def test_lines_that_cannot_be_used_are_counted_with_their_number_and_reason(
    tmp_path: Path,
) -> None:
    path = write_lines(
        tmp_path / "log.jsonl",
        {"text": "good"},
        b"not json",
        b"",
        [1, 2],
        {"answer": "no prompt"},
        {"text": "bad time", "time": "yesterday"},
        {"text": ["not", "text"]},
        {"schema": SCHEMA, "model": "m"},
        b'{"text": "\xff"}',
        {"text": "nul \0"},
        {"text": "x" * 300_000},
        {"messages": [{"role": "root", "content": "x"}]},
        {"text": "labelled", "label": "x"},
        {"text": "good too"},
    )
    counts, events = imported(path, ImportPolicy(model="support-large"))
    assert [e.messages[0].content for e in events] == ["good", "bad time", "nul ", "good too"]
    assert counts.undated == 4, "a time that is none costs only itself"
    assert [reject.line for reject in counts.rejects] == [2, 4, 5, 7, 8, 9, 11, 12, 13]
    reasons = {reject.line: reject.reason for reject in counts.rejects}
    assert reasons[2] == "not a line of JSON"
    assert "text" in reasons[5]
    assert "messages" in reasons[8]
    assert "262144" in reasons[11]
    assert "signed" in reasons[13]


def test_a_byte_order_mark_costs_no_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", b'\xef\xbb\xbf{"text": "first"}', {"text": "second"})
    counts, events = imported(path, ImportPolicy(model="support-large"))
    assert [e.messages[0].content for e in events] == ["first", "second"]
    assert counts.rejected == 0


def test_what_was_answered_is_no_part_of_what_is_asked(tmp_path: Path) -> None:
    """Files for fine-tuning and stored completions: the last turn, or a choice, is the answer."""
    system, user = (
        {"role": "system", "content": "Sort."},
        {"role": "user", "content": "where is it"},
    )
    assistant = {"role": "assistant", "content": "delivery"}
    choices = [{"index": 0, "message": assistant, "finish_reason": "stop"}]
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "where"}, {"type": "text", "text": "is it"}],
    }
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    path = write_lines(
        tmp_path / "log.jsonl",
        {"messages": [system, user, assistant]},
        {"messages": [system, user], "choices": choices},
        {"messages": [system, user, assistant, user]},
        {"messages": [system, parts, assistant]},
        {"messages": [image, assistant]},
    )
    counts, events = imported(path, ImportPolicy(model="support-large"))
    roles = [[message.role for message in event.messages] for event in events]
    asked = ["system", "user"]
    assert roles == [asked, asked, [*asked, "assistant", "user"], asked, ["user"]]
    assert [event.answer for event in events] == ["delivery", "delivery", None, *["delivery"] * 2]
    assert events[3].messages[1].content == "where\nis it"
    assert [event.task for event in events] == ["support"] * 5
    assert (counts.answered, counts.labelled, counts.unanswered) == (4, 0, 1)
    assert counts.past == {"content": 1}
    assert all(event.teacher_answer is None for event in events)


def test_lines_that_no_task_wants_are_said(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "log.jsonl",
        {"text": "a", "model": "gpt-large"},
        {"text": "b", "model": "gpt-large"},
        {"text": "c", "model": "desk"},
    )
    counts, _ = imported(path, ImportPolicy(tasks={"support": DESK}))
    assert counts.sent == 3
    assert counts.unclaimed == {"gpt-large": 2}
    said = "\n".join(import_lines(asdict(counts)))
    assert "no task claims the model gpt-large: 2 records count for nothing" in said
    assert said.endswith("answers: none")


def test_a_csv_line_that_is_not_utf8_spoils_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes("text\nfine\n\xe9t\xe9\nfine again\n".encode("latin-1"))
    counts, events = imported(path, ImportPolicy(model="support-large"))
    assert [e.messages[0].content for e in events] == ["fine", "fine again"]
    assert [tuple(reject) for reject in counts.rejects] == [(3, "not UTF-8")]


def test_without_a_model_nothing_is_guessed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", {"text": "x"}, {"text": "y", "model": "m"})
    counts, events = imported(path)
    assert [e.model for e in events] == ["m"]
    assert counts.rejects[0].reason.startswith("no model")


def test_importing_twice_gives_the_same_event_ids(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "log.jsonl",
        {"text": "same"},
        {"text": "same"},
        {
            "schema": SCHEMA,
            "model": "support-large",
            "messages": [{"role": "user", "content": "x"}],
        },
        {"text": "given", "id": "their-own"},
    )
    imported(path, SIGNING)
    _, events = imported(path, SIGNING)
    ids = [event.event_id for event in events]
    assert len(ids) == 8
    assert ids[:4] == ids[4:]
    assert len(set(ids)) == 4
    moved = write_lines(tmp_path / "other.jsonl", {"text": "given", "id": "their-own"})
    assert imported(moved, SIGNING)[1][-1].event_id == ids[3], "wherever it stands"


def test_a_signed_import_vouches_for_labels_an_unsigned_one_does_not(tmp_path: Path) -> None:
    line = {
        "schema": SCHEMA,
        "model": "support-large",
        "messages": [{"role": "user", "content": "x"}],
        "teacher_answer": "label",
    }
    path = write_lines(tmp_path / "log.jsonl", line)
    _, (unsigned,) = imported(path)
    _, (_, signed) = imported(path, SIGNING)
    assert unsigned.teacher_answer is None
    assert signed.teacher_answer == "label"


def test_a_file_larger_than_the_writers_queue_waits_for_it(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", *({"text": f"prompt {i}"} for i in range(2500)))
    told: list[int] = []
    with closing(EmbeddedTopicWriter(tmp_path / "topic.sqlite", max_queued=100)) as writer:
        counts = import_logs([path], writer, policy=SIGNING, progress=told.append)
    assert counts.sent == 2500
    assert told == [1000, 2000, 2500]


@pytest.mark.parametrize("name", ["log.txt", "log", "missing.csv"])
def test_a_file_that_cannot_be_imported_is_said_before_anything_is_sent(
    tmp_path: Path, name: str
) -> None:
    if "missing" not in name:
        (tmp_path / name).write_text("x")
    with (
        closing(EmbeddedTopicWriter(tmp_path / "topic.sqlite")) as writer,
        pytest.raises(SettingsError),
    ):
        import_logs([tmp_path / name], writer)


def test_a_damaged_parquet_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_bytes(b"PAR1 not really")
    with (
        closing(EmbeddedTopicWriter(tmp_path / "topic.sqlite")) as writer,
        pytest.raises(SettingsError, match="not a Parquet file"),
    ):
        import_logs([tmp_path / "log.parquet"], writer)


def test_a_producer_without_key_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "log.jsonl", {"text": "x"})
    with (
        closing(EmbeddedTopicWriter(tmp_path / "topic.sqlite")) as writer,
        pytest.raises(SettingsError, match="both"),
    ):
        import_logs([path], writer, policy=ImportPolicy(producer="importer"))


def test_the_command_line_vouches_for_labels_as_a_trusted_producer(tmp_path: Path) -> None:
    log, config = tmp_path / "log.jsonl", tmp_path / "flywheel.toml"
    log.write_text(
        json.dumps({"text": "where is it", "model": "support-large", "label": "delivery"})
    )
    config.write_text(
        f"""data_dir = {json.dumps(str(tmp_path))}
[ingest]
trusted_producers = {{ importer = {json.dumps(KEY.decode())} }}
[teacher]
model = "large-1"
[tasks.support]
models = ["support-large"]
labels = ["refund", "delivery"]
target = 0.9
"""
    )

    def run(producer: str) -> "subprocess.CompletedProcess[str]":
        there = ["--config", str(config), "import", str(log), "--producer", producer]
        command = [sys.executable, "-m", "service", *there]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    unknown = run("stranger")
    assert unknown.returncode == ExitCode.SETTINGS
    assert "ingest.trusted_producers has no stranger; it has: importer" in unknown.stderr
    done = run("importer")
    assert done.returncode == 0
    assert done.stdout.endswith("answers: 1 as the teacher's, which are labels\n")
    with closing(EmbeddedTopicReader(tmp_path / "topic.sqlite")) as reader:
        reader.seek({})
        (record,) = reader.poll(max_records=10, timeout_seconds=0.05).records
    event = decode(
        record.value, record.headers, SourceOffset("t", 0, 0), record.timestamp_ms, RULES
    )
    assert (event.teacher_answer, event.teacher_model) == ("delivery", "large-1")
