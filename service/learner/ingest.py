"""The ingest loop: records in, sums and samples out, exactly once in the database."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import NamedTuple, Protocol, get_args

import msgspec
import structlog

from pipelines.curate import Group, NearDuplicates
from pipelines.errors import BrokerUnavailable, DiskFull, OffsetsLost
from pipelines.intake import Assessed, Rules, sample_of
from pipelines.sample import settle
from pipelines.tally import Tally, TrafficKey
from pipelines.types import (
    BY_ITSELF,
    DeadLetter,
    Label,
    PromptEvent,
    Sample,
    SampleReason,
    StudentAnswer,
)
from service.learner.sampling import Sampling
from service.learner.schedule import INGEST_JOB
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from service.operator.status import HoldReason
from service.sections import IngestSettings
from service.topics import Batch, TopicReader
from storage.database import Database
from storage.dead_letters import add_dead_letters
from storage.failpoints import passing
from storage.groups import add_groups, stored_groups
from storage.imported import add_imported, is_imported, unread
from storage.labels import add_labels
from storage.past import PastKey, add_past
from storage.samples import add_samples
from storage.shapes import ShapeKey, add_shapes
from storage.ticks import ALL_JOBS, pause, pauses
from storage.traffic import add_gaps, add_traffic, store_offsets, stored_offsets

log = structlog.get_logger()

RETRY_SECONDS = 2.0
# From so many records on, the next batch is read while this one is on its way to the disk.
OVERLAP_RECORDS = 1_000


class Assesses(Protocol):
    """Says what the student would answer."""

    def assess(self, task: str, events: Sequence[PromptEvent]) -> dict[str, StudentAnswer]: ...


class _Work(NamedTuple):
    """What a batch means: all that its transaction writes."""

    batch: Batch
    events: Sequence[PromptEvent]
    sums: Mapping[TrafficKey, Tally]
    past: Mapping[PastKey, int]
    shapes: Mapping[ShapeKey, int]
    groups: Sequence[Group]
    samples: Sequence[Sample]
    given: Mapping[str, Sequence[Label]]
    letters: Sequence[DeadLetter]
    started: float


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
        rules: Rules,
        sampling: Sampling,
        assessor: Assesses,
        group_salt: bytes,
        settings: IngestSettings,
        data_dir: Path,
        metrics: LearnerMetrics,
        board: Board,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._reader = reader
        self._database = database
        self._rules = rules
        self._sampling = sampling
        self._assessor = assessor
        self._settings = settings
        self._data_dir = data_dir
        self._metrics = metrics
        self._board = board
        self._now = now
        self._identity = ""
        self._stop = Event()
        self._groups = {name: NearDuplicates(group_salt) for name in rules.tasks}
        self._unsaved: list[Group] = []
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ingest-writer")
        self._writing: Future[None] | None = None  # at most one transaction is on its way
        self._outcomes: deque[bool] = deque(maxlen=settings.dead_letter_window)
        self.held: HoldReason | None = None
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
        self._board.say_of_ingest(polled_at=self.last_poll)

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
        lag = sum(self._reader.lag().values())
        self._board.say_of_ingest(lag=lag, polled_at=self.last_poll)
        self._metrics.topic_lag.set(lag)
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
        self._hold(reason, why)
        if reason:
            self._reader.pause()
        else:
            self._reader.resume()

    def _hold(self, reason: HoldReason | None, why: str | None) -> None:
        self.held = reason
        self._board.say_of_ingest(held=why, reason=reason)
        for known in get_args(HoldReason):
            self._metrics.ingest_held.labels(reason=known).set(known == reason)

    def _why_hold(self) -> tuple[HoldReason | None, str | None]:
        free = shutil.disk_usage(self._data_dir).free // 2**20
        if free < self._settings.min_free_disk_mb:
            return "disk", f"only {free} MB are free on the disk of {self._data_dir}"
        with self._database.snapshot() as tx:
            paused = [one for one in pauses(tx) if one.job in (INGEST_JOB, ALL_JOBS)]
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
        read, letters = self._rules.read(self._reader.name, batch.records, self._identity)
        events = self._not_imported_before(read)
        items = [self._rules.assessed(event) for event in self._with_answers(events)]
        samples = list(self._samples(items))
        groups, self._unsaved = self._unsaved, []
        return _Work(
            batch=batch,
            events=events,
            sums=self._rules.sums(items),
            past=self._rules.past(items),
            shapes=self._rules.shapes(items),
            groups=groups,
            samples=samples,
            given=self._labels(items, samples),
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
                    add_past(tx, work.past)
                    add_shapes(tx, work.shapes)
                    add_imported(tx, work.events, now)
                    add_groups(tx, work.groups, now)
                    new = add_samples(tx, work.samples, now)
                    for task, labels in work.given.items():
                        add_labels(tx, task, labels, now)
                    new_letters = add_dead_letters(tx, work.letters, now)
                    store_offsets(tx, name, self._identity, offsets, now)
                break
            except DiskFull as error:
                log.error("ingest_disk_full", error=str(error))
                self._hold("disk", str(error))
                if self._stop.wait(RETRY_SECONDS):
                    raise
        stored = [sample for sample in work.samples if sample.event.event_id in new]
        self._count(work, stored)
        self._metrics.records.labels(outcome="dead_letter").inc(new_letters)

    def _not_imported_before(self, events: Sequence[PromptEvent]) -> Sequence[PromptEvent]:
        if not any(map(is_imported, events)):
            return events
        self.settle()  # what the batch before has imported is to be known
        with self._database.snapshot() as tx:
            kept = unread(tx, events)
        if len(kept) < len(events):
            log.info("import_repeated", records=len(events) - len(kept))
        return kept

    def _with_answers(self, events: Sequence[PromptEvent]) -> list[PromptEvent]:
        """Have the gateway assess what came without a student's answer."""
        missing: dict[str, list[PromptEvent]] = {}
        for event in events:
            if not event.task or event.student is not None or event.past:
                continue
            if self._board.has_student(event.task):
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

    def _samples(self, items: Iterable[Assessed]) -> Iterable[Sample]:
        """Hash first; the text, the group and the side are worked out for the chosen only."""
        policies = {name: self._sampling.policy(name) for name in self._rules.tasks}
        versions = {name: policy.version for name, policy in policies.items()}
        for item in items:
            task = item.event.task
            if task is None:
                continue
            choice = self._rules.chosen(item, policies[task])
            text = self._rules.text(item.event) if choice is not None else None
            if choice is None or text is None:
                continue
            place = self._groups[task].place(text, item.event.event_id)
            if place.founded:
                self._unsaved.append(Group(place.group_id, task, place.side, text))
            settled = settle(choice, place.side)
            if settled is None:
                continue
            yield sample_of(item, text, settled, place[:2], versions[task])
            if settled[0] is SampleReason.HELD_OUT and self._rules.free_label(item) is None:
                policy = self._sampling.buys_held_out(task)
                if policy is not policies[task]:
                    policies[task], versions[task] = policy, policy.version

    def _labels(
        self, items: Iterable[Assessed], samples: Sequence[Sample]
    ) -> dict[str, list[Label]]:
        """Labels that cost the label budget nothing, of what was chosen."""
        labels: dict[str, list[Label]] = {}
        sampled = {sample.event.event_id for sample in samples}
        for item in items:
            if item.event.task is None or item.event.event_id not in sampled:
                continue
            label = self._rules.free_label(item)
            if label is not None:
                labels.setdefault(item.event.task, []).append(label)
        return labels

    def _count(self, work: _Work, samples: Sequence[Sample]) -> None:
        """Counters move after the commit: a batch that is repeated is counted once."""
        for (_, task, reason), count in work.past.items():
            self._metrics.past.labels(task=task, reason=reason).inc(count)
        for (_, task, _, _), one in work.sums.items():
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
        read = len(work.batch.records) - len(work.letters)
        self._metrics.records.labels(outcome="event").inc(read)
        for sample in samples:
            self._metrics.samples.labels(task=sample.event.task, reason=sample.reason.value).inc()
        for task, labels in work.given.items():
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
                pause(tx, job=INGEST_JOB, operator=BY_ITSELF, now=self._now())
            log.error("ingest_paused_on_poison", dead_letter_rate=round(rate, 3))

    def _note_gaps(self, gaps: Sequence[tuple[int, int, int]]) -> None:
        if not gaps:
            return
        with self._database.transaction() as tx:
            add_gaps(tx, self._reader.name, gaps, self._now())
        for partition, first, last in gaps:
            log.error("topic_gap", partition=partition, first=first, last=last)
            self._metrics.topic_gap_records.inc(last - first)
