"""Generations: loaded students. Load beside the old, warm up, verify, flip, drain.

What is served is one immutable mapping behind one attribute, so that a request sees the world
before a swap or after it and never between. Loading happens in the caller's thread.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal
from weakref import WeakSet

import structlog

from pipelines.errors import FlywheelError, TrainingStackMissing
from pipelines.reach import Reach, place
from pipelines.types import Task
from pipelines.work import GOLDEN_FILE
from service.gateway.engines.base import EngineFailed
from service.gateway.router import MAX_CHARACTERS, Unsure, why_unsure
from service.gateway.student import Student, StudentReply
from service.gateway.students import Failures, Students
from service.metrics.gateway import GatewayMetrics
from storage.artifacts import Artifact, Artifacts
from storage.failpoints import passing
from storage.live import Live, LiveStudent, LiveTask

log = structlog.get_logger()

GOLDEN_TOLERANCE = 1e-3

SwapProblem = Literal["artifact", "golden", "labels", "stack", "failed"]


class SwapRefused(FlywheelError):
    """This student is not served. What was served before stays."""

    def __init__(self, reason: SwapProblem, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Generation:
    """One loaded student. A request holds on to its generation from start to end."""

    task: Task
    live: LiveStudent
    student: Student
    failures: Failures

    @property
    def version(self) -> str:
        return self.live.name

    def judge(self, text: str, reply: StudentReply) -> tuple[Reach | None, Unsure | None]:
        """Where the text lies, and why the answer to it cannot be promised (None: it can)."""
        reach = place(reply.distance, self.live.near, self.live.radius)
        return reach, why_unsure(text, reply.confidence, reach, self.live.threshold)

    async def answer(self, text: str, *, patient: bool = False) -> StudentReply:
        """What the student says to `text`, or `StudentFailed`. `patient`: behind all others."""
        try:
            return await self.student.answer(text[:MAX_CHARACTERS], patient=patient)
        except Exception as error:  # whatever breaks in a model, the app gets an answer
            raise self.failures.note(error) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What serves one task, and what is kept beside it for a rollback."""

    champion: Generation | None = None
    previous: Generation | None = None

    def find(self, wanted: LiveStudent) -> Generation | None:
        """The resident generation of `wanted`, under the decision that wants it now."""
        for resident in (self.champion, self.previous):
            if resident and resident.live == wanted:
                return resident
            if resident and _content(resident.live) == _content(wanted):
                return replace(resident, live=wanted)
        return None


class Generations:
    """The students of all tasks. Many read `current`, one thread calls `apply`.

    There is no count of requests to drain: whoever answers with a generation holds it, and
    its memory goes with the last of them.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        artifacts: Artifacts,
        metrics: GatewayMetrics,
        *,
        threads: int,
    ) -> None:
        self.current: Mapping[str, Served] = MappingProxyType({})
        self.failures: Mapping[str, str] = MappingProxyType({})
        self._tasks = tasks
        self._artifacts = artifacts
        self._metrics = metrics
        self._students = Students(artifacts, metrics, threads=threads)
        self._alive: WeakSet[Generation] = WeakSet()
        self._shown: set[tuple[str, str, str]] = set()  # as the gauge has it

    def champion(self, task: str) -> Generation | None:
        """Who answers for `task` now."""
        served = self.current.get(task)
        return served.champion if served else None

    def resident(self, task: str, role: Literal["champion", "previous"]) -> Generation | None:
        """The champion, or the one that is kept for a rollback."""
        served = self.current.get(task, Served())
        return served.champion if role == "champion" else served.previous

    def apply(self, live: Live) -> bool:
        """Serve what is published; True when all of it is served.

        A task whose champion cannot be loaded and verified keeps what it has.
        """
        failures: dict[str, str] = {}
        for name, task in self._tasks.items():
            try:
                self._apply_task(task, live.tasks.get(name, LiveTask()))
            except SwapRefused as refused:
                failures[name] = str(refused)
                if self.failures.get(name) != str(refused):
                    log.error("swap_refused", task=name, reason=refused.reason, error=str(refused))
                    self._metrics.swaps.labels(name, refused.reason).inc()
        self.failures = MappingProxyType(failures)
        self.note_resident()
        return not failures

    def close(self) -> None:
        """End the engine processes. Heads go on answering, causal students do not."""
        self._students.close()

    def note_resident(self) -> None:
        """Bring the gauges up to date: what is in memory, and as what."""
        self._metrics.resident.set(len(self._alive))
        present = {
            (name, generation.version, role)
            for name, served in self.current.items()
            for role, generation in (("champion", served.champion), ("previous", served.previous))
            if generation
        }
        for gone in self._shown - present:
            self._metrics.student_info.remove(*gone)
        for labels in present - self._shown:
            self._metrics.student_info.labels(*labels).set(1)
        self._shown = present

    def _apply_task(self, task: Task, wanted: LiveTask) -> None:
        before = self.current.get(task.name, Served())
        started = time.perf_counter()
        champion = self._loaded(task, wanted.champion, before)
        if champion is not before.champion:
            passing("swap.loaded")
            self._flip(task, Served(champion=champion, previous=before.champion))
            passing("swap.flipped")
            self._note_swap(task, before, champion, time.perf_counter() - started)
        # The champion does not wait for the one that is only kept beside it.
        previous = self._kept(task, wanted.previous, before)
        self._flip(task, Served(champion=champion, previous=previous))
        passing("swap.done")

    def _flip(self, task: Task, served: Served) -> None:
        # One assignment: every request that starts after it sees the new mapping.
        self.current = MappingProxyType({**self.current, task.name: served})

    def _loaded(self, task: Task, wanted: LiveStudent | None, before: Served) -> Generation | None:
        """The generation of `wanted`: the resident one, or a new one, verified."""
        if wanted is None:
            return None
        try:
            generation = before.find(wanted) or self._load(task, wanted)
        except SwapRefused:
            raise
        except TrainingStackMissing as error:
            problem = f"{wanted.name} needs the training stack to be served: {error}"
            raise SwapRefused("stack", problem) from error
        except EngineFailed as error:
            raise SwapRefused("failed", f"{wanted.name} could not be loaded: {error}") from error
        except FlywheelError as error:
            raise SwapRefused("artifact", f"{wanted.name}: {error}") from error
        except Exception as error:  # whatever it is, the old student serves on
            log.exception("swap_failed", task=task.name, student_version=wanted.name)
            problem = f"{wanted.name} could not be loaded: {type(error).__name__}"
            raise SwapRefused("failed", problem) from error
        self._alive.add(generation)
        return generation

    def _kept(self, task: Task, wanted: LiveStudent | None, before: Served) -> Generation | None:
        """The one to keep for a rollback. Its troubles are no reason against the champion."""
        try:
            return self._loaded(task, wanted, before)
        except SwapRefused as refused:
            log.warning("previous_not_kept", task=task.name, error=str(refused))
            return None

    def _load(self, task: Task, wanted: LiveStudent) -> Generation:
        report = self._artifacts.open("report", wanted.report)

        def check_labels(labels: Sequence[str]) -> None:
            if foreign := set(labels) - set(task.labels):
                raise SwapRefused(
                    "labels",
                    f"{wanted.name} has labels that tasks.{task.name}.labels does not: "
                    + ", ".join(sorted(foreign)),
                )

        student = self._students.load(task.name, wanted, check_labels)
        check_golden(wanted.name, student, report)
        failures = Failures(task.name, wanted.name, self._metrics)
        return Generation(task=task, live=wanted, student=student, failures=failures)

    def _note_swap(
        self, task: Task, before: Served, champion: Generation | None, seconds: float
    ) -> None:
        previous = before.previous
        resident = champion and previous and champion.student is previous.student
        outcome = "withdrawn" if champion is None else "rolled_back" if resident else "swapped"
        self._metrics.swaps.labels(task.name, outcome).inc()
        self._metrics.swap_seconds.observe(seconds)
        log.info(
            f"student_{outcome}",
            task=task.name,
            student_version=champion and champion.version,
            before=before.champion and before.champion.version,
            seconds=round(seconds, 3),
        )


def check_golden(name: str, student: Student, report: Artifact) -> None:
    """Warm up with the report's golden prompts, and refuse a student that answers otherwise.

    What was evaluated is then what is served: the same weights, base, tokenizer and runtime.
    """
    try:
        golden = json.loads(report.file(GOLDEN_FILE).read_text())
        expected = [(str(g["text"]), str(g["label"]), float(g["confidence"])) for g in golden]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SwapRefused("golden", f"{name}: the report has no golden prompts: {error}") from error
    if not expected:
        raise SwapRefused("golden", f"{name}: the report has no golden prompts")
    answers = student.answer_now([text for text, _, _ in expected])
    wrong = sum(
        # Written so that a NaN counts as wrong.
        answer.label != label or not abs(answer.confidence - confidence) <= GOLDEN_TOLERANCE
        for answer, (_, label, confidence) in zip(answers, expected, strict=True)
    )
    if wrong:
        raise SwapRefused(
            "golden",
            f"{name} answers {wrong} of {len(expected)} golden prompts otherwise than it did "
            "when it was evaluated; it is not served",
        )


def _content(student: LiveStudent) -> tuple[str, str, str, str]:
    return student.name, student.student, student.base, student.report
