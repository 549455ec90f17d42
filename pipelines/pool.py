"""Events that were kept without a label, to compare a candidate with its champion on.

Where the two give the same answer the pair is a tie whatever the teacher would say, so that only
the items where they differ need a label (Sawade, Landwehr and Scheffer, Active comparison of
prediction models, NeurIPS 2012). Nothing else may use those labels: they were bought where two
students differ, and agreement, calibration or a threshold from them would be one of such items.

Why the tests stay what they are. The pool is a uniform draw of held-out events at every moment, as
the held-out items are (both are stretches of one number, see `pipelines.sample`), one item of a
group: both together are a mixture of periods, and the comparison is exact for that mixture, as it
is for items that were drawn at different rates. Which of its items are counted is decided before
any label of them is looked at: in the order of a hash, up to and with the item at which the labels
that may be bought are used up. That is a stopping time (inverse sampling): given how often the two
differ, wins are binomial, the sign test is exact and the e-process a supermartingale. A part is
counted whole or not at all; an item whose label could not be had counts as the candidate's loss.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple

from pipelines.pairs import Pooled
from pipelines.types import Answers, Evaluation, HeldOutItem, PairCounts

# Of each candidate with each champion: with 5 % of differing answers, those of 3,000 items.
MOST_BOUGHT = 150

# What became of an item's label. `unasked` and `awaited` have none yet, `missing` never will. What
# is `labelled` with none is one to which the teacher's answer was no label.
Standing = Literal["unasked", "awaited", "labelled", "missing"]


class PoolItem(NamedTuple):
    """One event of the pool, with its label in the item if it has one."""

    item: HeldOutItem
    standing: Standing
    bought: bool = False  # because two students differ on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How far the pool is read for one candidate and champion. Places are those in the pool."""

    counted: tuple[int, ...]  # pairs that are known, whole
    read: tuple[int, ...]  # what is counted once the labels have come
    wanted: tuple[int, ...]  # of what is read: to be asked for
    awaited: tuple[int, ...]  # of what is read: asked for already


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPart:
    """The items of the pool that are counted, and what both say to them."""

    items: tuple[PoolItem, ...]
    candidate: Answers
    champion: Answers

    def outcomes(self) -> tuple[int, ...]:
        """Of each item: 1 a win of the candidate, -1 a loss, 0 a tie."""
        said = zip(self.items, self.candidate.labels, self.champion.labels, strict=True)
        return tuple(_outcome(one, ours, theirs) for one, ours, theirs in said)

    def facts(self) -> Pooled:
        said = zip(self.items, self.candidate.labels, self.champion.labels, strict=True)
        differing = [one for one, ours, theirs in said if ours != theirs]
        return Pooled(
            items=len(self.items),
            agreed=len(self.items) - len(differing),
            bought=sum(one.bought and one.standing == "labelled" for one in differing),
            missing=sum(one.standing != "labelled" for one in differing),
        )


def part_of(
    pool: Sequence[PoolItem], places: Sequence[int], candidate: Answers, champion: Answers
) -> PoolPart:
    """These places of the pool with the answers of both, who answered all of it."""
    return PoolPart(
        items=tuple(pool[at] for at in places),
        candidate=answers_at(candidate, places),
        champion=answers_at(champion, places),
    )


def answers_at(answers: Answers, places: Sequence[int]) -> Answers:
    """The answers to some of the items."""
    return Answers(
        name=answers.name,
        labels=tuple(answers.labels[at] for at in places),
        confidences=tuple(answers.confidences[at] for at in places),
        distances=tuple(answers.distances[at] for at in places) if answers.distances else (),
    )


def read_pool(
    pool: Sequence[PoolItem], differ: Sequence[bool], *, before: Set[str], asked: int
) -> Reading:
    """What of the pool may be counted, and which labels it takes to count more of it.

    `before`: what was read at earlier looks at this candidate with this champion; `asked`: how
    many labels were asked for then. With `MOST_BOUGHT` it is read no further. Whether it is may
    depend on anything but on how the two differ on the rest: who goes on only where few labels
    are needed counts too many ties.
    """
    order = sorted(range(len(pool)), key=lambda at: _order(pool[at], before))
    known = [at for at in order if pool[at].item.event_id in before]
    read, wanted = list(known), list[int]()
    for at in order[len(known) :]:
        if asked + len(wanted) >= MOST_BOUGHT:
            break
        read.append(at)
        if differ[at] and pool[at].standing == "unasked":
            wanted.append(at)
    awaited = [at for at in read if differ[at] and pool[at].standing == "awaited"]
    counted = list[int]()
    if not wanted and not awaited:
        counted = read
    elif not {*awaited} & {*known}:
        counted = known
    return Reading(
        counted=tuple(counted), read=tuple(read), wanted=tuple(wanted), awaited=tuple(awaited)
    )


def added(pairs: PairCounts, outcomes: Sequence[int]) -> PairCounts:
    """The pairs and those of the pool."""
    wins, losses = sum(one > 0 for one in outcomes), sum(one < 0 for one in outcomes)
    return PairCounts(
        wins=pairs.wins + wins,
        losses=pairs.losses + losses,
        ties=pairs.ties + len(outcomes) - wins - losses,
    )


def pairs_in_words(evaluation: Evaluation, asked: int) -> str:
    """What the pool contributed, and what it is to contribute; empty: nothing."""
    said, pooled = [], evaluation.pooled
    if pooled and pooled.items:
        said.append(
            f"{pooled.items:,} of the pairs with the champion are events that were kept without "
            f"asking for a label: {pooled.agreed:,} were decided by both giving the same answer, "
            f"and {pooled.bought:,} labels were bought where they differ."
        )
        if pooled.missing:
            said.append(
                f"No label could be had for {pooled.missing:,}; they count against this version."
            )
    if asked:
        said.append(
            f"{asked:,} labels of kept events are asked for where it differs from the champion; "
            "when they have come, it is judged again."
        )
    return " ".join(said)


def _outcome(one: PoolItem, ours: str, theirs: str) -> int:
    if ours == theirs:
        return 0
    if one.standing != "labelled":
        return -1
    if not one.item.label:  # the teacher's answer was no label: nobody is right
        return 0
    return int(one.item.label == ours) - int(one.item.label == theirs)


def _order(one: PoolItem, before: Set[str]) -> tuple[bool, bytes]:
    """What was read stays in front; behind it a hash that knows nothing of the prompt."""
    event_id = one.item.event_id
    return event_id not in before, blake2b(
        event_id.encode(), digest_size=8, person=b"pool"
    ).digest()
