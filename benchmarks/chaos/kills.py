"""`kill -9` of each process, at random and at each failpoint, and how long until all is well."""

import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

import psutil

from benchmarks.chaos.service import ROOT, Service
from benchmarks.chaos.witnesses import Customers, Operator, SyncedLog
from service.supervisor import START_SECONDS

Victim = Literal["learner", "gateway", "trainer", "supervisor"]
# What a random kill hits, and how often.
SHARES: tuple[tuple[Victim, int], ...] = (
    ("learner", 4), ("gateway", 11), ("supervisor", 3), ("trainer", 1),
)  # fmt: skip
VICTIMS = [victim for victim, share in SHARES for _ in range(share)]
PATIENCE_SECONDS = 120.0
HEALTHY_SECONDS = START_SECONDS + 0.5
POINT_SECONDS = 20.0
RARE_POINT_SECONDS = 75.0
# Passed only when a student is trained, judged or approved.
RARE = ("training.", "evaluation.", "artifact.", "decision.", "live.", "swap.", "durable.")
# Passed by what such a run does not do: a torn decision file, retention, a first start. Tests kill
# there.
ELSEWHERE = frozenset({"decision.cut", "artifact.half_removed", "keys.linked", "keys.written"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One kill, and what was measured after it; None: not measured for this victim."""

    victim: Victim
    point: str  # "": at random
    at: float
    serving_seconds: float | None = None
    ingest_seconds: float | None = None
    orphan_seconds: float | None = None


def failpoints() -> list[str]:
    """All points in the source."""
    files = [*(ROOT / "storage").rglob("*.py"), *(ROOT / "service").rglob("*.py")]
    found = {
        p for file in files for p in re.findall(r'\bpassing\("([a-z._]+)"\)', file.read_text())
    }
    return sorted(found - ELSEWHERE)


class Killer:
    """Kills one process after the other, and waits each time until the program is well."""

    def __init__(
        self,
        service: Service,
        customers: Customers,
        operator: Operator,
        log: SyncedLog,
        *,
        seed: int,
    ) -> None:
        self._service = service
        self._customers = customers
        self._operator = operator
        self._log = log
        self._dice = random.Random(seed)
        self.kills: list[Kill] = []
        self.not_reached: list[str] = []

    def plan(self, kills: int) -> list[tuple[Victim | None, str]]:
        """Every failpoint as often as fits, then random victims; shuffled."""
        points = failpoints()
        rounds = max(0, kills // 2) // len(points)
        chosen: list[tuple[Victim | None, str]] = []
        chosen += [(None, point) for point in points * max(rounds, 1)]
        victims = list(VICTIMS)
        self._dice.shuffle(victims)
        if kills < len(points):  # a short run: one of each process, then points
            ordered: Sequence[Victim] = ("learner", "gateway", "supervisor", "trainer")
            self._dice.shuffle(chosen)
            return [*((v, "") for v in ordered[:kills]), *chosen][:kills]
        while len(chosen) < kills:
            chosen.append((victims[len(chosen) % len(victims)], ""))
        self._dice.shuffle(chosen)
        return chosen

    def another(self) -> tuple[Victim | None, str]:
        """One more at random."""
        return self._dice.choice(VICTIMS), ""

    def next(self, wanted: list[tuple[Victim | None, str]]) -> tuple[Victim | None, str]:
        """Take the first whose victim has lived long enough to be started again at once.

        A child that dies soon after its start is left dead for a while, longer each time: that
        is the supervisor's back-off, and not what is measured here.
        """
        while True:
            for at, (victim, point) in enumerate(wanted):
                if all(map(self._is_steady, _children_hit(victim, point))):
                    return wanted.pop(at)
            time.sleep(0.1)

    def _is_steady(self, child: str) -> bool:
        return child not in self._service.died or self._service.age(child) > HEALTHY_SECONDS

    def kill(self, victim: Victim | None, point: str) -> Kill | None:
        """One kill and its recovery; None when the point was not passed in time."""
        found = self._at_point(point) if point else self._at_random(victim or "learner")
        if found is None:
            self.not_reached.append(point or str(victim))
            return None
        done = self._recover(*found, point)
        self.kills.append(done)
        self._log.write(
            victim=done.victim, point=point, at=done.at, serving=done.serving_seconds,
            ingest=done.ingest_seconds, orphan=done.orphan_seconds,
        )  # fmt: skip
        return done

    def _at_random(self, victim: Victim) -> tuple[Victim, float] | None:
        time.sleep(self._dice.random() * 1.5)
        process = self._trainer() if victim == "trainer" else self._service.process(victim)
        if process is None:
            return None
        process.kill()
        return victim, time.time()

    def _trainer(self) -> psutil.Process | None:
        self._operator.train.set()
        deadline = time.monotonic() + RARE_POINT_SECONDS
        while time.monotonic() < deadline:
            with suppress(psutil.Error, OSError, ValueError, KeyError):
                for child in self._service.process("learner").children():
                    if "pipelines.train" in child.cmdline():
                        return child
            time.sleep(0.05)
        return None

    def _at_point(self, point: str) -> tuple[Victim, float] | None:
        nth = 1 if point.startswith(("supervisor.", *RARE)) else self._dice.randint(1, 20)
        before = len(self._service.fired())
        self._service.arm(point, nth)
        if point.startswith(("training.", "evaluation.", "artifact.")):
            self._operator.train.set()
        if point.startswith("supervisor."):  # passed when a child has died
            self._service.process("learner").kill()
        seconds = RARE_POINT_SECONDS if point.startswith(RARE) else POINT_SECONDS
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            fired = self._service.fired()
            if len(fired) > before:
                at, pid, _ = fired[-1]
                return cast("Victim", self._service.kind_of(pid)), at
            self._service.note_pids()
            time.sleep(0.02)
        self._service.disarm(point)
        return None

    def _recover(self, victim: Victim, at: float, point: str) -> Kill:
        about: dict[str, Any] = {"victim": victim, "point": point, "at": at}
        if victim == "trainer":
            return Kill(**about)
        self._service.died.add(victim)
        if victim == "supervisor":
            orphan = self._await(self._service.is_free, at)
            # What systemd does: the program is started again.
            at = time.time()
            self._service.start()
            about["orphan_seconds"] = orphan
        if victim in ("gateway", "supervisor"):
            about["serving_seconds"] = self._await(lambda: self._customers.answered_at > at, at)
        if victim in ("learner", "supervisor"):
            about["ingest_seconds"] = self._await(self._service.ingests_anew, at)
        return Kill(**about)

    def _await(self, condition: Callable[[], bool], since: float) -> float:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not well {PATIENCE_SECONDS:g} s after a kill; see the log")
            time.sleep(0.02)
        return time.time() - since


def _children_hit(victim: Victim | None, point: str) -> tuple[str, ...]:
    if victim == "supervisor":  # a new one knows of no deaths
        return ()
    if victim in ("learner", "gateway"):
        return (str(victim),)
    if victim is None and point.startswith(("swap.", "capture.")):
        return ("gateway",)
    if point.startswith(("topic.", "durable.")):
        return ("learner", "gateway")
    return ("learner",)
