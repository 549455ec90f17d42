"""The ingest loop: records in, sums and samples out, exactly once in the database."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Lock
from typing import NamedTuple, Protocol, get_args

import msgspec
import structlog

from pipelines.assess import assess
from pipelines.curate import NearDuplicates
from pipelines.decode import DecodePolicy, decode
from pipelines.errors import BrokerUnavailable, DiskFull, InvalidMessage, OffsetsLost
from pipelines.label import read_label
from pipelines.render import classifier_text
from pipelines.sample import Choice, SamplingPolicy, choose, choose_feedback, settle
from pipelines.tally import Tally, TrafficKey, tally
from pipelines.types import (
    Assessment,
    Label,
    PromptEvent,
    Sample,
    SourceOffset,
    StudentAnswer,
    Task,
)
from service.learner.given import GivenPolicy, given_label
from service.metrics import LearnerMetrics
from service.operator.status import HoldReason
from service.sections import IngestSettings
from service.topics import Batch, TopicReader
from storage.database import Database
from storage.dead_letters import DeadLetter, add_dead_letters
from storage.failpoints import passing
from storage.groups import Group, add_groups, stored_groups
from storage.labels import add_labels
from storage.samples import add_samples
from storage.ticks import ALL_JOBS, BY_ITSELF, pause, pauses
from storage.traffic import add_gaps, add_traffic, store_offsets, stored_offsets

log = structlog.get_logger()

JOB = "ingest"
FEEDBACK_ON = "feedback_on"  # attribute of a feedback event: which event it is about
RETRY_SECONDS = 2.0
# From so many records on, the next batch is read while this one is on its way to the disk.
OVERLAP_RECORDS = 1_000


class Assesses(Protocol):
    """Says what the student would answer."""

    def assess(self, task: str, events: Sequence[PromptEvent]) -> dict[str, StudentAnswer]: ...


class _Judged(msgspec.Struct, frozen=True, gc=False):
    event: PromptEvent
    assessment: Assessment
    teacher_label: str | None


class _Work(NamedTuple):
    """What a batch means: all that its transaction writes."""

    batch: Batch
    sums: Mapping[TrafficKey, Tally]
    groups: Sequence[Group]
    samples: Sequence[Sample]
    given: Mapping[str, Sequence[Label]]
    letters: Sequence[DeadLetter]
    started: float


class Sampling:
    """The sampling policies in force, by task. Replaced as a whole by the watch job."""

    def __init__(self, policies: Mapping[str, SamplingPolicy]) -> None:
        self._policies = dict(policies)
        self._lock = Lock()

    def policy(self, task: str) -> SamplingPolicy:
        with self._lock:
            return self._policies[task]

    def replace(self, task: str, policy: SamplingPolicy) -> None:
        with self._lock:
            self._policies[task] = policy


class Ingest:
    """Stores what a batch means together with the offset that follows it.

    A crash at any point repeats a batch whose transaction did not happen, or skips one whose
    transaction did: the database's offset decides, never the broker's.
    """

    def __init__(
        self,
        *,
        reader: TopicReader,
        database: Database,
        tasks: Mapping[str, Task],
        decoding: DecodePolicy,
        sampling: Sampling,
        given: GivenPolicy,
        assessor: Assesses,
        has_student: Callable[[str], bool],
        group_salt: bytes,
        settings: IngestSettings,
        data_dir: Path,
        metrics: LearnerMetrics,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._reader = reader
        self._database = database
        self._tasks = tasks
        self._decoding = decoding
        self._sampling = sampling
        self._given = given
        self._assessor = assessor
        self._has_student = has_student
        self._settings = settings
        self._data_dir = data_dir
        self._metrics = metrics
        self._now = now
        self._identity = ""
        self._stop = Event()
        self._groups = {name: NearDuplicates(group_salt) for name in tasks}
        self._unsaved: list[Group] = []
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ingest-writer")
        self._writing: Future[None] | None = None  # at most one transaction is on its way
        self._outcomes: deque[bool] = deque(maxlen=settings.dead_letter_window)
        self.held: HoldReason | None = None
        self.why_stopped: str | None = None
        self.last_poll = time.monotonic()

    def start(self) -> None:
        """Take up where the database says. Raises `OffsetsLost` for another topic's offsets."""
        with self._database.snapshot() as tx:
            offsets, identity = stored_offsets(tx, self._reader.name)
            for name, groups in self._groups.items():
                for group in stored_groups(tx, name):
                    groups.restore(group.group_id, group.side, group.text)
        self._identity = self._reader.identity()
        if identity is not None and identity != self._identity:
            raise OffsetsLost(
                f"the topic {self._reader.name} was deleted and created again since we read it; "
                "`flywheel learner --reset-offsets` reads the new one from its beginning"
            )
        gaps = self._reader.seek(offsets)
        self._note_gaps([(gap.partition, gap.first, gap.last) for gap in gaps])

    def run(self, stop: Event) -> None:
        """Run until asked to stop. The current batch is always finished first."""
        try:
            self._run(stop)
        finally:
            self.settle()

    def _run(self, stop: Event) -> None:
        self._stop = stop
        linger = self._settings.linger.total_seconds()
        while not stop.is_set():
            started = time.monotonic()
            try:
                records = self.run_once()
            except BrokerUnavailable as error:  # nothing was committed; the next poll goes on
                log.error("broker_unavailable", error=str(error))
                self._metrics.topic_problems.set(1)
                stop.wait(RETRY_SECONDS)
                continue
            if 0 < records < self._settings.max_records:
                stop.wait(max(0.0, linger - (time.monotonic() - started)))

    def run_once(self) -> int:
        """One poll and its transaction. Returns how many records it read."""
        self._metrics.ingest_last_turn.set_to_current_time()
        self._hold_or_go_on()
        batch = self._reader.poll(
            max_records=self._settings.max_records,
            timeout_seconds=self._settings.poll_timeout.total_seconds(),
        )
        self.last_poll = time.monotonic()
        lost = self._reader.take_gaps()
        self._note_gaps([(gap.partition, gap.first, gap.last) for gap in lost])
        if batch.records:
            self._store(batch)
        else:
            self.settle()
        self._metrics.topic_lag.set(sum(self._reader.lag().values()))
        self._metrics.topic_problems.set(len(self._reader.problems()))
        return len(batch.records)

    def _hold_or_go_on(self) -> None:
        """While held the topic is paused and still polled, so that nothing times out."""
        reason, why = self._why_hold()
        if reason != self.held:
            if reason:
                log.warning("ingest_held", reason=reason, why=why)
            else:
                log.info("ingest_resumed")
            self._outcomes.clear()
        self.why_stopped = why
        self._hold(reason)
        if reason:
            self._reader.pause()
        else:
            self._reader.resume()

    def _hold(self, reason: HoldReason | None) -> None:
        self.held = reason
        for known in get_args(HoldReason):
            self._metrics.ingest_held.labels(reason=known).set(known == reason)

    def _why_hold(self) -> tuple[HoldReason | None, str | None]:
        free = shutil.disk_usage(self._data_dir).free // 2**20
        if free < self._settings.min_free_disk_mb:
            return "disk", f"only {free} MB are free on the disk of {self._data_dir}"
        with self._database.snapshot() as tx:
            paused = [one for one in pauses(tx) if one.job in (JOB, ALL_JOBS)]
        if not paused:
            return None, None
        by_itself = all(one.paused_by == BY_ITSELF for one in paused)
        return "poison" if by_itself else "operator", "paused; `flywheel resume ingest` goes on"

    def _store(self, batch: Batch) -> None:
        """Hand a batch to its transaction, behind that of the batch before.

        A large one is not waited for: DuckDB and the disk work while the next is read.
        """
        work = self._work(batch)
        self.settle()
        self._writing = self._writer.submit(self._write, work)
        if len(batch.records) < OVERLAP_RECORDS:
            self.settle()
        self._limit_poison(len(batch.records) - len(work.letters), len(work.letters))

    def settle(self) -> None:
        """Wait until what was handed over is durable. Raises what its transaction raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _work(self, batch: Batch) -> _Work:
        started = time.perf_counter()
        events, letters = self._decode(batch)
        events = self._with_answers(events)
        judged = [_judge(event, self._tasks) for event in events]
        prompts = (item for item in judged if FEEDBACK_ON not in item.event.attributes)
        samples = list(self._samples(judged))
        groups, self._unsaved = self._unsaved, []
        return _Work(
            batch=batch,
            sums=tally((item.event, item.assessment.segment) for item in prompts),
            groups=groups,
            samples=samples,
            given=self._labels(judged, samples),
            letters=letters,
            started=started,
        )

    def _write(self, work: _Work) -> None:
        passing("ingest.read")
        self._commit(work)
        passing("ingest.committed")
        self._reader.report_progress(work.batch.next_offsets)
        passing("ingest.reported")
        self._metrics.ingest_batch_seconds.observe(time.perf_counter() - work.started)

    def _commit(self, work: _Work) -> None:
        """One transaction for all of it. A full disk is waited out: nothing was committed."""
        name, offsets = self._reader.name, work.batch.next_offsets
        while True:
            now = self._now()
            try:
                with self._database.transaction() as tx:
                    add_traffic(tx, work.sums)
                    add_groups(tx, work.groups, now)
                    new = add_samples(tx, work.samples, now)
                    for task, labels in work.given.items():
                        add_labels(tx, task, labels, now)
                    new_letters = add_dead_letters(tx, work.letters, now)
                    store_offsets(tx, name, self._identity, offsets, now)
                break
            except DiskFull as error:
                log.error("ingest_disk_full", error=str(error))
                self._hold("disk")
                if self._stop.wait(RETRY_SECONDS):
                    raise
        stored = [sample for sample in work.samples if sample.event.event_id in new]
        self._count(work.sums, stored, work.given)
        self._metrics.records.labels(outcome="dead_letter").inc(new_letters)

    def _decode(self, batch: Batch) -> tuple[list[PromptEvent], list[DeadLetter]]:
        events, letters = [], []
        name = self._reader.name
        for partition, offset, value, headers, timestamp_ms in batch.records:
            source = SourceOffset(name, partition, offset)
            try:
                events.append(decode(value, headers, source, timestamp_ms, self._decoding))
            except InvalidMessage as error:
                letters.append(
                    DeadLetter(
                        topic=name,
                        partition=partition,
                        offset=offset,
                        payload=value,
                        headers=headers,
                        reason=str(error),
                    )
                )
        return events, letters

    def _with_answers(self, events: Sequence[PromptEvent]) -> list[PromptEvent]:
        """Have the gateway assess what came without a student's answer."""
        missing: dict[str, list[PromptEvent]] = {}
        for event in events:
            if event.task and event.student is None and self._has_student(event.task):
                missing.setdefault(event.task, []).append(event)
        found: dict[str, StudentAnswer] = {}
        for task, unassessed in missing.items():
            answers = self._assessor.assess(task, unassessed)
            found |= answers
            self._metrics.unassessed.labels(task=task).inc(len(unassessed) - len(answers))
        if not found:
            return list(events)
        return [
            msgspec.structs.replace(event, student=found[event.event_id])
            if event.event_id in found and event.student is None
            else event
            for event in events
        ]

    def _samples(self, judged: Iterable[_Judged]) -> Iterable[Sample]:
        """Hash first; the text, the group and the side are worked out for the chosen only."""
        policies = {name: self._sampling.policy(name) for name in self._tasks}
        versions = {name: policy.version for name, policy in policies.items()}
        may_use_teacher = self._given.terms is not None
        for item in judged:
            event, assessment = item.event, item.assessment
            if event.task is None:
                continue
            usable = may_use_teacher and item.teacher_label is not None
            choice = (
                choose_feedback(assessment)
                if FEEDBACK_ON in event.attributes
                else choose(event, assessment, policies[event.task], has_teacher_label=usable)
            )
            if choice is None:
                continue
            sample = self._sample(item, choice, self._tasks[event.task], versions[event.task])
            if sample is not None:
                yield sample

    def _sample(
        self, item: _Judged, choice: Choice, task: Task, policy_version: str
    ) -> Sample | None:
        text = classifier_text(item.event.messages, task)
        if not text.strip():
            return None
        place = self._groups[task.name].place(text, item.event.event_id)
        if place.founded:
            self._unsaved.append(Group(place.group_id, task.name, place.side, text))
        settled = settle(choice, place.side)
        if settled is None:
            return None
        reason, draws = settled
        return Sample(
            event=item.event,
            text=text,
            reason=reason,
            draws=draws,
            group_id=place.group_id,
            side=place.side,
            assessment=item.assessment,
            policy_version=policy_version,
        )

    def _labels(
        self, judged: Iterable[_Judged], samples: Sequence[Sample]
    ) -> dict[str, list[Label]]:
        """Labels that cost the label budget nothing: teacher answers and people's corrections."""
        labels: dict[str, list[Label]] = {}
        if self._given.terms is None:
            return labels
        sampled = {sample.event.event_id for sample in samples}
        for item in judged:
            if item.event.event_id not in sampled or item.event.task is None:
                continue
            task = self._tasks[item.event.task]
            label = given_label(item.event, item.teacher_label, task, self._given)
            if label is not None:
                labels.setdefault(task.name, []).append(label)
        return labels

    def _count(
        self,
        sums: Mapping[TrafficKey, Tally],
        samples: Sequence[Sample],
        given: Mapping[str, Sequence[Label]],
    ) -> None:
        """Counters move after the commit: a batch that is repeated is counted once."""
        for (_, task, _, _), one in sums.items():
            by_app = one.events - one.served - one.teacher_served
            for served_by, count in (
                ("student", one.served),
                ("teacher", one.teacher_served),
                ("app", by_app),
            ):
                if count:
                    events = self._metrics.events.labels(
                        task=task or "unclaimed", served_by=served_by
                    )
                    events.inc(count)
        self._metrics.records.labels(outcome="event").inc(sum(one.events for one in sums.values()))
        for sample in samples:
            self._metrics.samples.labels(task=sample.event.task, reason=sample.reason.value).inc()
        for task, labels in given.items():
            for label in labels:
                self._metrics.labels.labels(task=task, source=label.source).inc()

    def _limit_poison(self, good: int, bad: int) -> None:
        """All-bad traffic pauses the topic and alerts instead of draining it."""
        self._outcomes.extend([False] * good + [True] * bad)
        if len(self._outcomes) < self._settings.dead_letter_window:
            return
        rate = sum(self._outcomes) / len(self._outcomes)
        if rate > self._settings.max_dead_letter_rate:
            with self._database.transaction() as tx:
                pause(tx, job=JOB, operator=BY_ITSELF, now=self._now())
            log.error("ingest_paused_on_poison", dead_letter_rate=round(rate, 3))

    def _note_gaps(self, gaps: Sequence[tuple[int, int, int]]) -> None:
        if not gaps:
            return
        with self._database.transaction() as tx:
            add_gaps(tx, self._reader.name, gaps, self._now())
        for partition, first, last in gaps:
            log.error("topic_gap", partition=partition, first=first, last=last)
            self._metrics.topic_gap_records.inc(last - first)


def _judge(event: PromptEvent, tasks: Mapping[str, Task]) -> _Judged:
    if event.task is None:
        return _Judged(event, Assessment(failure_probability=1.0, segment=""), None)
    task = tasks[event.task]
    return _Judged(event, assess(event, task), read_label(event.teacher_answer, task))
