"""Live estimates: what the watch sees of a task, and what of it Prometheus is shown."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from prometheus_client import Gauge

from pipelines.statistics.coverage import trusted_coverage
from pipelines.statistics.estimate import (
    AgreementByKind,
    Audit,
    Kind,
    KindAgreement,
    TrafficSums,
    live_agreement_by_kind,
)
from pipelines.types import Estimate
from service.metrics.learner import LearnerMetrics
from service.operator.status import Figures, HistoryPoint, MissingAudits
from service.settings import Settings
from storage.database import Cursor, Database
from storage.decisions import chain
from storage.estimates import StoredEstimate, add_estimate, estimate_history, first_estimate
from storage.evaluations import latest_evaluation
from storage.guards import last_alarm
from storage.labels import (
    LabelCounts,
    audited,
    count_labels,
    mean_label_cost,
    spend_since,
)
from storage.live import LiveStudent, LiveTask
from storage.samples import count_by_status
from storage.traffic import WindowSums, confidence_histogram, window_sums

# Coverage of the shortest of these windows that holds enough events.
COVERAGE_WINDOWS = tuple(timedelta(minutes=minutes) for minutes in (2, 10, 60, 1440))
ENOUGH_EVENTS = 500
HISTORY_STEP = timedelta(seconds=20)
HISTORY_SHOWN = timedelta(days=1)
HISTORY_POINTS = 240  # a chart has only so many pixels
BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)


class Estimates:
    """Looks at one task: coverage, agreement, labels and money."""

    def __init__(
        self,
        *,
        database: Database,
        settings: Settings,
        metrics: LearnerMetrics,
        live: Callable[[str], LiveTask],
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._settings = settings
        self._metrics = metrics
        self._live = live
        self._now = now
        self._stored_at: dict[str, datetime] = {}

    def look(self, task: str) -> tuple[Figures, LabelCounts]:
        """The figures of now, stored for the charts and shown, and the labels that they count."""
        now = self._now()
        live = self._live(task)
        with self._database.snapshot() as tx:
            counts = count_labels(tx, task)
            total = window_sums(tx, task, None, BEGINNING, now + timedelta(days=1))
            day = window_sums(tx, task, None, now - timedelta(days=1), now + timedelta(days=1))
            figures = self._money(tx, task, counts, total, day, now)
            if live.champion is not None:
                figures = self._quality(tx, task, live.champion, figures, now)
            pending = count_by_status(tx)
        self._remember(task, figures, now)
        with self._database.snapshot() as tx:
            since = first_estimate(tx, task, now - HISTORY_SHOWN) or now
            step = max(HISTORY_STEP, (now - since) / HISTORY_POINTS)
            history = estimate_history(tx, task, since, step)
        self._show(task, figures, counts, live, pending)
        return (
            replace(
                figures,
                pending_samples=pending.get((task, "pending"), 0),
                history=tuple(map(_point, history)),
            ),
            counts,
        )

    def _money(
        self,
        tx: Cursor,
        task: str,
        counts: LabelCounts,
        total: WindowSums,
        day: WindowSums,
        now: datetime,
    ) -> Figures:
        today = now.replace(hour=0, minute=0, second=0, microsecond=0)
        cost = mean_label_cost(tx, task)
        spent = spend_since(tx, task, BEGINNING).money
        answered = total.served + total.teacher_served
        return Figures(
            labels_bought=counts.bought,
            labels_given=counts.given,
            labels_by_side={
                "training": counts.training,
                "held_out": counts.held_out_groups,
            },
            spend_today=spend_since(tx, task, today).money,
            budget_today=self._settings.budget.label_money,
            saved_total=total.served * cost - spent,
            events_total=total.events,
            served_by_student_share=total.served / answered if answered else None,
            events_per_day=float(day.events),
            forced_share=day.forced / day.events if day.events else None,
            novel_share=day.novel / day.assessed if day.assessed else None,
            cost_per_call=cost,
        )

    def _quality(
        self, tx: Cursor, task: str, champion: LiveStudent, figures: Figures, now: datetime
    ) -> Figures:
        evaluation = latest_evaluation(tx, task, champion.student)
        found = self._agreement(tx, task, champion, now)
        overall = found.overall if found else None
        self._metrics.audit_labels.labels(task=task).set(overall.estimate.n if overall else 0)
        self._metrics.audit_unanswered.labels(task=task).set(overall.unanswered if overall else 0)
        return replace(
            figures,
            serves_nothing=champion.threshold is None,
            trusted_coverage=_coverage(tx, task, champion, now),
            certified_coverage=evaluation.coverage if evaluation else None,
            agreement=_known(overall),
            served_agreement=_known(found.kind("student")) if found else None,
            served_missing=_missing(found.kind("student")) if found else None,
            forced_agreement=_known(found.kind("forced")) if found else None,
        )

    def _agreement(
        self, tx: Cursor, task: str, champion: LiveStudent, now: datetime
    ) -> AgreementByKind | None:
        """Of what the student served as promised, of what it had to answer, and of the rest.

        Since its promotion, or since the alarm that its audits raised last: an average over what
        was before would hide what is. Whole minutes only, because the sums are kept by the minute.
        """
        begun = max(
            chain(tx, task).reigns[-1].decided_at,
            last_alarm(tx, task, champion.student) or BEGINNING,
        )
        since = begun.replace(second=0, microsecond=0)
        until = now.replace(second=0, microsecond=0)
        sums = window_sums(tx, task, champion.name, since, until)
        if not sums.assessed:
            return None
        audits: dict[str, list[Audit]] = {"student": [], "forced": [], "teacher": []}
        for one in audited(tx, task, champion.name, since, until):
            kind = one.server if one.server in audits else "teacher"
            audits[kind].append(Audit(one.predicted, one.agrees))
        return live_agreement_by_kind(
            [
                Kind(name=name, sums=part, audits=audits[name])
                for name, part in _by_server(sums).items()
            ]
        )

    def _remember(self, task: str, figures: Figures, now: datetime) -> None:
        stored = self._stored_at.get(task)
        if stored is not None and now - stored < HISTORY_STEP:
            return
        self._stored_at[task] = now
        estimate = StoredEstimate(
            at=now,
            coverage=figures.trusted_coverage,
            agreement=figures.agreement,
            spend=figures.spend_today,
        )
        with self._database.transaction() as tx:
            add_estimate(tx, task, estimate)

    def _show(
        self,
        task: str,
        figures: Figures,
        counts: LabelCounts,
        live: LiveTask,
        statuses: Mapping[tuple[str, str], int],
    ) -> None:
        metrics = self._metrics
        for status in ("pending", "held", "failed"):
            metrics.samples_waiting.labels(task=task, status=status).set(
                statuses.get((task, status), 0)
            )
        metrics.saved_money.labels(task=task).set(figures.saved_total)
        metrics.agreement_target.labels(task=task).set(self._settings.tasks[task].target)
        metrics.labels_stored.labels(task=task, side="training").set(counts.training)
        metrics.labels_stored.labels(task=task, side="held_out").set(counts.held_out_groups)
        if live.champion is None:
            return
        threshold = live.champion.threshold
        metrics.threshold.labels(task=task).set(-1 if threshold is None else threshold)
        metrics.certified_coverage.labels(task=task).set(figures.certified_coverage or 0.0)
        set_bounds(metrics.coverage, figures.trusted_coverage, task=task)
        set_bounds(metrics.agreement, figures.agreement, task=task, scope="assessed")
        set_bounds(metrics.agreement, figures.served_agreement, task=task, scope="served")
        set_bounds(metrics.agreement, figures.forced_agreement, task=task, scope="forced")
        metrics.forced_share.labels(task=task).set(figures.forced_share or 0.0)


def _coverage(tx: Cursor, task: str, champion: LiveStudent, now: datetime) -> Estimate | None:
    """Of the shortest window with enough events, else of the longest."""
    counts: list[int] = []
    for window in COVERAGE_WINDOWS:
        since = (now - window).replace(second=0, microsecond=0)
        counts = confidence_histogram(tx, task, champion.name, since, now + timedelta(minutes=1))
        if sum(counts) >= ENOUGH_EVENTS:
            break
    return trusted_coverage(counts, champion.threshold) if sum(counts) else None


def _by_server(sums: WindowSums) -> dict[str, TrafficSums]:
    """What the student served as promised, what it had to answer, and what the teacher did."""
    return {
        "student": TrafficSums(
            events=sums.served - sums.forced,
            predicted=sums.served_sum_f - sums.forced_sum_f,
        ),
        "forced": TrafficSums(
            events=sums.forced,
            predicted=sums.forced_sum_f,
        ),
        "teacher": TrafficSums(
            events=sums.assessed - sums.served,
            predicted=sums.sum_f - sums.served_sum_f,
        ),
    }


def _known(found: KindAgreement | None) -> Estimate | None:
    """None without a label: predicted agreement is no measurement."""
    return found.estimate if found is not None and found.estimate.n else None


def _missing(found: KindAgreement | None) -> MissingAudits | None:
    if found is None or not found.unanswered:
        return None
    return MissingAudits(count=found.unanswered, worst=found.worst, best=found.best)


def set_bounds(gauge: Gauge, estimate: Estimate | None, **labels: str) -> None:
    """Without an estimate there is no number: the last one may be another champion's."""
    for bound in ("value", "low", "high"):
        number = math.nan if estimate is None else getattr(estimate, bound)
        gauge.labels(**labels, bound=bound).set(number)


def _point(stored: StoredEstimate) -> HistoryPoint:
    agreement = stored.agreement
    return HistoryPoint(
        at=stored.at,
        coverage=stored.coverage.value if stored.coverage else None,
        coverage_low=stored.coverage.low if stored.coverage else None,
        coverage_high=stored.coverage.high if stored.coverage else None,
        agreement=agreement.value if agreement else None,
        low=agreement.low if agreement else None,
        high=agreement.high if agreement else None,
        spend=stored.spend,
    )
