"""One learner and one gateway's student in virtual time: the real parts, driven prompt by prompt.

Ingest, draws, relabelling, training, gate, guards and publication are the learner's own, on a real
database, topic and trainer; only the clock is made, and what the schedule would fire is called in
turn. The gateway's part is its own rule (`why_unsure`) on the published student.
"""

import csv
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np

from benchmarks.recipes.points import Query
from benchmarks.running import scripted_teacher
from pipelines.label import write_answer
from pipelines.reach import place
from pipelines.records.native import SCHEMA, NativeRecord, NativeStudent, encode_native
from pipelines.records.signature import sign
from pipelines.students.encoder import Encoder, installed_encoder_files
from pipelines.students.head import Head, load_head
from pipelines.types import Message
from service.gateway.router import why_unsure
from service.keys import GATEWAY_PRODUCER
from service.learner.daemon import Learner
from service.learner.watch import Watch
from service.operator.status import Status
from service.settings import Settings
from service.topics.opening import open_writer
from storage.live import LiveStudent
from storage.reports import read_report

BEGIN = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)
OPERATOR = "benchmark"


@dataclass(kw_only=True)
class Prompt:
    """One request: its text, what the teacher says to it, and its vector."""

    text: str
    gold: str
    encoder: Encoder

    @cached_property
    def vector(self) -> np.ndarray:
        """Made when a student is asked: before the first one nobody reads it."""
        vector: np.ndarray = self.encoder.encode([self.text])[0]
        return vector


class Served(NamedTuple):
    """What became of one prompt."""

    version: str  # empty: before the first student
    alone: bool  # the student answered, and was sure
    right: bool  # the student, whoever answered


class Defences(NamedTuple):
    """What keeps a student from answering what it has never seen; each may be switched off."""

    certificate: bool = True  # else it answers whatever its confidence, unless a guard stands
    mix: bool = True  # else no guard raises the threshold
    novelty: bool = True  # else there is no radius: what is beyond it is far
    forced: bool = False  # it has to answer alone all the same, marked, as without any budget


class Clock:
    """Virtual time."""

    def __init__(self, at: datetime = BEGIN) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at

    def forward(self, span: timedelta) -> None:
        self.at += span


class VirtualLearner(Learner):
    """A learner whose schedule is called instead of waited for."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._wanted: dict[str, str] = {}
        self._labels = True
        super().__init__(settings, Event(), clock)
        self._operations.recover()
        self._ingest = self._build_ingest(reset_offsets=False)
        self._ingest.start()
        self._writer = open_writer(settings)
        self._closing.callback(self._writer.close)
        self._jobs_done: dict[str, datetime] = {}
        self._heads: dict[str, Head] = {}
        self._unread = 0
        self.approves = True  # every version that may be approved
        self.defences = Defences()
        self.trainings = 0

    def _build_watch(self, start_training: Callable[[str, str], None]) -> Watch:
        return super()._build_watch(self._wanted.__setitem__)

    def answer(self, task: str, prompt: Prompt) -> tuple[NativeStudent, bool] | None:
        """What the published student says, and whether it may say so alone; None: there is none."""
        champion = self._board.live_task(task).champion
        if champion is None:
            return None
        if champion.student not in self._heads:
            folder = self._artifacts.path("student", champion.student)
            self._heads = {champion.student: load_head(folder)}
        said = self._heads[champion.student].answer(prompt.vector[None, :])[0]
        radius = champion.radius if self.defences.novelty else math.inf
        reach = place(said.distance, champion.near, radius)
        unsure = why_unsure(prompt.text, said.confidence, reach, self._threshold(champion))
        student = NativeStudent(
            version=champion.name,
            label=said.label,
            confidence=said.confidence,
            reach=reach,
            unsure=unsure or "",
        )
        return student, unsure is None or self.defences.forced

    def _threshold(self, champion: LiveStudent) -> float | None:
        """The published one, as far as the defences that made it are on."""
        if self.defences.mix and self.defences.certificate:
            return champion.threshold
        approved = read_report(self._artifacts, champion.report).evaluation.threshold.value
        if champion.threshold != approved and self.defences.mix:
            return champion.threshold
        return approved if self.defences.certificate else 0.0

    def capture(self, task: str, number: int, prompt: Prompt) -> Served:
        """One request through the gateway's rules onto the topic."""
        said = self.answer(task, prompt)
        alone = said is not None and said[1]
        declared = self._tasks[task]
        answer = said[0].label if said and alone else prompt.gold
        record = NativeRecord(
            schema=SCHEMA,
            event_id=f"prompt-{number}",
            task=task,
            model=declared.models[0],
            occurred_at=self._now(),
            messages=(Message("user", prompt.text),),
            answer=write_answer(answer, declared),
            served_by="student" if alone else "teacher",
            student=said[0] if said else None,
            teacher_answer=None if alone else write_answer(prompt.gold, declared),
        )
        value = encode_native(record)
        headers = sign(value, GATEWAY_PRODUCER, self._keys.capture)
        self._writer.send(value, key=b"", headers=headers)
        self._unread += 1
        version = said[0].version if said else ""
        return Served(version, alone, said is not None and said[0].label == prompt.gold)

    def pass_time(self, span: timedelta) -> None:
        """The clock goes on, and what is due by then is done, each job once at most."""
        self._writer.flush(10.0)
        while self._unread > 0:  # an empty topic would be waited for
            self._unread -= self._ingest.run_once()
        self._ingest.settle()
        self._clock.forward(span)
        if self._labels and self._due("relabel", timedelta(seconds=5)):
            self._jobs.label()
        if self._due("watch", timedelta(seconds=10)):
            self._jobs.look()
            for task in list(self._wanted):
                self._train(task, self._wanted.pop(task))
        if self._due("evaluate", timedelta(minutes=1)):
            self._jobs.evaluate()
            self._approve_all()

    def now(self) -> datetime:
        return self._now()

    def status(self) -> Status:
        """What its operators see."""
        self._operations.note_change()
        return self._operations.status()

    def forget_guards(self, task: str) -> None:
        """Operators see nothing of what the watch has raised, until it looks again."""
        seen = replace(self._board.figures(task), guards=(), shifted=False)
        self._board.show(task, seen)

    def stop_labels(self) -> None:
        """From now on the teacher is not asked for labels, and nothing is trained."""
        self._labels = False

    def _train(self, task: str, reason: str) -> None:
        if not self._labels:
            return
        _, version = self._parts.training.run(task, reason)
        if version is not None:
            self.trainings += 1
            self._parts.evaluating.run(task)
        self._approve_all()

    def waiting(self, task: str) -> int | None:
        """The number of the version that waits for approval."""
        found = (one.number for one in self._operations.versions(task) if one.state == "waiting")
        return next(found, None)

    def _approve_all(self) -> None:
        for task in self._tasks if self.approves else ():
            for version in self._operations.versions(task):
                if version.state == "waiting" and version.report is not None:
                    self._operations.approve(
                        task,
                        version.number,
                        report=version.report,
                        operator=OPERATOR,
                        serves_nothing=True,
                    )
                    return

    def _due(self, job: str, every: timedelta) -> bool:
        last = self._jobs_done.get(job)
        if last is not None and self._now() - last < every:
            return False
        self._jobs_done[job] = self._now()
        return True


@contextmanager
def virtual_learner(
    folder: Path, task: str, queries: Sequence[Query], labels: Sequence[str], *, target: float
) -> Iterator[tuple[VirtualLearner, list[Prompt]]]:
    """A learner in virtual time whose teacher knows the queries' labels, and the queries."""
    with (
        prepared(folder, task, queries, labels, target=target) as (settings, prompts),
        closing(VirtualLearner(settings, Clock())) as learner,
    ):
        yield learner, prompts


@contextmanager
def prepared(
    folder: Path, task: str, queries: Sequence[Query], labels: Sequence[str], *, target: float
) -> Iterator[tuple[Settings, list[Prompt]]]:
    """What such a learner needs: its settings, with a teacher that is there, and the queries."""
    answers, encoder = folder / "answers.csv", folder / "encoder"
    with answers.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([Query._fields, *queries])
    encoder.mkdir()
    for name, (path, _) in installed_encoder_files().items():
        (encoder / name).symlink_to(path)
    reading = Encoder(encoder, threads=os.cpu_count() or 1)
    prompts = [Prompt(text=query.text, gold=query.gold, encoder=reading) for query in queries]
    with scripted_teacher(f"--answers={answers}", "--label-column=gold") as teacher:
        yield _settings(folder / "data", task, labels, teacher, target), prompts


def _settings(
    folder: Path, task: str, labels: Sequence[str], teacher: str, target: float
) -> Settings:
    """Default settings but for the task, its target, the teacher and the addresses."""
    options: dict[str, Any] = {
        "data_dir": folder,
        "learner": {"port": 0, "gateway_url": "http://127.0.0.1:9"},
        "gateway": {"port": 0},
        "teacher": {
            "base_url": teacher,
            "model": "scripted-gold",
            "terms": "the data set's own labels",
            "terms_allow_training": True,
        },
        "tasks": {task: {"models": [task], "labels": list(labels), "target": target}},
    }
    return Settings(**options)
