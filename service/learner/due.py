"""Whether a training is due: what the database knows, put to the trigger."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from pipelines.checks import groups_needed
from pipelines.rates import DAY, SHORTEST_WINDOW
from pipelines.statistics.coverage import coverage_drop
from pipelines.trigger import Due, NotDue, TriggerPolicy, TriggerState, is_retrain_due
from pipelines.types import StudentVersion
from service.operator.status import Figures
from service.settings import Settings
from storage.database import Cursor, Database
from storage.datasets import dataset_by_digest
from storage.decisions import chain
from storage.evaluations import latest_evaluation
from storage.labels import LabelCounts, count_training, gained_since
from storage.runs import runs
from storage.versions import versions


class Trigger:
    """Asks `pipelines.trigger` about one task."""

    def __init__(self, database: Database, settings: Settings, now: Callable[[], datetime]) -> None:
        self._database = database
        self._settings = settings
        self._now = now

    def due(
        self,
        task: str,
        figures: Figures,
        counts: LabelCounts,
        *,
        asked: bool,
        to_ask_again: int = 0,
    ) -> Due | NotDue:
        """With the reason, either way. `asked`: an operator wishes for it."""
        with self._database.snapshot() as tx:
            state = self._state(tx, task, figures, counts, asked)
        state = replace(state, to_ask_again=to_ask_again)
        trigger = self._settings.trigger
        return is_retrain_due(
            state,
            TriggerPolicy(
                min_labels=trigger.min_labels,
                min_groups=groups_needed(
                    self._settings.gate.min_groups, self._settings.tasks[task].target
                ),
                growth=trigger.growth,
                min_new_labels=trigger.min_new_labels,
                coverage_drop=trigger.coverage_drop,
                min_interval=trigger.min_interval,
            ),
        )

    def _state(
        self, tx: Cursor, task: str, figures: Figures, counts: LabelCounts, asked: bool
    ) -> TriggerState:
        past = runs(tx, task, 20)
        found = versions(tx, task)
        newest = found[0] if found else None
        judged = latest_evaluation(tx, task, newest.student) if newest else None
        decided = newest is not None and chain(tx, task).last(newest.student) is not None
        failures = 0
        for run in past:
            if run.status != "failed":
                break
            failures += 1
        labels_per_day, groups_per_day = _pace(tx, task, self._now())
        certified, live = figures.certified_coverage, figures.trusted_coverage
        return TriggerState(
            labels=counts.training,
            held_out_groups=counts.held_out_groups,
            has_student=newest is not None,
            labels_at_last_training=_training_labels(tx, newest),
            since_last_training=self._now() - past[0].started_at if past else None,
            candidate_waits=bool(judged and judged.promotable and not decided),
            training_runs=bool(past and past[0].status == "running"),
            certified_coverage=certified,
            coverage_drop=coverage_drop(certified, live)
            if certified is not None and live is not None
            else 0.0,
            drift_alarm=figures.shifted,
            serves_nothing=figures.serves_nothing and not figures.guards,
            asked_by_operator=asked,
            failures_in_a_row=failures,
            labels_per_day=labels_per_day,
            groups_per_day=groups_per_day,
        )


def _pace(tx: Cursor, task: str, now: datetime) -> tuple[float, float]:
    """Training labels and held-out groups a day, as they came over at most the last day."""
    labels, groups, first = gained_since(tx, task, now - DAY)
    days = max(now - first, SHORTEST_WINDOW) / DAY if first else 1.0
    return labels / days, groups / days


def _training_labels(tx: Cursor, newest: StudentVersion | None) -> int:
    """Labels that were there when the newest version's dataset was made.

    Not those that it trained on: curation drops some, and for ever the two would be compared.
    """
    dataset = dataset_by_digest(tx, newest.dataset) if newest else None
    if newest is None or dataset is None:
        return newest.labels_trained if newest else 0
    return count_training(tx, newest.task, dataset.cut_off)
