"""Has the champion made things worse? Both it and the version before answer the same audits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import structlog

from pipelines.statistics.sequences import pair_e_value
from pipelines.types import PairCounts, StudentAnswer
from service.learner.assessor import Asked
from service.metrics.learner import LearnerMetrics
from service.planes import Role
from service.sections import RollbackSettings
from storage.database import Database
from storage.decisions import chain
from storage.labels import AuditedPrompt, audited_prompts
from storage.live import LiveTask

log = structlog.get_logger()

MOST_AT_ONCE = 128
NOTHING_YET = PairCounts(wins=0, losses=0, ties=0)


class Answers(Protocol):
    """Who asks a gateway's students."""

    def assess(
        self, task: str, events: Sequence[Asked], role: Role = ...
    ) -> dict[str, StudentAnswer]: ...


@dataclass
class _Comparison:
    """The bets on one champion. Each audited event is bet on once, in the order of the events."""

    champion: str
    since: datetime  # events before it are done with
    at_since: set[str] = field(default_factory=set)  # and these, of that very moment
    pairs: PairCounts = NOTHING_YET  # a win is the previous version's
    told: bool = False

    def bet(self, prompt: AuditedPrompt, previous: str) -> None:
        before, now = previous == prompt.label, prompt.student_label == prompt.label
        self.pairs = PairCounts(
            wins=self.pairs.wins + (before and not now),
            losses=self.pairs.losses + (now and not before),
            ties=self.pairs.ties + (before == now),
        )

    def note(self, prompt: AuditedPrompt) -> None:
        if prompt.occurred_at > self.since:
            self.since, self.at_since = prompt.occurred_at, set()
        self.at_since.add(prompt.event_id)


class Regression:
    """Pairs champion and previous version on the audit draws since the approval.

    Those are uniform over the traffic as it is, and newer than what either trained on. The
    pairing takes drift out: a harder mix of prompts is harder for both. The evidence is an
    e-process (`pipelines.statistics.sequences`), so that looking at it at every tick costs
    nothing; it starts anew with each approval, and from the stored audits after a restart.
    """

    def __init__(
        self,
        *,
        database: Database,
        settings: RollbackSettings,
        answers: Answers,
        live: Callable[[str], LiveTask],
        metrics: LearnerMetrics,
    ) -> None:
        self._database = database
        self._settings = settings
        self._answers = answers
        self._live = live
        self._metrics = metrics
        self._comparisons: dict[str, _Comparison] = {}

    def look(self, task: str) -> str | None:
        """Why the task should be rolled back, if it should. Asks for at most 128 answers."""
        previous = self._live(task).previous
        comparison = self._comparison(task)
        if comparison is None or previous is None:
            self._metrics.regression_evidence.labels(task=task).set(0.0)
            return None
        self._extend(task, comparison, previous.name)
        evidence = pair_e_value(comparison.pairs, margin=-self._settings.margin)
        self._metrics.regression_evidence.labels(task=task).set(evidence)
        if evidence < 1.0 / self._settings.alpha:
            return None
        reason = self._sentence(task, comparison.pairs, evidence)
        if not comparison.told:
            comparison.told = True
            log.error("regression_found", task=task, reason=reason)
        return reason

    def _comparison(self, task: str) -> _Comparison | None:
        """The running one; None where there is nothing to go back to, or it was gone back to."""
        live = self._live(task)
        with self._database.snapshot() as tx:
            made = chain(tx, task).reigns
        if live.champion is None or not made or made[-1].action != "approve":
            return None
        running = self._comparisons.get(task)
        if running is None or running.champion != live.champion.name:
            running = _Comparison(live.champion.name, made[-1].decided_at)
            self._comparisons[task] = running
        return running

    def _extend(self, task: str, comparison: _Comparison, previous: str) -> None:
        """Bet on the audits whose labels have come since."""
        with self._database.snapshot() as tx:
            found = audited_prompts(
                tx,
                task,
                comparison.champion,
                comparison.since,
                MOST_AT_ONCE + len(comparison.at_since),
            )
        new = [prompt for prompt in found if prompt.event_id not in comparison.at_since]
        answers = self._answers.assess(task, new, "previous") if new else {}
        if {answer.version for answer in answers.values()} != {previous}:
            return  # no gateway, or it has not caught up
        for at, prompt in enumerate(new):
            answer = answers.get(prompt.event_id)
            if answer is not None:
                comparison.bet(prompt, answer.label)
            elif at > 0:
                return  # a slow student has not come to it; at the front next time
            comparison.note(prompt)

    def _sentence(self, task: str, pairs: PairCounts, evidence: float) -> str:
        champion, previous = self._live(task).champion, self._live(task).previous
        judged = pairs.wins + pairs.losses + pairs.ties
        return (
            f"Of {judged:,} audited prompts since the approval, {pairs.wins} were right with "
            f"{previous.name if previous else 'the version before'} and are wrong with "
            f"{champion.name if champion else 'the champion'}, {pairs.losses} the other way "
            f"round (e-value {evidence:.3g}; {1 / self._settings.alpha:g} is enough)."
        )
