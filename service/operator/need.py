"""One thing that wants a person, and what the list of them is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from service.operator.status import (
    HoldReason,
    JobStatus,
    Labelling,
    Need,
    TaskStatus,
    TeacherStatus,
)
from service.purses import Emptied
from service.sections import BudgetSettings
from storage.leases import Spend
from storage.ledger import DaySpend


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedFacts:
    """All that the list is made from."""

    today: date
    tasks: Sequence[TaskStatus]
    failures: Mapping[str, int]  # trainings that failed in a row, by task
    jobs: Sequence[JobStatus]
    all_paused: bool
    teacher: TeacherStatus
    labelling: Labelling
    letters: int
    unknown: int
    held: HoldReason | None  # why ingest reads nothing
    labels: DaySpend
    emptied: Sequence[Emptied]  # shares of the label budget
    escalated: Spend
    budget: BudgetSettings
    budget_share: float  # from which on a budget is nearly spent


def need(
    kind: str,
    title: str,
    link: str,
    *,
    name: str = "",
    detail: str = "",
    text: str = "",
    over: str = "",
    task: str = "",
    urgent: bool = False,
    told: bool = True,
) -> Need:
    """`detail` is for the console only: it may quote an error."""
    return Need(
        name=name or kind,
        kind=kind,
        title=title,
        sentence=f"{title}: {detail}" if detail else title,
        link=link,
        text=text,
        over=over,
        task=task,
        urgent=urgent,
        told=told,
    )
