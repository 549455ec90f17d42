"""The parts of a learner on real storage, wired as the daemon wires them, for one task."""

import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

from core_samples import TASK, make_event
from prometheus_client import CollectorRegistry

from pipelines.types import (
    Draws,
    Label,
    LabelSource,
    Message,
    Sample,
    SampleReason,
    Side,
    StudentAnswer,
    Task,
)
from service.learner.relabel import Relabel
from service.learner.teacher import Teacher
from service.learner.unusable import UnusableAnswers
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from service.operator.held_calls import HeldCalls
from service.settings import Settings
from storage.database import Database
from storage.labels import add_labels
from storage.ledger import Ledger
from storage.migrate import migrate
from storage.samples import add_samples

TEACHER = [sys.executable, "-m", "service.demo.scripted_teacher", "--until-stdin-closes"]


@dataclass
class Rig:
    """A data folder with a migrated database, settings and metrics."""

    folder: Path
    settings: Settings
    database: Database
    metrics: LearnerMetrics
    task: Task = TASK
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self.database.snapshot() as tx:
            return tx.execute(query, list(values)).fetchall()

    def scalar(self, query: str, *values: object) -> Any:
        return self.rows(query, *values)[0][0]

    def sample(
        self,
        event_id: str,
        text: str = "where is it",
        *,
        reason: SampleReason = SampleReason.UNCERTAIN,
        side: Side = Side.TRAINING,
        group: str | None = None,
        draws: Draws | None = None,
        student: StudentAnswer | None = None,
        messages: tuple[Message, ...] | None = None,
        at: datetime | None = None,
        **about: Any,
    ) -> None:
        """Store one sample, pending."""
        at = at or self.now()
        event = make_event(
            event_id,
            occurred_at=at,
            messages=messages or (Message("user", text),),
            student=student,
            **about,
        )
        sample = Sample(
            event=event,
            text=text,
            reason=reason,
            draws=draws or Draws(),
            group_id=group or event_id,
            side=side,
            assessment=None,
            policy_version="p",
        )
        with self.database.transaction() as tx:
            add_samples(tx, [sample], at)

    def label(
        self,
        event_id: str,
        label: str,
        *,
        source: LabelSource = "given",
        at: datetime | None = None,
        money: float = 0.0,
    ) -> None:
        """Label a stored sample."""
        made = Label(
            event_id=event_id,
            label=label,
            source=source,
            teacher_model="large-1",
            prompt_version="1",
            terms="scripted",
            cost=money,
        )
        with self.database.transaction() as tx:
            add_labels(tx, self.task.name, [made], at or self.now())

    def statuses(self) -> dict[str, str]:
        return dict(self.rows("SELECT event_id, status FROM samples"))

    def labels(self) -> dict[str, str]:
        return dict(self.rows("SELECT event_id, label FROM labels"))


@contextmanager
def open_rig(folder: Path, **sections: Any) -> Iterator[Rig]:
    """A rig in `folder`; `sections` are tables of the settings, `task` what its task adds."""
    teacher = {
        "base_url": "http://127.0.0.1:9/v1",
        "model": "scripted-teacher",
        "terms": "scripted",
        "terms_allow_training": True,
        "price_per_million_in": 1000.0,
        "price_per_million_out": 2000.0,
        "max_tokens": 8,
        "timeout": "5s",
    }
    added = sections.pop("task", {})
    support = {"models": ["gpt-support"], "labels": list(TASK.labels), **added}
    options: dict[str, Any] = {"data_dir": folder, "tasks": {TASK.name: support}, **sections}
    options["teacher"] = {**teacher, **sections.get("teacher", {})}
    settings = Settings(**options)
    database = Database(folder / "flywheel.duckdb")
    try:
        migrate(database)
        metrics = LearnerMetrics(CollectorRegistry())
        yield Rig(folder=folder, settings=settings, database=database, metrics=metrics)
    finally:
        database.close()


@dataclass
class Bench:
    """A rig that can ask the teacher."""

    rig: Rig
    ledger: Ledger
    teacher: Teacher
    relabel: Relabel
    board: Board
    held: HeldCalls
    calls: list[str] = field(default_factory=list)


@contextmanager
def open_bench(rig: Rig, **settings: Any) -> Iterator[Bench]:
    """Teacher and relabel job on the rig's ledger; `settings` change the teacher's."""
    ledger = Ledger(rig.folder / "ledger")
    calls, board = list[str](), Board()

    def on_call(outcome: str, said: str) -> None:
        calls.append(outcome)
        board.note_call(outcome, said)

    teacher = Teacher(
        rig.settings.teacher.model_copy(update=settings),
        rig.settings.budget,
        ledger,
        now=rig.now,
        on_call=on_call,
    )
    relabel = Relabel(
        budget=rig.settings.budget,
        database=rig.database,
        ledger=ledger,
        teacher=teacher,
        tasks={rig.task.name: rig.task},
        terms=rig.settings.teacher.terms,
        metrics=rig.metrics,
        unusable=UnusableAnswers(board, rig.now),
        now=rig.now,
        stop=Event(),
    )
    try:
        yield Bench(
            rig=rig,
            ledger=ledger,
            teacher=teacher,
            relabel=relabel,
            board=board,
            held=HeldCalls(rig.database, ledger, rig.now),
            calls=calls,
        )
    finally:
        ledger.close()


@dataclass(frozen=True)
class Scripted:
    """A running scripted teacher with its billing log: the witness of what was paid."""

    address: str
    billing: Path

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    def behave(self, **changes: object) -> None:
        request = urllib.request.Request(
            f"{self.address}/control", data=json.dumps(changes).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200

    def bills(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.billing.read_text().splitlines()]


def asked_again(ledger: Path) -> Counter[str]:
    """Which bills are for questions that were asked again on purpose; the ledger is at rest."""
    found: Counter[str] = Counter()
    with closing(Ledger(ledger)) as opened:
        for call in opened.calls():
            if call.repeat and (request := opened.request(call.key)):
                messages = [
                    [one["role"], one["content"]] for one in json.loads(request)["messages"]
                ]
                text = json.dumps(messages, ensure_ascii=False)
                found[sha256(text.encode()).hexdigest()] += 1
    return found


@contextmanager
def scripted_teacher(folder: Path, answers: Mapping[str, str]) -> Iterator[Scripted]:
    """A teacher that knows these texts and their labels, in a process of its own."""
    key, billing = folder / "answers.jsonl", folder / "billing.jsonl"
    lines = [json.dumps({"text": text, "label": label}) for text, label in answers.items()]
    key.write_text("\n".join(lines))
    command: Sequence[str] = [*TEACHER, "--answers", str(key), "--billing-log", str(billing)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = json.loads(process.stdout.readline())["port"]
        yield Scripted(f"http://127.0.0.1:{port}", billing)
    finally:
        process.stdin.close()
        process.terminate()
        process.wait()
        process.stdout.close()
