"""Ingest: offset and rows in one transaction, nothing lost, nothing twice, poison aside."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from core_samples import TASK
from ingest_rig import KEY, SALT, TOPIC, Assessor, Producer, drain, make_ingest, record
from learner_rig import Rig, open_rig
from structlog.testing import capture_logs

from pipelines.ask import ask
from pipelines.errors import OffsetsLost
from pipelines.identities import IMPORTED
from pipelines.records.native import NativeFeedback, NativeStudent, NativeUsage, encode_native
from pipelines.records.signature import sign
from pipelines.sample import side_of
from pipelines.types import Side
from service.keys import GATEWAY_PRODUCER
from service.learner.ingest import OVERLAP_RECORDS
from service.operator.board import Board
from service.operator.status import IngestState
from service.topics.embedded import EmbeddedTopicReader
from service.topics.topic_file import prune
from storage.samples import pending_samples
from storage.shapes import add_shapes, newest_shapes
from storage.ticks import pause, resume

RIG = Path(__file__).parents[1] / "rigs" / "ingest_rig.py"
ALL = {"audit_rate": 1.0, "held_out_rate": 1.0}
NONE: dict[str, Any] = {
    "audit_rate": 0.0,
    "held_out_rate": 0.0,
    "given_rate": 0.0,
    "cold_start_rate": 0.0,
}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as made:
        yield made


@pytest.fixture
def producer(rig: Rig) -> Iterator[Producer]:
    made = Producer(rig.folder)
    yield made
    made.close()


def events(rig: Rig) -> int:
    return int(rig.scalar("SELECT coalesce(sum(events), 0) FROM traffic"))


def metric(rig: Rig, name: str, **labels: str) -> float:
    collectors = [getattr(rig.metrics, name)]
    for family in collectors[0].collect():
        for sample in family.samples:
            if sample.labels == labels and not sample.name.endswith("_created"):
                return float(sample.value)
    return 0.0


def by_student(confidence: float, label: str = "refund") -> dict[str, Any]:
    student = NativeStudent(version="support-v1", label=label, confidence=confidence)
    return {"served_by": "student", "student": student, "answer": label}


def by_teacher(label: str) -> dict[str, Any]:
    return {
        "served_by": "teacher",
        "answer": label,
        "teacher_answer": label,
        "teacher_model": "large-1",
        "usage": NativeUsage(prompt_tokens=1_000, completion_tokens=500),
    }


def test_sums_are_what_was_sent(rig: Rig, producer: Producer) -> None:
    producer.send(record("a", **by_student(0.9)), record("b", **by_student(0.6, "cancel")))
    producer.send(record("c", **by_teacher("refund")), record("d"))
    producer.send(record("e", **{**by_student(0.5), "served_by": "teacher"}))
    assert drain(make_ingest(rig)) == 5
    row = rig.rows(
        "SELECT sum(events), sum(assessed), sum(served), sum(teacher_served), sum(sum_f), "
        "sum(sum_f2), sum(served_sum_f), sum(served_sum_f2), sum(list_sum(histogram)) FROM traffic"
    )[0]
    assert row == pytest.approx((5, 3, 2, 2, 2.0, 1.42, 1.5, 1.17, 3))
    assert rig.rows("SELECT task, version, segment, events FROM traffic ORDER BY ALL") == [
        ("support", "", "", 1),
        ("support", "", "refund", 1),
        ("support", "support-v1", "cancel", 1),
        ("support", "support-v1", "refund", 2),
    ]


def test_unclaimed_traffic_is_counted_and_not_looked_at(rig: Rig, producer: Producer) -> None:
    producer.send(record("a", model="another-model"), record("b"))
    drain(make_ingest(rig, sampling=ALL))
    assert rig.rows("SELECT task, events FROM traffic ORDER BY task") == [("", 1), ("support", 1)]
    assert rig.scalar("SELECT count(*) FROM samples") == 1
    assert metric(rig, "events", task="unclaimed", served_by="app") == 1


def test_what_no_student_may_answer_is_counted_and_nothing_else(
    rig: Rig, producer: Producer
) -> None:
    """Neither in the sums that judge a student, nor in any draw, nor a label; whoever says it."""
    producer.send(record("a", past="tools", **by_teacher("refund")), record("b"))
    producer.send(record("c", past="content", attributes={"feedback_on": "a"}))
    offered = {"tools": [{"type": "function"}]}
    producer.send(record("d", asked=offered), record("e", asked={**offered, "tool_choice": "none"}))
    producer.send(record("f", attributes={"unsure": "not_allowed"}, **by_teacher("refund")))
    drain(make_ingest(rig, sampling=ALL))
    assert rig.rows("SELECT reason, sum(requests) FROM traffic_past GROUP BY ALL ORDER BY ALL") == [
        ("not_allowed", 1),
        ("tools", 2),
    ]
    assert events(rig) == 3, "b, e, and f whose answer might have been another"
    assert rig.rows("SELECT event_id FROM samples ORDER BY ALL") == [("b",), ("e",), ("f",)]
    assert rig.rows("SELECT event_id FROM labels ORDER BY ALL") == [("f",)]
    assert metric(rig, "past", task="support", reason="tools") == 2
    assert metric(rig, "records", outcome="event") == 6


def test_what_the_apps_answers_look_like_is_learned_from_those_that_are_labels(
    rig: Rig, producer: Producer
) -> None:
    producer.send(record("a", **by_teacher("refund")), record("b", answer="**Refund.**"))
    producer.send(record("c", answer='{"label": "refund"}'), record("d", answer="I cannot say"))
    producer.send(record("e", past="tools", answer="refund"), record("f", **by_student(0.9)))
    drain(make_ingest(rig))
    with rig.database.snapshot() as tx:
        assert newest_shapes(tx, "support", 500) == {"text": 2, "{label: text}": 1}
    with rig.database.transaction() as tx:
        old, older = date(2020, 1, 2), date(2020, 1, 1)
        add_shapes(tx, {(old, "support", "[text]"): 7, (older, "support", "null"): 9})
        assert newest_shapes(tx, "support", 3) == {"text": 2, "{label: text}": 1}
        assert newest_shapes(tx, "support", 4)["[text]"] == 7
        assert newest_shapes(tx, "support", 99)["null"] == 9


def test_a_limit_that_is_none_costs_itself_and_stops_nothing(rig: Rig, producer: Producer) -> None:
    """It would be compared with our own at every tick."""
    odd: list[Any] = ["x", -5, 0, True, 1.5, [1], None, {}]
    for number, limit in enumerate(odd):
        asked = {"max_tokens": limit, "seed": number, "temperature": None}
        producer.send(record(f"e-{number}", f"text {number} of it", asked=asked), signed=False)
    drain(make_ingest(rig, sampling=ALL))
    with rig.database.snapshot() as tx:
        pending = pending_samples(tx, ["support"], 99)
    assert sorted(sample.asked["seed"] for sample in pending) == list(range(len(odd)))
    for sample in pending:
        assert set(sample.asked) == {"seed"}
        ask(sample.event_id, sample.messages, TASK, rig.settings.teacher.policy, asked=sample.asked)


def test_failed_transaction_stores_nothing_and_redelivery_stores_once(
    rig: Rig, producer: Producer
) -> None:
    producer.send(*(record(f"e-{n}", f"text {n} of it") for n in range(20)), b"poison")
    with rig.database.transaction() as tx:
        tx.execute("ALTER TABLE offsets RENAME TO hidden")  # the last statement will fail
        tx.execute("CREATE VIEW offsets AS SELECT * FROM hidden")
    with pytest.raises(Exception, match="offsets"):
        drain(make_ingest(rig, sampling=ALL))
    for table in ("traffic", "samples", "groups", "dead_letters", "hidden"):
        assert rig.scalar(f"SELECT count(*) FROM {table}") == 0, table
    assert metric(rig, "records", outcome="event") == 0
    with rig.database.transaction() as tx:
        tx.execute("DROP VIEW offsets")
        tx.execute("ALTER TABLE hidden RENAME TO offsets")
    drain(make_ingest(rig, sampling=ALL))
    assert events(rig) == 20
    assert rig.scalar("SELECT count(*) FROM samples WHERE audit_pi = 1") == 20
    assert rig.scalar("SELECT count(*) FROM dead_letters") == 1
    assert rig.scalar("SELECT next_offset FROM offsets") == 21
    assert metric(rig, "records", outcome="event") == 20


def test_large_batches_overlap_and_none_is_stored_behind_one_that_failed(
    rig: Rig, producer: Producer
) -> None:
    size = OVERLAP_RECORDS
    producer.send(*(record(f"e-{n}") for n in range(3 * size)))
    ingest = make_ingest(rig, max_records=size)
    assert ingest.run_once() == size
    ingest.settle()
    assert events(rig) == size
    with rig.database.transaction() as tx:
        tx.execute("ALTER TABLE offsets RENAME TO hidden")
        tx.execute("CREATE VIEW offsets AS SELECT * FROM hidden")
    with pytest.raises(Exception, match="offsets"):
        drain(ingest)
    assert events(rig) == size
    assert rig.scalar("SELECT next_offset FROM hidden") == size
    with rig.database.transaction() as tx:
        tx.execute("DROP VIEW offsets")
        tx.execute("ALTER TABLE hidden RENAME TO offsets")
    assert drain(make_ingest(rig, max_records=size)) == 2 * size
    assert events(rig) == 3 * size
    assert metric(rig, "records", outcome="event") == 3 * size


def test_restart_goes_on_where_the_database_says(rig: Rig, producer: Producer) -> None:
    producer.send(*(record(f"a-{n}") for n in range(10)))
    assert drain(make_ingest(rig)) == 10
    producer.send(*(record(f"b-{n}") for n in range(5)))
    assert drain(make_ingest(rig)) == 5
    assert events(rig) == 15


def test_event_id_that_comes_in_a_second_record_is_not_sampled_twice(
    rig: Rig, producer: Producer
) -> None:
    producer.send(record("same", **by_teacher("refund")), record("same", **by_teacher("refund")))
    ingest = make_ingest(rig, sampling=ALL)
    drain(ingest)
    producer.send(record("same", **by_teacher("refund")))
    drain(ingest)
    assert rig.rows("SELECT event_id FROM samples") == [("same",)]
    assert rig.scalar("SELECT count(*) FROM labels") == 1


def test_ids_that_repeat_or_are_empty_melt_nothing_together(rig: Rig, producer: Producer) -> None:
    """A cache gives all answers one id, TGI none: each prompt is still one event of its own."""

    def pair(given: str, text: str) -> bytes:
        asked = {"model": "gpt-support", "messages": [{"role": "user", "content": text}]}
        said = {"id": given, "choices": [{"message": {"content": "refund"}}]}
        return msgspec.json.encode({"request": asked, "response": said})

    texts = [f"{word} {word} is what I want to know of" for word in ["alpha", "beta", "gamma"]]
    producer.send(*(pair("chatcmpl-0", text) for text in texts))
    producer.send(*(pair("", text) for text in texts))
    producer.send(pair("chatcmpl-0", texts[0]))  # told again
    drain(make_ingest(rig, sampling=ALL))
    assert rig.scalar("SELECT count(*) FROM samples") == 6
    assert rig.scalar("SELECT count(*) FROM groups") == 3
    assert rig.scalar("SELECT count(DISTINCT text) FROM samples") == 3


def test_a_log_that_is_imported_twice_counts_once(rig: Rig, producer: Producer) -> None:
    def send() -> None:
        producer.send(*(record(f"{IMPORTED}{n}", f"text {n} of it") for n in range(10)))

    send()
    ingest = make_ingest(rig, sampling=ALL, max_records=4)
    drain(ingest)
    send()
    with capture_logs() as said:
        drain(ingest)
    assert sum(line["records"] for line in said if line["event"] == "import_repeated") == 10
    send()
    drain(make_ingest(rig, sampling=ALL))
    assert (events(rig), rig.scalar("SELECT count(*) FROM samples")) == (10, 10)
    producer.send(*(record("a", "of the app") for _ in range(2)))
    drain(ingest := make_ingest(rig, sampling=ALL))
    assert events(rig) == 12, "what comes from an app is not looked up"


def test_killed_ingest_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    """`kill -9` at random points, under traffic; the producer's count is the witness."""
    producer, dice, sent = Producer(tmp_path), Random(1), 0
    for _ in range(6):
        child = subprocess.Popen([sys.executable, str(RIG), str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        for _ in range(dice.randrange(1, 6)):
            batch = [
                record(f"e-{sent + n}", f"text {(sent + n) % 40} of many", **by_teacher("refund"))
                for n in range(dice.randrange(20, 200))
            ]
            producer.send(*batch)
            sent += len(batch)
        time.sleep(dice.random() * 0.15)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    producer.close()
    with open_rig(tmp_path) as rig:
        drain(make_ingest(rig, sampling={"given_rate": 0.5}))
        assert events(rig) == sent
        assert rig.scalar("SELECT next_offset FROM offsets") == sent
        chosen = rig.scalar("SELECT count(DISTINCT event_id) FROM samples")
        assert rig.scalar("SELECT count(*) FROM samples") == chosen
        assert 0 < chosen <= sent
        # A chosen event's label came with it, and a group is on one side only.
        assert rig.scalar("SELECT count(*) FROM labels") == chosen
        assert rig.scalar("SELECT count(*) FROM groups") == rig.scalar(
            "SELECT count(DISTINCT text) FROM groups"
        )
        crossed = "FROM samples s JOIN groups g USING (group_id) WHERE s.side <> g.side"
        assert rig.scalar(f"SELECT count(*) {crossed}") == 0
        assert drain(make_ingest(rig, sampling={"given_rate": 0.5})) == 0


def test_poison_becomes_dead_letters_and_stops_nothing(rig: Rig, producer: Producer) -> None:
    poison = (b"not json", b"[]", b"{}", b"\xff\xfe", b'{"schema": "flywheel.prompt/1"}')
    for number, value in enumerate(poison):
        producer.send(record(f"e-{number}"), value)
    drain(make_ingest(rig))
    assert events(rig) == len(poison)
    rows = rig.rows(
        "SELECT source_offset, payload, reason FROM dead_letters ORDER BY source_offset"
    )
    assert [(row[0], row[1]) for row in rows] == [(2 * n + 1, v) for n, v in enumerate(poison)]
    assert all(row[2] for row in rows)
    assert metric(rig, "records", outcome="dead_letter") == len(poison)


def test_all_bad_traffic_pauses_instead_of_draining(rig: Rig, producer: Producer) -> None:
    producer.send(*(b"rubbish" for _ in range(500)))
    board = Board()
    ingest = make_ingest(
        rig, board=board, max_records=50, dead_letter_window=100, max_dead_letter_rate=0.9
    )
    for _ in range(10):
        ingest.run_once()
    assert rig.scalar("SELECT count(*) FROM dead_letters") == 100
    assert "flywheel resume ingest" in (board.ingest.held or "")
    assert rig.scalar("SELECT paused_by FROM pauses") == "flywheel"
    assert metric(rig, "ingest_held", reason="poison") == 1
    with rig.database.transaction() as tx:
        resume(tx, "ingest")
    ingest.run_once()
    assert board.ingest == IngestState(lag=350, polled_at=ingest.last_poll)
    assert rig.scalar("SELECT count(*) FROM dead_letters") == 150


def test_some_poison_pauses_nothing(rig: Rig, producer: Producer) -> None:
    for number in range(60):
        producer.send(b"rubbish", record(f"e-{number}"))
    board = Board()
    ingest = make_ingest(rig, board=board, max_records=20, dead_letter_window=100)
    assert drain(ingest) == 120
    assert board.ingest.held is None


def test_operator_pause_holds_and_resume_goes_on(rig: Rig, producer: Producer) -> None:
    ingest = make_ingest(rig)
    with rig.database.transaction() as tx:
        pause(tx, job="ingest", operator="ada", now=rig.now())
    producer.send(record("a"))
    assert ingest.run_once() == 0
    assert metric(rig, "ingest_held", reason="operator") == 1
    with rig.database.transaction() as tx:
        resume(tx, "ingest")
    assert ingest.run_once() == 1
    assert metric(rig, "ingest_held", reason="operator") == 0


def test_disk_that_is_nearly_full_holds_ingest(rig: Rig, producer: Producer) -> None:
    producer.send(record("a"))
    free = shutil.disk_usage(rig.folder).free // 2**20
    board = Board()
    ingest = make_ingest(rig, board=board, min_free_disk_mb=free * 2)
    assert ingest.run_once() == 0
    assert "MB are free" in (board.ingest.held or "")
    assert metric(rig, "ingest_held", reason="disk") == 1


def test_retention_gap_is_noted(rig: Rig, producer: Producer) -> None:
    producer.send(*(record(f"a-{n}") for n in range(10)))
    drain(make_ingest(rig))
    producer.send(*(record(f"b-{n}") for n in range(10)))
    prune(rig.folder / TOPIC, before_offset=14)
    drain(make_ingest(rig))
    assert rig.rows("SELECT first, last FROM gaps") == [(10, 14)]
    assert metric(rig, "topic_gap_records") == 4
    assert events(rig) == 16


def test_topic_that_was_made_again_is_refused(rig: Rig, producer: Producer) -> None:
    producer.send(record("a"))
    drain(make_ingest(rig))
    producer.close()
    for path in rig.folder.glob(f"{TOPIC}*"):
        path.unlink()
    anew = Producer(rig.folder)
    anew.send(record("b"), record("c"))
    with pytest.raises(OffsetsLost, match="--reset-offsets"):
        make_ingest(rig)
    anew.close()
    assert events(rig) == 1


def test_teachers_answer_is_a_label_under_the_recorded_terms_only(
    rig: Rig, producer: Producer
) -> None:
    producer.send(*(record(f"e-{n}", f"{n} words of it", **by_teacher("refund")) for n in "abcde"))
    drain(make_ingest(rig, terms=None, sampling=ALL))
    assert rig.labels() == {}
    assert rig.scalar("SELECT count(*) FROM samples") == 5
    producer.send(*(record(f"e-{n}", f"{n} words of it", **by_teacher("refund")) for n in "fgh"))
    drain(make_ingest(rig, sampling=ALL))
    assert set(rig.labels()) == {"e-f", "e-g", "e-h"}
    row = rig.rows("SELECT DISTINCT source, teacher_model, terms, cost FROM labels")
    assert row == [("given", "large-1", "scripted", 2.0)]


def test_text_of_a_user_is_never_a_label(rig: Rig, producer: Producer) -> None:
    """Nobody who can write to the topic gets a label in without a key."""
    claims = {
        **by_teacher("refund"),
        "feedback": NativeFeedback(verdict="bad", correction="cancel"),
        "student": NativeStudent(version="v", label="refund", confidence=0.1),
    }
    producer.send(record("a", **claims), signed=False)
    pair = (
        b'{"request": {"model": "gpt-support", "messages": [{"role": "user", "content": "x y"}]},'
        b' "response": {"id": "b", "choices": [{"message": {"content": "refund"}}]}}'
    )
    producer.send(pair)
    drain(make_ingest(rig, sampling=ALL))
    assert rig.scalar("SELECT count(*) FROM samples") == 2
    assert rig.labels() == {}
    assert rig.rows("SELECT DISTINCT served_by, student_version FROM samples") == [("app", None)]


def test_changed_record_of_the_gateway_is_a_dead_letter(rig: Rig, producer: Producer) -> None:
    value = encode_native(record("a", **by_teacher("refund")))
    changed = value.replace(b'"teacher_answer":"refund"', b'"teacher_answer":"cancel"')
    producer.send_raw(changed, sign(value, GATEWAY_PRODUCER, KEY))
    producer.send(record("b"))
    drain(make_ingest(rig, sampling=ALL))
    assert rig.scalar("SELECT count(*) FROM dead_letters") == 1
    assert rig.labels() == {}


def test_answer_outside_the_label_set_is_no_label(rig: Rig, producer: Producer) -> None:
    producer.send(record("a", **by_teacher("I would say refund")))
    drain(make_ingest(rig, sampling=ALL))
    assert rig.statuses() == {"a": "pending"}


def training_side(rig: Rig) -> str:
    """An event id that founds a group of the training side."""
    return next(
        name
        for name in (f"f-{n}:feedback:1" for n in range(100))
        if side_of(name, SALT) is Side.TRAINING
    )


def test_correction_becomes_a_label_and_is_no_traffic(rig: Rig, producer: Producer) -> None:
    name = training_side(rig)
    said = NativeFeedback(verdict="bad", correction="cancel")
    producer.send(record(name, feedback=said, attributes={"feedback_on": "f"}, **by_student(0.9)))
    drain(make_ingest(rig, sampling=ALL))
    assert events(rig) == 0
    assert rig.rows("SELECT event_id, label, source, terms FROM labels") == [
        (name, "cancel", "correction", "")
    ]
    row = rig.rows("SELECT reason, audit_pi, held_out_pi, learning_pi FROM samples")
    assert row == [("feedback", None, None, None)], "in a draw it would count without the sums"


def test_good_feedback_is_no_sample(rig: Rig, producer: Producer) -> None:
    said = NativeFeedback(verdict="good")
    event = training_side(rig)
    about = {"feedback_on": "f"}
    producer.send(record(event, feedback=said, attributes=about, **by_student(0.9)))
    drain(make_ingest(rig, sampling=ALL))
    assert rig.scalar("SELECT count(*) FROM samples") == 0


def test_event_without_an_answer_is_assessed_by_the_gateway(rig: Rig, producer: Producer) -> None:
    producer.send(record("a"), record("b", **by_student(0.6)), record("c", model="other"))
    assessor = Assessor(confidence=0.8)
    drain(make_ingest(rig, assessor=assessor, has_student=True, sampling=ALL))
    assert assessor.asked == 1
    assert rig.scalar("SELECT sum(sum_f) FROM traffic") == pytest.approx(1.4)
    assert rig.scalar("SELECT confidence FROM samples WHERE event_id = 'a'") == 0.8


def test_while_the_gateway_is_down_events_are_counted_as_unassessed(
    rig: Rig, producer: Producer
) -> None:
    producer.send(*(record(f"e-{n}") for n in range(7)))
    drain(make_ingest(rig, assessor=Assessor(), has_student=True, sampling={**NONE, **ALL}))
    assert metric(rig, "unassessed", task="support") == 7
    assert rig.rows("SELECT sum(events), sum(assessed) FROM traffic") == [(7, 0)]
    assert rig.scalar("SELECT count(*) FROM samples WHERE learning_pi IS NOT NULL") == 0
    assert rig.scalar("SELECT count(*) FROM samples WHERE audit_pi = 1") == 7


def test_without_a_student_nobody_is_asked(rig: Rig, producer: Producer) -> None:
    producer.send(record("a"))
    assessor = Assessor(confidence=0.8)
    drain(make_ingest(rig, assessor=assessor))
    assert assessor.asked == 0


def send_distinct(
    producer: Producer, records: int, *, labelled: bool = True, **fields: Any
) -> None:
    """Prompts that no other is like, each with a teacher's answer, or none."""
    dice = Random(5)
    for number in range(records):
        words = " ".join("".join(dice.choices("abcdefghij", k=6)) for _ in range(8))
        answered = by_teacher(TASK.labels[number % 3]) if labelled else {}
        producer.send(record(f"e-{number}", words, **answered, **fields))


def test_what_the_teacher_answered_before_there_was_a_student_all_judges(
    rig: Rig, producer: Producer
) -> None:
    send_distinct(producer, 300)
    drain(make_ingest(rig, sampling={"audit_rate": 0.0, "held_out_rate": 0.01}))
    rows = rig.rows(
        "SELECT count(*), min(held_out_pi), max(held_out_pi) FROM samples WHERE side = 'held_out'"
    )
    ((drawn, *probabilities),) = rows
    assert 40 < drawn < 80, "a fifth of the groups, all of them"
    assert probabilities == [1.0, 1.0]


def test_a_log_that_is_imported_at_once_spends_a_part_of_the_held_out_purse(
    rig: Rig, producer: Producer
) -> None:
    """All at first, then half as many, and half of that: no look at the rates comes between."""
    send_distinct(producer, 3_000, labelled=False)
    drain(make_ingest(rig, sampling={"audit_rate": 0.0}, held_out_left=100))
    drawn = dict(
        rig.rows(
            "SELECT held_out_pi, count(*) FROM samples WHERE held_out_pi IS NOT NULL GROUP BY 1"
        )
    )
    assert drawn[1.0] == 51
    assert drawn[0.5] == 25
    assert 85 < sum(drawn.values()) <= 110, "what is spent is a little more than the purse at most"


def test_held_out_side_takes_only_what_was_drawn(rig: Rig, producer: Producer) -> None:
    said = {"version": "support-v1-abcdef01", "label": TASK.labels[0], "confidence": 0.4}
    send_distinct(producer, 300, student=said)  # and escalated: no reason to take all of them
    drain(make_ingest(rig, sampling={"audit_rate": 0.0, "held_out_rate": 0.3}))
    rows = rig.rows(
        "SELECT side, count(*), count(held_out_pi), count(DISTINCT reason) FROM samples "
        "GROUP BY side ORDER BY side"
    )
    (held_out, drawn), (training, wrongly) = (row[1:3] for row in rows)
    assert rows[0][0] == "held_out"
    assert held_out == drawn
    assert 0 < drawn < 40, "a fifth of the groups, three in ten of those"
    assert wrongly == 0
    assert 200 < training < 280


def test_group_and_its_side_survive_a_restart(rig: Rig, producer: Producer) -> None:
    text = "where is my parcel, it should have been here on monday already"
    producer.send(record("first", text))
    drain(make_ingest(rig, sampling=ALL))
    producer.send(record("second", text + "!"))
    drain(make_ingest(rig, sampling=ALL))
    assert rig.rows("SELECT DISTINCT group_id FROM samples") == [("first",)]
    assert rig.rows("SELECT count(*), count(DISTINCT side) FROM samples") == [(2, 1)]
    assert rig.rows("SELECT group_id, text FROM groups") == [("first", text)]


def test_event_without_words_is_counted_and_not_sampled(rig: Rig, producer: Producer) -> None:
    producer.send(record("a", "  \n "))
    drain(make_ingest(rig, sampling=ALL))
    assert events(rig) == 1
    assert rig.scalar("SELECT count(*) FROM samples") == 0


def test_poll_waits_no_longer_than_it_was_told(rig: Rig) -> None:
    reader = EmbeddedTopicReader(rig.folder / TOPIC)
    ingest = make_ingest(rig, reader=reader, poll_timeout=timedelta(seconds=0.05))
    started = time.monotonic()
    assert ingest.run_once() == 0
    assert time.monotonic() - started < 2
