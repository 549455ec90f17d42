"""What a candidate is compared with its champion on, beside the held-out items.

Events that were kept without a label, of which only those where the two differ are asked for: see
`pipelines.pool`. What was read and asked for is remembered in the reports of the looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from pipelines.checks import LABELS_CAME
from pipelines.curate import uncontaminated
from pipelines.evaluate import CANDIDATE, CHAMPION, thin
from pipelines.gate import compared
from pipelines.pool import MOST_BOUGHT, PoolItem, PoolPart, Reading, answers_at, part_of, read_pool
from pipelines.types import Answers, GateReport, HeldOutItem
from service.learner.workshop import Workshop
from service.settings import Settings
from storage.database import Cursor
from storage.evaluations import StoredEvaluation
from storage.guards import last_shift
from storage.pool import count_awaited, pool_of
from storage.reports import PoolMemory, read_pool_memory

# The teacher is asked within seconds, unless it fails or the day's purse is empty.
LONGEST_WAIT = timedelta(hours=1)
NOTHING_READ = Reading(counted=(), read=(), wanted=(), awaited=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What of the pool one look counts, and what it would take to count more."""

    pool: tuple[PoolItem, ...] = ()
    before: PoolMemory
    reading: Reading = NOTHING_READ
    part: PoolPart | None = None  # None: nothing is counted

    @property
    def lacking(self) -> int:
        """Labels without which less is counted than could be."""
        return len(self.reading.wanted) + len(self.reading.awaited)

    @property
    def counted(self) -> tuple[str, ...]:
        return self._ids(self.reading.counted)

    def wanted(self, gate: GateReport) -> tuple[str, ...]:
        """The events to be asked about: where more evidence may change what the gate says."""
        waits = [check.name for check in gate.checks if not check.passed] == [LABELS_CAME]
        open_still = compared(gate) and not gate.promotable and gate.verdict != "worse"
        return self._ids(self.reading.wanted) if waits or open_still else ()

    def after(self, wanted: Sequence[str]) -> PoolMemory:
        """What the next look has to know."""
        before, reading = self.before, self.reading
        gone_on = bool(wanted) or not reading.wanted
        read = {*before.read, *self._ids(reading.read if gone_on else reading.counted)}
        awaited = {*wanted, *self._ids(reading.awaited)} & read
        return PoolMemory(
            read=tuple(sorted(read)),
            asked=tuple(sorted({*before.asked, *wanted})),
            awaited=tuple(sorted(awaited)),
        )

    def _ids(self, places: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.pool[at].item.event_id for at in places)


def kept_for(
    shop: Workshop, task: str, items: Sequence[HeldOutItem], training_texts: Sequence[str]
) -> tuple[PoolItem, ...]:
    """The pool as a candidate may be judged on it.

    Since the traffic last changed; of other groups than the items', and like nothing that the
    candidate was trained on; thinned, so that each moment counts as much as any other.
    """
    with shop.database.snapshot() as tx:
        found = pool_of(tx, task, last_shift(tx, task, shop.now()))
    groups = {item.group_id for item in items}
    others = [one.item for one in found if one.item.group_id not in groups]
    usable = {item.event_id for item in thin(uncontaminated(others, training_texts))}
    return tuple(one for one in found if one.item.event_id in usable)


def compare(
    pool: tuple[PoolItem, ...],
    answers: dict[str, Answers],
    items: int,
    before: PoolMemory,
    *,
    go_on: bool,
) -> Comparison:
    """Take the answers to the pool off `answers`, which keep those to the items.

    `go_on`: read further in the pool than earlier looks did.
    """
    if not pool:
        return Comparison(before=before)
    said = {}
    for name in (CANDIDATE, CHAMPION):
        answers[name], said[name] = _parted(answers[name], items)
    ours, theirs = said[CANDIDATE], said[CHAMPION]
    differ = [one != other for one, other in zip(ours.labels, theirs.labels, strict=True)]
    asked = len(before.asked) if go_on else MOST_BOUGHT
    reading = read_pool(pool, differ, before=frozenset(before.read), asked=asked)
    part = part_of(pool, reading.counted, ours, theirs)
    return Comparison(
        pool=pool, before=before, reading=reading, part=part if reading.counted else None
    )


def remembered(
    shop: Workshop, past: Sequence[StoredEvaluation], champion: str | None
) -> PoolMemory:
    """What the looks at a candidate with this champion have had of the pool."""
    last = next((one for one in reversed(past) if one.champion == champion), None)
    return read_pool_memory(shop.artifacts, last.report) if last else PoolMemory()


def may_ask(settings: Settings) -> bool:
    """Whether labels can be bought at all."""
    teacher = settings.teacher
    able = bool(teacher.base_url and teacher.model and settings.budget.label_calls)
    return able and bool(teacher.terms and teacher.terms_allow_training)


def after_asking(
    shop: Workshop, tx: Cursor, last: StoredEvaluation
) -> Literal["came", "waits", "late"] | None:
    """What became of the labels that the last look did without; None: there were none.

    A candidate that was not compared yet waits for them, but not for ever: where they are late it
    is judged on what there is, and again when they come.
    """
    awaited = read_pool_memory(shop.artifacts, last.report).awaited
    if not awaited:
        return None
    if not count_awaited(tx, awaited):
        return "came"
    if last.compared:
        return None
    return "waits" if shop.now() - last.evaluated_at < LONGEST_WAIT else "late"


def _parted(answers: Answers, at: int) -> tuple[Answers, Answers]:
    places = range(len(answers.labels))
    return answers_at(answers, places[:at]), answers_at(answers, places[at:])
