"""Labels from the ledger and the datasets, for samples that are there again. Nobody is asked."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pipelines.ask import ask
from pipelines.errors import DataDamaged
from pipelines.identities import prompt_version
from pipelines.label import OUTSIDE, read_label
from pipelines.render import classifier_text
from pipelines.types import (
    Draws,
    Label,
    LabelSource,
    PromptEvent,
    Sample,
    SampleReason,
    SourceOffset,
)
from service.care.rebuild.known import Known, KnownItem, asked_in_call
from service.care.rebuild.replay import BY_REBUILD, Replay, of_known
from service.learner.teacher import Reply, Teacher
from storage.database import Database
from storage.labels import add_labels, labels_of
from storage.ledger import Call, Ledger
from storage.samples import PendingSample, add_samples, pending_samples, set_status, tasks_of
from storage.votes import Vote, add_votes, first_answers

ALL = 2**31 - 1
NOWHERE = SourceOffset("", -1, -1)  # the topic has it no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Everything that was ever answered."""

    database: Database
    ledger: Ledger
    teacher: Teacher
    terms: str
    replay: Replay

    def bring_back(self) -> Counter[str]:
        """Samples that the topic lacks, then the label of every sample that has one."""
        counts = self.replay.counts
        self._samples_of_datasets()
        self._samples_of_calls()
        self._labels_of_calls()
        self._labels_of_datasets()
        self._votes_of_calls()
        return counts

    def _samples_of_datasets(self) -> None:
        items = self.replay.items
        present = self._present(items)
        made = []
        for item in items.values():
            if item.event_id not in present and item.task in self.replay.rules.tasks:
                settled = of_known(item, item.side)
                made.append((self._sample(item, item.task, item.text, *settled), item.at))
        self._store(made)
        self.replay.counts["samples_from_datasets"] += len(made)

    def _samples_of_calls(self) -> None:
        """A request holds the app's messages: enough to learn from, less than the record said."""
        calls, tasks = self.replay.calls, list(self.replay.rules.tasks.values())
        present = self._present(calls)
        made = []
        for call in calls.values():
            if call.event_id in present:
                continue
            asked = asked_in_call(self.ledger, call, tasks, self.teacher.policy)
            if asked is None:
                self.replay.counts["calls_of_other_questions"] += 1
                continue
            task, messages = asked.task, asked.messages
            text = classifier_text(messages, task)
            about = Known(event_id=call.event_id, messages=messages, at=call.at, asked=asked.asked)
            sample = self._sample(about, task.name, text, SampleReason.UNCERTAIN, Draws())
            made.append((sample, call.at))
        self._store(made)
        self.replay.counts["samples_from_ledger"] += len(made)

    def _labels_of_calls(self) -> None:
        """As the relabel job would apply them, at the time of their calls."""
        with self.database.snapshot() as tx:
            pending = pending_samples(tx, list(self.replay.rules.tasks), ALL)
        labels: defaultdict[tuple[str, datetime], list[Label]] = defaultdict(list)
        statuses: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for sample in pending:
            call, reply = self._reply(sample)
            if call is None:
                continue
            task = self.replay.rules.tasks[sample.task]
            label = read_label(reply.text, task) if reply else None
            if reply is not None and label is not None:
                # An earlier wording of the task has another key, and a version that nobody noted.
                asked = prompt_version(task) if reply.question.key == call.key else ""
                found = reply.as_label(
                    label, prompt_version=asked, terms=self.terms, ledger_key=call.key
                )
                labels[sample.task, call.at.replace(microsecond=0)].append(found)
            elif call.step == "received":
                why = (reply.detail if reply else "") or OUTSIDE
                statuses["failed", why].append(sample.event_id)
            elif call.step == "dropped":
                statuses["failed", "dropped by an operator"].append(sample.event_id)
            elif call.step in ("unknown", "intent"):
                why = "nobody knows whether the teacher answered"
                statuses["held", why].append(sample.event_id)
        with self.database.transaction() as tx:
            for (task_name, at), found_labels in sorted(labels.items()):
                self.replay.counts["bought"] += add_labels(tx, task_name, found_labels, at)
            for (status, why), event_ids in statuses.items():
                set_status(tx, event_ids, status, why)

    def _reply(self, sample: PendingSample) -> tuple[Call | None, Reply | None]:
        """The call that answered this very question, or an earlier wording of it."""
        task = self.replay.rules.tasks[sample.task]
        policy = self.teacher.policy
        question = ask(sample.event_id, sample.messages, task, policy, asked=sample.asked)
        call = self.ledger.call(question.key)
        try:
            if call is not None:
                return call, self.teacher.known(question)
            call = self.replay.calls.get(sample.event_id)
            if call is None or call.step != "received":
                return call, None
            return call, self.teacher.read(question, self.ledger.reply(call.key))
        except DataDamaged:
            self.replay.counts["replies_missing"] += 1
            return None, None

    def _labels_of_datasets(self) -> None:
        """What no call and no record tells: given answers and corrections that are gone."""
        items = self.replay.items
        with self.database.snapshot() as tx:
            present = labels_of(tx, list(items))
        found: defaultdict[tuple[str, datetime], list[Label]] = defaultdict(list)
        for item in items.values():
            source = _source(item, present)
            if source is not None and item.task in self.replay.rules.tasks:
                found[item.task, item.at].append(
                    Label(
                        event_id=item.event_id,
                        label=item.label,
                        source=source,
                        teacher_model="a person" if source == "correction" else "",
                        prompt_version="",
                        terms="" if source == "correction" else item.terms,
                        weight=item.weight,
                    )
                )
        with self.database.transaction() as tx:
            for (task, at), labels in found.items():
                self.replay.counts["labels_from_datasets"] += add_labels(tx, task, labels, at)

    def _votes_of_calls(self) -> None:
        """What was asked again, beside the label that the teacher gave first."""
        tasks = list(self.replay.rules.tasks.values())
        again = [call for call in self.ledger.calls() if call.repeat and call.step == "received"]
        with self.database.snapshot() as tx:
            first = first_answers(tx, [call.event_id for call in again])
        found: defaultdict[tuple[str, datetime], list[Vote]] = defaultdict(list)
        for call in again:
            asked = asked_in_call(self.ledger, call, tasks, self.teacher.policy)
            if asked is None or call.event_id not in first:
                continue
            task, policy = asked.task, self.teacher.policy
            question = ask(
                call.event_id, asked.messages, task, policy, call.repeat, asked=asked.asked
            )
            try:
                reply = self.teacher.read(question, self.ledger.reply(call.key))
            except DataDamaged:
                self.replay.counts["replies_missing"] += 1
                continue
            label = read_label(reply.text, task)
            vote = reply.as_vote(first[call.event_id], label, prompt_version(task))
            at = call.at.replace(microsecond=0)
            found[task.name, at].append(replace(vote, ledger_key=call.key))
        with self.database.transaction() as tx:
            for (name, at), votes in sorted(found.items()):
                add_votes(tx, name, votes, at)

    def _sample(
        self, known: Known, task: str, text: str, reason: SampleReason, draws: Draws
    ) -> Sample:
        group, side = self.replay.place(known.event_id, task, text)
        event = PromptEvent(
            event_id=known.event_id,
            task=task,
            model=self.replay.rules.tasks[task].models[0],
            occurred_at=known.at,
            messages=known.messages,
            asked=known.asked,
            source=NOWHERE,
        )
        return Sample(
            event=event,
            text=text,
            reason=reason,
            draws=draws,
            group_id=group,
            side=side,
            assessment=None,
            policy_version=BY_REBUILD,
        )

    def _store(self, made: Sequence[tuple[Sample, datetime]]) -> None:
        by_second: defaultdict[datetime, list[Sample]] = defaultdict(list)
        for sample, at in made:
            by_second[at.replace(microsecond=0)].append(sample)
        with self.database.transaction() as tx:
            for at, samples in sorted(by_second.items()):
                self.replay.save_groups(tx, at)
                add_samples(tx, samples, at)

    def _present(self, event_ids: Mapping[str, object] | Sequence[str]) -> set[str]:
        with self.database.snapshot() as tx:
            return set(tasks_of(tx, list(event_ids)))


def _source(item: KnownItem, present: Mapping[str, str]) -> LabelSource | None:
    """None where the label is there already; another one than there is a person's."""
    if not item.label:  # the teacher's answer was none
        return None
    if item.event_id not in present:
        return "given"
    return None if present[item.event_id] == item.label else "correction"
