"""Labels that cost the label budget nothing: a teacher's answer, or what a person corrected."""

from dataclasses import dataclass

from pipelines.ask import TeacherPolicy, cost
from pipelines.identities import prompt_version
from pipelines.label import read_label
from pipelines.types import Label, PromptEvent, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPolicy:
    """Under which terms an answer that was there anyway is a label; None terms: it is none."""

    terms: str | None
    teacher: TeacherPolicy


def given_label(
    event: PromptEvent, teacher_label: str | None, task: Task, policy: GivenPolicy
) -> Label | None:
    """The label that came with the event. What a person says goes before what a teacher says."""
    corrected = _correction(event, task)
    label = corrected or teacher_label
    if policy.terms is None or label is None:
        return None
    usage = None if corrected else event.usage
    prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    return Label(
        event_id=event.event_id,
        label=label,
        source="correction" if corrected else "given",
        teacher_model="a person" if corrected else event.teacher_model or "",
        prompt_version=prompt_version(task),
        terms="" if corrected else policy.terms,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost=cost(prompt, completion, policy.teacher),
    )


def _correction(event: PromptEvent, task: Task) -> str | None:
    if event.feedback is None or event.feedback.correction is None:
        return None
    return read_label(event.feedback.correction, task) or (
        event.feedback.correction if event.feedback.correction in task.labels else None
    )
