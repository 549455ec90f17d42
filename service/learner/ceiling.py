"""What is known of the teacher itself: how far it agrees with itself, and where it errs."""

from dataclasses import replace

from pipelines.identities import prompt_version
from pipelines.statistics.ceiling import self_agreement, teacher_errors
from pipelines.types import Estimate, Task
from service.operator.status import Figures
from storage.database import Cursor
from storage.votes import corrected, count_parked, same_again


def ceiling_of(tx: Cursor, task: Task) -> Estimate | None:
    """How often the teacher says the same when it is asked again; None before it was."""
    found = same_again(tx, task.name, prompt_version(task))
    return self_agreement(sum(one.hits for one in found), sum(one.of for one in found))


def with_teacher(tx: Cursor, task: Task, figures: Figures) -> Figures:
    """The figures of a task with those of its teacher."""
    again = same_again(tx, task.name, prompt_version(task))
    return replace(
        figures,
        ceiling=ceiling_of(tx, task),
        teacher_errors=tuple(teacher_errors(again, corrected(tx, task.name))),
        parked=count_parked(tx, task.name),
    )
