"""The topic read once more: the same sums, the same groups, and the samples that were chosen.

An event is a sample again where the ledger or a dataset knows it, where its label came for
nothing, or where one of the two uniform draws chose it. What only the learning draw had chosen,
and nobody was asked about, is left: new traffic brings more like it.
"""

from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pipelines.ask import ask, cost
from pipelines.curate import Group, NearDuplicates
from pipelines.intake import Assessed, Rules, sample_of
from pipelines.sample import Choice, SamplingPolicy, settle
from pipelines.types import (
    Draws,
    Label,
    PromptEvent,
    Record,
    Sample,
    SampleReason,
    Side,
    Task,
)
from service.care.rebuild.known import KnownItem, founders
from service.topics import Batch, TopicReader
from storage.database import Cursor, Database
from storage.dead_letters import add_dead_letters
from storage.groups import add_groups
from storage.imported import add_imported, unread
from storage.labels import add_labels
from storage.ledger import Call
from storage.past import add_past
from storage.samples import add_samples
from storage.shapes import add_shapes
from storage.traffic import add_traffic, store_offsets

MAX_RECORDS = 2_000
POLL_SECONDS = 1.0
TRAINING_SHARE = 0.8  # of all labels: one group in five judges
BY_REBUILD = "rebuilt"  # the policy version of what is a sample because it is known


class _Kept(NamedTuple):
    """A sample with the label that cost nothing, if it has one."""

    sample: Sample
    label: Label | None


@dataclass
class Replay:
    """Everything that the replay knows. Mutable: groups and counts grow as it reads."""

    rules: Rules
    policies: Mapping[str, SamplingPolicy]  # the settings' draws, by task
    cold_start_labels: Mapping[str, int]  # until there are so many of a task's training labels
    items: Mapping[str, KnownItem]
    calls: Mapping[str, Call]
    groups: dict[str, NearDuplicates]
    first_champions: Mapping[str, datetime]  # since when a task has had one
    counts: Counter[str] = field(default_factory=Counter)
    escalations: dict[datetime, list[float]] = field(default_factory=dict)  # money, by day
    first_offsets: dict[int, int] = field(default_factory=dict)  # of the first records found
    _unsaved: list[Group] = field(default_factory=list)
    _free_labels: int = 0

    def __post_init__(self) -> None:
        self._keys = {call.key for call in self.calls.values()}
        self._asked_at = sorted(call.at for call in self.calls.values())

    def seed(self, tx: Cursor) -> None:
        """The groups of the datasets first: their sides were decided, for ever."""
        for name, groups in self.groups.items():
            for item in founders(self.items, name):
                groups.restore(item.group_id, item.side, item.text)
                add_groups(tx, [Group(item.group_id, name, item.side, item.text)], item.at)

    def read(self, reader: TopicReader, database: Database, say: Callable[[str], None]) -> None:
        """Everything that the topic has had until now, and the offsets behind it."""
        identity = reader.identity()
        reader.seek({})
        total = left = sum(reader.lag().values())
        while True:
            batch = reader.poll(max_records=MAX_RECORDS, timeout_seconds=POLL_SECONDS)
            self._note_first(batch)
            self._store(batch, reader.name, identity, database)
            left -= len(batch.records)
            say(f"{total - max(0, left):,} of {total:,} records are read again")
            if left <= 0 or (not batch.next_offsets and not sum(reader.lag().values())):
                return

    def place(self, event_id: str, task: str, text: str) -> tuple[str, Side]:
        """The group of a text, and its side; of an event in a dataset as it was there."""
        item = self.items.get(event_id)
        if item is not None and item.task == task:
            return item.group_id, item.side
        place = self.groups[task].place(text, event_id)
        if place.founded:
            self._unsaved.append(Group(place.group_id, task, place.side, text))
        return place.group_id, place.side

    def save_groups(self, tx: Cursor, now: datetime) -> None:
        add_groups(tx, self._unsaved, now)
        self._unsaved.clear()

    def _note_first(self, batch: Batch) -> None:
        for record in batch.records:
            self.first_offsets.setdefault(record.partition, record.offset)

    def _store(self, batch: Batch, topic: str, identity: str, database: Database) -> None:
        if not batch.next_offsets:
            return
        read, letters = self.rules.read(topic, batch.records, identity)
        with database.snapshot() as tx:
            events = unread(tx, read)
        items = [self.rules.assessed(event) for event in events]
        written = _written_at(batch.records)
        kept = [found for item in items if (found := self._keep(item, written)) is not None]
        prompts = [item.event for item in items if not item.is_feedback]
        for prompt in prompts:
            self._count_escalation(prompt)
            self.counts["unassessed"] += self._was_assessed_by_learner(prompt)
        with database.transaction() as tx:
            add_traffic(tx, self.rules.sums(items))
            add_past(tx, self.rules.past(items))
            add_shapes(tx, self.rules.shapes(items))
            add_imported(tx, events, written)
            self.save_groups(tx, written)
            add_samples(tx, [one.sample for one in kept], written)
            for task, labels in _by_task(kept).items():
                add_labels(tx, task, labels, written)
            add_dead_letters(tx, letters, written)
            store_offsets(tx, topic, identity, batch.next_offsets, written)
        self.counts["events"] += len(prompts)
        self.counts["dead_letters"] += len(letters)

    def _keep(self, item: Assessed, written: datetime) -> _Kept | None:
        event, text = item.event, self.rules.text(item.event)
        if event.task is None:
            return None
        task, policy = self.rules.tasks[event.task], self._policy(event.task, written)
        choice, label = self.rules.chosen(item, policy), self.rules.free_label(item)
        known = event.event_id in self.calls or event.event_id in self.items
        # An equal question was asked for another event: its answer was this one's too.
        known = known or (choice is not None and self._was_asked(event, task))
        if not known and not _stands_alone(choice, label):
            self.counts["left_out"] += choice is not None
            return None
        if text is None:
            return None
        place = self.place(event.event_id, task.name, text)
        settled = settle(choice, place[1]) if choice is not None else None
        if settled is None and not known:
            return None
        version = policy.version if settled else BY_REBUILD
        settled = settled or of_known(self.items.get(event.event_id), place[1])
        self._free_labels += label is not None
        return _Kept(sample_of(item, text, settled, place, version), label)

    def _policy(self, task: str, written: datetime) -> SamplingPolicy:
        """The settings' rates; in a cold start, about as long as there was one."""
        labels = bisect(self._asked_at, written) + self._free_labels
        cold = labels * TRAINING_SHARE < self.cold_start_labels[task]
        return replace(self.policies[task], cold_start=cold)

    def _was_asked(self, event: PromptEvent, task: Task) -> bool:
        question = ask(event.event_id, event.messages, task, self.rules.teacher, asked=event.asked)
        return question.key in self._keys

    def _was_assessed_by_learner(self, event: PromptEvent) -> bool:
        """The gateway was asked about it while it was read; its answer was only in the database."""
        since = self.first_champions.get(event.task or "")
        return event.student is None and since is not None and event.occurred_at > since

    def _count_escalation(self, event: PromptEvent) -> None:
        """What gateways spent under leases: the student was unsure, and the teacher answered."""
        if event.served_by != "teacher" or event.student is None:
            return
        usage = event.usage
        money = (
            cost(usage.prompt_tokens, usage.completion_tokens, self.rules.teacher) if usage else 0.0
        )
        day = event.occurred_at.replace(hour=0, minute=0, second=0, microsecond=0)
        self.escalations.setdefault(day, []).append(money)


def _stands_alone(choice: Choice | None, label: Label | None) -> bool:
    """Whether it is a sample again although neither ledger nor dataset knows it."""
    if choice is None:
        return False
    drawn = choice.draws.audit is not None or choice.draws.held_out is not None
    return drawn or label is not None


def of_known(item: KnownItem | None, side: Side) -> tuple[SampleReason, Draws]:
    """Why something is a sample that today's rates would not have chosen."""
    if item is not None and item.held_out_pi is not None:
        return SampleReason.HELD_OUT, Draws(held_out=item.held_out_pi)
    return (SampleReason.AUDIT if side is Side.HELD_OUT else SampleReason.UNCERTAIN), Draws()


def _by_task(kept: Sequence[_Kept]) -> dict[str, list[Label]]:
    found: defaultdict[str, list[Label]] = defaultdict(list)
    for one in kept:
        if one.label is not None and one.sample.event.task is not None:
            found[one.sample.event.task].append(one.label)
    return found


def _written_at(records: Sequence[Record]) -> datetime:
    """When the latest of them reached the topic: about when it was read the first time."""
    latest = max((record.timestamp_ms for record in records), default=0)
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=max(0, latest))
