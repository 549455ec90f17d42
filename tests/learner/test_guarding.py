"""The threshold rises at once where traffic or audits call for it, and never falls below."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from core_samples import make_event
from operating import LABELS, TASK, Desk, open_desk
from prometheus_client import CollectorRegistry

from pipelines.guard import Guard
from pipelines.reach import Reach, Shown
from pipelines.statistics.coverage import CONFIDENCE_BINS, confidence_bin
from pipelines.tally import tally
from pipelines.types import Draws, Label, PromptEvent, Sample, SampleReason, Side, StudentAnswer
from service.learner.estimates import Estimates
from service.learner.guarding import Guarding
from service.metrics.learner import LearnerMetrics
from service.sections import TaskSettings
from storage.guards import last_shift, open_guards, recent_shifts
from storage.labels import add_labels
from storage.samples import add_samples
from storage.traffic import add_traffic

APPROVED = 0.62
SURE = 0.995
MINUTE = timedelta(minutes=1)


def bins(loose: int, sure: int) -> tuple[int, ...]:
    found = [0] * CONFIDENCE_BINS
    found[confidence_bin(APPROVED)], found[confidence_bin(SURE)] = loose, sure
    return tuple(found)


# As many held-out items near the training data as far, all of them right.
EVIDENCE = Shown(
    near=bins(50, 150), near_right=bins(50, 150), far=bins(50, 150), far_right=bins(50, 150)
)


def audit_of(event: PromptEvent) -> Sample:
    """As the audit draw chooses it, one in ten."""
    return Sample(
        event=event,
        text="where is it",
        reason=SampleReason.AUDIT,
        draws=Draws(audit=0.1),
        group_id=event.event_id,
        side=Side.TRAINING,
        assessment=None,
        policy_version="p",
    )


def label_of(event: PromptEvent, truth: str) -> Label:
    return Label(
        event_id=event.event_id,
        label=truth,
        source="given",
        teacher_model="large-1",
        prompt_version="1",
        terms="scripted",
        cost=0.0,
    )


class Watched:
    """A desk with an approved champion, and its guards, looked at minute by minute."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.metrics = LearnerMetrics(CollectorRegistry())
        version = desk.train()
        report = desk.evaluate(version, threshold=APPROVED, shown=EVIDENCE)
        desk.operations.approve(TASK, version.number, report=report, operator="ada")
        self.version = version.name
        self._numbers = count()
        self.guarding = self.started()
        self.desk.clock.at += MINUTE

    def started(self) -> Guarding:
        """As at a learner's start: what stands is in the database only."""
        return Guarding(
            database=self.desk.database,
            artifacts=self.desk.artifacts,
            settings=self.desk.settings,
            live=self.desk.board.live_task,
            metrics=self.metrics,
            now=self.desk.clock,
        )

    def look(self) -> tuple[Guard, ...]:
        """As the watch does, and the publication after it."""
        guards = self.guarding.look(TASK)
        self.desk.operations.settle()
        return guards

    def published(self) -> float | None:
        champion = self.desk.live().tasks[TASK].champion
        assert champion is not None
        return champion.threshold

    def traffic(
        self, *, near: int = 0, far: int = 0, beyond: int = 0, confidence: float = SURE
    ) -> None:
        """One minute of it, all served by the student."""
        sizes: tuple[tuple[Reach, int], ...] = (("near", near), ("far", far), ("beyond", beyond))
        events = [
            make_event(
                f"t{next(self._numbers)}",
                occurred_at=self.desk.clock.at,
                student=self._answer(confidence, reach=reach),
                served_by="student",
            )
            for reach, size in sizes
            for _ in range(size)
        ]
        with self.desk.database.transaction() as tx:
            add_traffic(tx, tally((event, "refund") for event in events))
        self.desk.clock.at += MINUTE

    def audits(
        self,
        right: int = 0,
        wrong: int = 0,
        *,
        confidence: float = SURE,
        unanswered: int = 0,
        unsure: str = "",
    ) -> None:
        """Audited answers of the student, in this order; `unanswered` ones have no label yet."""
        truths = [LABELS[0]] * right + [LABELS[1]] * wrong + [None] * unanswered
        now = self.desk.clock()
        samples, labels = [], []
        for truth in truths:
            event = make_event(
                f"a{next(self._numbers):06}",
                occurred_at=now,
                student=self._answer(confidence, unsure=unsure),
                served_by="student",
            )
            samples.append(audit_of(event))
            if truth is not None:
                labels.append(label_of(event, truth))
        with self.desk.database.transaction() as tx:
            add_samples(tx, samples, now)
            add_labels(tx, TASK, labels, now)

    def _answer(
        self, confidence: float, *, reach: Reach = "near", unsure: str = ""
    ) -> StudentAnswer:
        return StudentAnswer(
            version=self.version,
            label=LABELS[0],
            confidence=confidence,
            reach=reach,
            unsure=unsure,
        )

    def gauge(self, kind: str) -> float | None:
        registry = self.metrics.registry
        return registry.get_sample_value("flywheel_threshold_guarded", {"task": TASK, "kind": kind})


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    support = TaskSettings(models=["gpt-support"], labels=list(LABELS), target=0.9)
    with open_desk(tmp_path, tasks={TASK: support}) as desk:
        yield Watched(desk)


# --- The mix of the traffic ---


def test_traffic_like_the_evidence_leaves_the_approved_threshold(watched: Watched) -> None:
    watched.traffic(near=60, far=60)
    assert watched.look() == ()
    assert watched.published() == APPROVED
    assert watched.gauge("mix") == 0


def test_a_surplus_of_far_prompts_raises_the_threshold_where_it_is(watched: Watched) -> None:
    """The sure ones are as they were; it is the less sure ones that are of another kind."""
    watched.traffic(near=60, far=60)
    watched.traffic(far=100, confidence=APPROVED)
    (guard,) = watched.look()
    assert guard.kind == "mix"
    assert watched.published() is None, "the newest hundred are all of them far"

    watched.traffic(near=80, far=80)
    (guard,) = watched.look()
    assert guard.threshold is not None
    assert APPROVED < guard.threshold <= SURE
    assert watched.published() == guard.threshold
    assert watched.gauge("mix") == 1


def test_it_ends_when_the_longer_past_bears_it_and_not_before(watched: Watched) -> None:
    watched.traffic(far=120)
    (raised,) = watched.look()
    assert watched.published() is None

    watched.traffic(near=60, far=60)
    (still,) = watched.look()
    assert still.raised_at == raised.raised_at, "the newest hundred are well, the two before not"
    assert watched.published() is None

    watched.traffic(near=60, far=60)
    assert watched.look() == ()
    assert watched.published() == APPROVED
    assert watched.gauge("mix") == 0
    with watched.desk.database.snapshot() as tx:
        assert open_guards(tx) == {}
        assert recent_shifts(tx, watched.desk.clock(), 10) == [], "over within minutes"
        assert last_shift(tx, TASK, watched.desk.clock()) is None, "the evidence stays as it was"


def test_a_mix_that_stands_is_a_shift_that_later_evidence_counts_from(watched: Watched) -> None:
    watched.traffic(far=120)
    (raised,) = watched.look()
    assert not raised.is_shift(watched.desk.clock())
    for _ in range(10):
        watched.traffic(far=120)
        watched.look()
    now = watched.desk.clock()
    assert raised.is_shift(now)
    with watched.desk.database.snapshot() as tx:
        assert last_shift(tx, TASK, now) == raised.since
        assert [one.kind for one in recent_shifts(tx, now, 10)] == ["mix"]


def test_a_guard_outlives_the_learner_that_raised_it(watched: Watched) -> None:
    watched.traffic(far=120)
    before = watched.look()
    watched.guarding = watched.started()
    assert watched.look() == before
    assert watched.published() is None


def test_another_champion_is_not_guarded_for_the_one_before(watched: Watched) -> None:
    watched.traffic(far=120)
    assert watched.look()
    later = watched.desk.train()
    report = watched.desk.evaluate(later, threshold=0.7, shown=EVIDENCE)
    watched.desk.operations.approve(TASK, later.number, report=report, operator="ada")
    assert watched.published() == 0.7
    assert watched.look() == ()
    assert watched.gauge("mix") == 0
    with watched.desk.database.snapshot() as tx:
        assert open_guards(tx) == {}, "that of the one before is over"


def test_a_champion_that_is_trusted_with_nothing_has_no_guard_to_show(watched: Watched) -> None:
    watched.traffic(far=120)
    watched.look()
    assert watched.gauge("mix") == 1
    later = watched.desk.train()
    report = watched.desk.evaluate(later, threshold=None)
    watched.desk.operations.approve(
        TASK, later.number, report=report, operator="ada", serves_nothing=True
    )
    assert watched.look() == ()
    assert watched.gauge("mix") == 0


def test_much_that_is_beyond_reach_wants_a_successor_and_raises_nothing(
    watched: Watched,
) -> None:
    """All of it escalates anyway, and of what does not nothing is known to be wrong."""
    watched.traffic(near=60, far=60)
    watched.traffic(near=40, far=40, beyond=60)
    (guard,) = watched.look()
    assert guard.kind == "novel"
    assert watched.published() == APPROVED
    assert (watched.gauge("novel"), watched.gauge("mix")) == (1, 0)

    watched.traffic(near=60, far=60)
    assert watched.look(), "of the newest two hundred, still many"
    watched.traffic(near=60, far=60)
    assert watched.look() == ()


# --- The audits ---


def test_audits_as_promised_raise_nothing(watched: Watched) -> None:
    for _ in range(10):
        watched.audits(right=28, wrong=2)
        assert watched.look() == ()
    assert watched.published() == APPROVED


def test_a_broken_promise_is_noticed_at_once_and_the_threshold_published(
    watched: Watched,
) -> None:
    watched.audits(right=40)
    assert watched.look() == ()
    before = watched.desk.clock()
    watched.audits(wrong=2)
    assert watched.look() == ()
    after = watched.desk.clock()
    watched.audits(wrong=7)
    (guard,) = watched.look()
    assert guard.kind == "audits"
    assert before < guard.since < after, "it began with the first wrong one"
    assert guard.reason.startswith("9 of the last 9 audited answers")
    assert watched.published() is None, "nothing is proven since"
    assert watched.gauge("audits") == 1


def test_audits_without_a_label_do_not_blind_it(watched: Watched) -> None:
    """The comparison of two versions waits for the oldest label; this must not."""
    watched.audits(unanswered=1)
    watched.audits(right=40, wrong=9)
    watched.audits(unanswered=50)
    (guard,) = watched.look()
    assert guard.kind == "audits"


def test_what_was_not_promised_breaks_no_promise(watched: Watched) -> None:
    watched.audits(wrong=30, confidence=0.3, unsure="below_threshold")
    assert watched.look() == ()


def test_audits_bring_it_back_to_the_approved_threshold_and_never_below(
    watched: Watched,
) -> None:
    watched.audits(right=40)
    watched.look()
    watched.audits(wrong=15)
    watched.look()
    seen = [watched.published()]
    assert seen == [None]
    for confidence in (SURE, APPROVED, 0.3):
        for _ in range(15):
            watched.audits(right=40, confidence=confidence)
            watched.look()
            seen.append(watched.published())
    assert SURE - 0.01 < max(one or 0 for one in seen) <= SURE, "first what the surest prove"
    assert seen[-1] == APPROVED
    assert min(one for one in seen if one is not None) == APPROVED
    assert watched.look() == (), "what was before it ended alarms nobody again"
    assert watched.gauge("audits") == 0


def test_after_it_has_ended_a_new_break_is_a_new_guard(watched: Watched) -> None:
    watched.audits(right=40)
    watched.audits(wrong=15)
    (first,) = watched.look()
    watched.audits(right=600)
    watched.audits(right=600, confidence=APPROVED)
    assert watched.look() == ()
    watched.audits(wrong=15)
    (second,) = watched.look()
    assert second.raised_at > first.raised_at


def test_live_agreement_begins_anew_with_an_alarm(watched: Watched) -> None:
    estimates = Estimates(
        database=watched.desk.database,
        settings=watched.desk.settings,
        metrics=watched.metrics,
        live=watched.desk.board.live_task,
        now=watched.desk.clock,
    )

    def audited() -> int | None:
        found = estimates.look(TASK)[0].served_agreement
        return found.n if found else None

    watched.audits(right=40)
    watched.traffic(near=200, far=200)
    assert audited() == 40

    watched.audits(wrong=9)
    watched.traffic(near=50, far=50)
    assert audited() == 49
    (guard,) = watched.look()
    assert audited() is None, "an average over what was before would hide what is"

    watched.desk.clock.at += MINUTE
    watched.audits(right=7)
    watched.traffic(near=50, far=50)
    assert audited() == 7
    assert guard.raised_at < watched.desk.clock.at
