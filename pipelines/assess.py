"""How likely the answer of one event is wrong, and why we think so."""

from pipelines.label import read_label
from pipelines.types import Assessment, PromptEvent, SampleReason, Task

NOVEL = "novel"  # why a student is unsure of a prompt beyond its reach


def assess(event: PromptEvent, task: Task) -> Assessment:
    """Judge one event from what is known without asking anybody.

    The student's confidence is calibrated, so one minus it is the probability of error.
    Without a student's answer nothing is known, and only the uniform draws can choose.
    """
    triggers = []
    if event.feedback is not None and (
        event.feedback.verdict == "bad" or event.feedback.correction is not None
    ):
        triggers.append(SampleReason.FEEDBACK)
    answered = event.served_by != "teacher" and event.answer is not None
    if answered and read_label(event.answer, task) is None:
        triggers.append(SampleReason.INVALID)
    if event.student is not None and event.student.unsure == NOVEL:
        triggers.append(SampleReason.NOVEL)
    return Assessment(
        failure_probability=1.0 - event.student.confidence if event.student else 1.0,
        segment=_segment(event, task),
        triggers=tuple(triggers),
    )


def _segment(event: PromptEvent, task: Task) -> str:
    """The predicted label, or the value of the attribute that the task is sliced by."""
    if task.segment_by != "label":
        return event.attributes.get(task.segment_by, "")
    if event.student is not None:
        return event.student.label
    return read_label(event.teacher_answer, task) or ""
