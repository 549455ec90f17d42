"""Guards the promise: raises the threshold at once where traffic or audits no longer bear it.

Two watches of their own. The mix of the newest traffic is held against what the certificate's
evidence looked like, without a label; the audits of what was served are held against the target.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import get_args

import structlog

from pipelines.errors import ArtifactDamaged
from pipelines.guard import Guard, GuardKind
from pipelines.statistics.detector import Detector
from pipelines.statistics.mix import WINDOW, many_are_beyond, threshold_for_mix
from pipelines.statistics.recertify import recertify
from pipelines.types import Evaluation
from service.metrics.learner import LearnerMetrics
from service.settings import Settings
from storage.artifacts import Artifacts
from storage.database import Cursor, Database
from storage.decisions import chain
from storage.guards import end_guard, end_guards_of_others, last_ended, open_guards, put_guard
from storage.labels import Judged, judged_audits
from storage.live import LiveStudent, LiveTask
from storage.reports import read_report
from storage.traffic import NewestMix, newest_mix

log = structlog.get_logger()

MIX_OVER = timedelta(days=30)  # traffic that is older is nobody's newest
YEAR = timedelta(days=365)
# A false alarm of the audits a year on average, and never more often than after so many audits.
FEWEST_AUDITS_A_YEAR = 2_000
SHORTEST_SPAN = timedelta(days=1)
SHORTEST_GUARD = timedelta(minutes=1)  # of the mix: it does not flicker
MOST_KEPT = 20_000  # audits of the detector: a break is found within far fewer


@dataclass
class _Watched:
    """The audits of one champion, each counted once, in the order in which labels came."""

    champion: str
    since: datetime
    detector: Detector
    position: datetime
    first: datetime | None = None  # when the first label came
    limit: float = 0.0  # of the evidence: so many audits to a false alarm on average
    at_position: set[str] = field(default_factory=set)
    audits: list[Judged] = field(default_factory=list)  # the detector's newest, in its order

    def add(self, audits: Sequence[Judged]) -> None:
        if audits:
            self.first = self.first or audits[0].labelled_at
            self.detector = self.detector.after_all([one.agrees for one in audits])
            self.audits = [*self.audits, *audits][-MOST_KEPT:]

    def since_the_break(self) -> list[Judged]:
        """Those from where the detector has the break."""
        gone = self.detector.seen - len(self.audits)
        return self.audits[max(0, self.detector.since - gone) :]

    def audits_a_year(self, now: datetime) -> float:
        """How many there would be at this pace: the mean time to a false alarm."""
        if self.first is None:
            return FEWEST_AUDITS_A_YEAR
        span = max(now - self.first, SHORTEST_SPAN)
        return max(FEWEST_AUDITS_A_YEAR, self.detector.seen * (YEAR / span))


class Guarding:
    """Looks at one task after the other; what it finds stands in the database, for publication."""

    def __init__(
        self,
        *,
        database: Database,
        artifacts: Artifacts,
        settings: Settings,
        live: Callable[[str], LiveTask],
        metrics: LearnerMetrics,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._settings = settings
        self._live = live
        self._metrics = metrics
        self._now = now
        self._evaluations: dict[str, Evaluation] = {}  # by report
        self._watched: dict[str, _Watched] = {}  # by task

    def look(self, task: str) -> tuple[Guard, ...]:
        """Raise, change and end guards of the task's champion; those that stand now."""
        guards = self._found(task)
        for kind in get_args(GuardKind):
            standing = any(guard.kind == kind for guard in guards)
            self._metrics.guards.labels(task=task, kind=kind).set(standing)
        return guards

    def _found(self, task: str) -> tuple[Guard, ...]:
        champion = self._live(task).champion
        if champion is None:
            return ()
        with self._database.snapshot() as tx:
            everybodys = open_guards(tx)
        if any(of == task and student != champion.student for of, student in everybodys):
            with self._database.transaction() as tx:
                end_guards_of_others(tx, task, champion.student, self._now())
        evaluation = self._evaluation(champion)
        approved = evaluation.threshold.value if evaluation else None
        if evaluation is None or approved is None:
            return ()
        with self._database.snapshot() as tx:
            standing = {one.kind: one for one in everybodys.get((task, champion.student), ())}
            found: dict[GuardKind, Guard | None] = {
                "mix": self._mix(tx, task, champion, evaluation, standing.get("mix")),
                "audits": self._audits(tx, task, champion, approved, standing.get("audits")),
                "novel": self._novel(tx, task, champion, evaluation, standing.get("novel")),
            }
        for kind, wanted in found.items():
            self._change(standing.get(kind), wanted)
        return tuple(guard for guard in found.values() if guard is not None)

    def _change(self, before: Guard | None, after: Guard | None) -> None:
        if before == after:
            return
        with self._database.transaction() as tx:
            if after is not None:
                put_guard(tx, after)
            elif before is not None:
                end_guard(tx, before, self._now())
        guard = after or before
        assert guard is not None
        about = {"task": guard.task, "kind": guard.kind, "reason": guard.reason}
        if after is not None and after.kind == "audits":
            log.warning("threshold_guarded", threshold=after.threshold, **about)
        elif after is not None:  # mostly over within minutes; an alert goes by how long it stands
            log.info("threshold_guarded", threshold=after.threshold, **about)
        else:
            log.info("threshold_as_approved", **about)

    def _evaluation(self, champion: LiveStudent) -> Evaluation | None:
        """What the champion was approved by; None where it cannot be read any more."""
        if champion.report not in self._evaluations:
            try:
                found = read_report(self._artifacts, champion.report).evaluation
            except ArtifactDamaged as error:
                log.error("report_unreadable", student_version=champion.name, error=str(error))
                return None
            self._evaluations[champion.report] = found
        return self._evaluations[champion.report]

    # --- The mix of the traffic, without labels ---

    def _newest(
        self, tx: Cursor, task: str, champion: LiveStudent, *, longer: bool
    ) -> list[NewestMix]:
        """The newest traffic; `longer`: and of twice as long, which has to be well too before a
        guard ends."""
        since = max(self._now() - MIX_OVER, chain(tx, task).reigns[-1].decided_at)
        windows = (WINDOW, 2 * WINDOW) if longer else (WINDOW,)
        found = [newest_mix(tx, task, champion.name, since, events) for events in windows]
        return [mix for mix in found if mix.near]

    def _mix(
        self,
        tx: Cursor,
        task: str,
        champion: LiveStudent,
        evaluation: Evaluation,
        standing: Guard | None,
    ) -> Guard | None:
        approved, shown = evaluation.threshold.value, evaluation.shown
        if shown is None or approved is None:  # a report from before there was a reach
            return None
        now, target = self._now(), evaluation.threshold.target
        found = [
            threshold_for_mix(mix.near, mix.far, shown, approved, target)
            for mix in self._newest(tx, task, champion, longer=standing is not None)
        ]
        wanted = [threshold for threshold in found if threshold is not None]
        threshold = max(wanted) if len(wanted) == len(found) and wanted else None
        if not found or threshold == approved:
            return standing if standing and now - standing.raised_at < SHORTEST_GUARD else None
        reason = (
            f"The newest prompts are further from what {champion.name} was trained on than those "
            "that its certificate rests on: of new topics, perhaps, or another app."
        )
        return _raised(standing, task, champion, "mix", threshold, reason, now, since=now)

    def _novel(
        self,
        tx: Cursor,
        task: str,
        champion: LiveStudent,
        evaluation: Evaluation,
        standing: Guard | None,
    ) -> Guard | None:
        """Nothing more is asked about than was; but a successor is wanted, judged on the new."""
        shown, approved = evaluation.shown, evaluation.threshold.value
        if shown is None:
            return None
        now = self._now()
        beyond = evaluation.items - sum(shown.near) - sum(shown.far)
        many, share = False, 0.0
        for mix in self._newest(tx, task, champion, longer=standing is not None):
            seen = sum(mix.near) + sum(mix.far)
            many = many or many_are_beyond(mix.novel, seen, beyond, evaluation.items)
            share = max(share, mix.novel / max(seen, 1))
        if not many:
            return None
        reason = (
            standing.reason
            if standing
            else (
                f"{share:.0%} of the newest prompts are further from what {champion.name} was "
                f"trained on than it is trusted; {beyond / evaluation.items:.0%} of the held-out "
                "items were."
            )
        )
        return _raised(standing, task, champion, "novel", approved, reason, now, since=now)

    # --- The audits of what was served ---

    def _audits(
        self,
        tx: Cursor,
        task: str,
        champion: LiveStudent,
        approved: float,
        standing: Guard | None,
    ) -> Guard | None:
        now, target = self._now(), self._settings.tasks[task].target
        if standing is not None:
            self._watched.pop(task, None)  # begins anew when this one has ended
            found = judged_audits(tx, task, champion.name, standing.since, standing.since)
            again = recertify(
                [one.confidence for one in found],
                [one.agrees for one in found],
                approved=approved,
                target=target,
            )
            if again.threshold == approved:
                return None
            if again.threshold == standing.threshold:
                return standing
            return replace(standing, threshold=again.threshold, changed_at=now)
        watched = self._extended(tx, task, champion, target)
        # Never lower than before: a slower pace makes no old evidence an alarm.
        watched.limit = max(watched.limit, watched.audits_a_year(now))
        if not watched.detector.alarmed(watched.limit):
            return None
        recent = watched.since_the_break()
        wrong = sum(not one.agrees for one in recent)
        again = recertify(
            [one.confidence for one in recent],
            [one.agrees for one in recent],
            approved=approved,
            target=target,
        )
        reason = (
            f"{wrong} of the last {len(recent)} audited answers that {champion.name} gave alone "
            f"disagreed with the teacher; {target:.1%} agreement is promised."
        )
        since = recent[0].labelled_at if recent else now
        stricter = again.threshold if again.threshold != approved else None
        return _raised(None, task, champion, "audits", stricter, reason, now, since=since)

    def _extended(self, tx: Cursor, task: str, champion: LiveStudent, target: float) -> _Watched:
        """The detector with the audits whose labels came since the last look."""
        promoted = chain(tx, task).reigns[-1].decided_at
        since = max(promoted, last_ended(tx, task, champion.student, "audits") or promoted)
        watched = self._watched.get(task)
        if watched is None or (watched.champion, watched.since) != (champion.name, since):
            watched = _Watched(champion.name, since, Detector(target=target), since)
            self._watched[task] = watched
        found = judged_audits(tx, task, champion.name, since, watched.position)
        new = [one for one in found if one.event_id not in watched.at_position]
        if new:
            watched.position = new[-1].labelled_at
            at = {one.event_id for one in found if one.labelled_at == watched.position}
            watched.at_position = at
            watched.add([one for one in new if one.promised])
        return watched


def _raised(
    standing: Guard | None,
    task: str,
    champion: LiveStudent,
    kind: GuardKind,
    threshold: float | None,
    reason: str,
    now: datetime,
    *,
    since: datetime,
) -> Guard:
    if standing is not None:
        changed = now if standing.threshold != threshold else standing.changed_at
        return replace(standing, threshold=threshold, changed_at=changed)
    return Guard(
        task=task,
        student=champion.student,
        kind=kind,
        raised_at=now,
        since=since,
        threshold=threshold,
        reason=reason,
        changed_at=now,
    )
