"""What a batch of records means: events, dead letters, samples and labels that cost nothing.

One pure object, called by whoever reads records: ingest, the rebuild of a lost database, a
backtest. They keep what is theirs: where records come from, which events were chosen before, and
what is written when.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime

import msgspec

from pipelines.ask import TeacherPolicy, cost
from pipelines.assess import assess
from pipelines.chat_request import NOT_ANSWERED
from pipelines.decode import decode
from pipelines.errors import InvalidMessage
from pipelines.identities import prompt_version
from pipelines.label import read_label
from pipelines.records.common import DecodePolicy
from pipelines.render import classifier_text
from pipelines.sample import Choice, SamplingPolicy, choose, choose_feedback
from pipelines.shape import shape
from pipelines.tally import Tally, TrafficKey, tally
from pipelines.types import (
    Assessment,
    DeadLetter,
    Draws,
    Label,
    PromptEvent,
    Record,
    Sample,
    SampleReason,
    Side,
    SourceOffset,
    Task,
)

FEEDBACK_ON = "feedback_on"  # attribute of a feedback event: which event it is about
UNSURE = "unsure"  # attribute: why the student's answer was not given


class Assessed(msgspec.Struct, frozen=True, gc=False):
    """An event, how likely its answer is wrong, and the label that a teacher gave it, if any."""

    event: PromptEvent
    assessment: Assessment
    teacher_label: str | None

    @property
    def is_feedback(self) -> bool:
        """Whether it is what a person said about an earlier event: no traffic of its own."""
        return FEEDBACK_ON in self.event.attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the settings say about records, draws, and whose word is a label."""

    tasks: Mapping[str, Task]
    decoding: DecodePolicy
    teacher: TeacherPolicy
    terms: str | None  # None: an answer that was there anyway is no label

    def read(
        self, topic: str, records: Iterable[Record], incarnation: str
    ) -> tuple[list[PromptEvent], list[DeadLetter]]:
        """The events of some records, and a dead letter for each that cannot be read."""
        events, letters = [], []
        for partition, offset, value, headers, timestamp_ms in records:
            source = SourceOffset(topic, partition, offset, incarnation)
            try:
                events.append(decode(value, headers, source, timestamp_ms, self.decoding))
            except InvalidMessage as error:
                letters.append(
                    DeadLetter(
                        topic=topic,
                        partition=partition,
                        offset=offset,
                        payload=value,
                        headers=headers,
                        reason=str(error),
                    )
                )
        return events, letters

    def assessed(self, event: PromptEvent) -> Assessed:
        """What is known of an event without asking anybody."""
        if event.task is None:
            return Assessed(event, Assessment(failure_probability=1.0, segment=""), None)
        task = self.tasks[event.task]
        return Assessed(event, assess(event, task), read_label(event.teacher_answer, task))

    def sums(self, items: Iterable[Assessed]) -> dict[TrafficKey, Tally]:
        """The traffic sums: of all prompts that a student may answer, chosen or not."""
        prompts = (item for item in items if not item.is_feedback and not item.event.past)
        return tally((item.event, item.assessment.segment) for item in prompts)

    def past(self, items: Iterable[Assessed]) -> Counter[tuple[datetime, str, str]]:
        """Requests that went past the student, by minute, task and reason.

        Those of `NOT_ANSWERED` are in the traffic sums too: they are prompts as all others.
        """
        found: Counter[tuple[datetime, str, str]] = Counter()
        for event in (item.event for item in items if not item.is_feedback):
            why = event.attributes.get(UNSURE, "")
            reason = event.past or (why if why in NOT_ANSWERED else "")
            if reason and event.task is not None:
                found[event.occurred_at.replace(second=0, microsecond=0), event.task, reason] += 1
        return found

    def shapes(self, items: Iterable[Assessed]) -> Counter[tuple[date, str, str]]:
        """What answers look like that are labels and no student's, by day, task and shape."""
        found: Counter[tuple[date, str, str]] = Counter()
        for item in items:
            event, answer = item.event, item.event.answer
            if event.task is None or event.past or event.served_by == "student" or not answer:
                continue
            if not item.is_feedback and read_label(answer, self.tasks[event.task]) is not None:
                found[event.occurred_at.date(), event.task, shape(answer)] += 1
        return found

    def chosen(self, item: Assessed, policy: SamplingPolicy) -> Choice | None:
        """What the draws say; None for the many events that are only counted."""
        if item.event.past:
            return None
        if item.is_feedback:
            return choose_feedback(item.assessment)
        # Of a record that brings its own correction too: its feedback is the reason to choose it,
        # and no draw may count it among the answers of a teacher.
        usable = self.terms is not None and item.teacher_label is not None
        return choose(item.event, item.assessment, policy, has_teacher_label=usable)

    def text(self, event: PromptEvent) -> str | None:
        """What a student reads of an event; None where that is nothing, or nobody's."""
        if event.task is None:
            return None
        text = classifier_text(event.messages, self.tasks[event.task])
        return text if text.strip() else None

    def free_label(self, item: Assessed) -> Label | None:
        """The label that came with the event: a person's word goes before a teacher's."""
        event = item.event
        if self.terms is None or event.task is None:
            return None
        task = self.tasks[event.task]
        corrected = _correction(event, task)
        label = corrected or item.teacher_label
        if label is None:
            return None
        usage = None if corrected else event.usage
        prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Label(
            event_id=event.event_id,
            label=label,
            source="correction" if corrected else "given",
            teacher_model="a person" if corrected else event.teacher_model or "",
            prompt_version=prompt_version(task),
            terms="" if corrected else self.terms,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost=cost(prompt, completion, self.teacher),
        )


def sample_of(
    item: Assessed,
    text: str,
    settled: tuple[SampleReason, Draws],
    place: tuple[str, Side],
    policy_version: str,
) -> Sample:
    """A chosen event as it is stored. `place`: its near-duplicate group, and that group's side."""
    (reason, draws), (group_id, side) = settled, place
    return Sample(
        event=item.event,
        text=text,
        reason=reason,
        draws=draws,
        group_id=group_id,
        side=side,
        assessment=item.assessment,
        policy_version=policy_version,
    )


def _correction(event: PromptEvent, task: Task) -> str | None:
    """In the form of the task's answers, or a label as it stands."""
    if event.feedback is None or event.feedback.correction is None:
        return None
    said = event.feedback.correction
    return read_label(said, task) or (said if said in task.labels else None)
