"""What a certificate is about: the traffic as it comes, repeated prompts included.

Students are compared on distinct held-out prompts, but a promise is kept or broken on traffic, and
a few prompts may be most of that. Four in five of these are on the training side, where no
held-out item tells anything of them. So a threshold is certified on draws of what came lately on
both sides: held-out draws, and audits of the training side.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluate import thin, thinning_rate
from pipelines.marks import NO_COURSE, Course, CoursePart
from pipelines.statistics.newest import begins
from pipelines.types import HeldOutItem, Side

FEWEST_TRAINING_DRAWS = 30  # on fewer, nobody knows what comes on that side
MET_BEFORE = timedelta(days=1)  # about as often as a student is trained


class Draw(NamedTuple):
    """A labelled event that was drawn from the traffic of its side, whatever its text."""

    item: HeldOutItem
    side: Side
    text: str  # normalised
    met: datetime | None  # when the first labelled sample of this text came, if it is not this one


def weighted(
    draws: Sequence[Draw], items: Sequence[HeldOutItem], most_training: int
) -> tuple[HeldOutItem, ...]:
    """The prompts of the traffic since the oldest of the held-out `items`, with their weights.

    One item a text and label, its newest draw. The heaviest draw counts as one, any other as less:
    wrong answers are then a sum of independent numbers between 0 and 1, which is spread less than
    as many whole ones with the same mean would be (Hoeffding, Annals of Mathematical Statistics
    1956), so that the tests of `pipelines.statistics.certify` err on the safe side.

    On the held-out side each draw tells how a student does on what it was not trained on. A draw
    of the training side tells it only where the text had been met well before (`_known`): a
    student of then would have been trained on it as well, and what this one says to it it will
    say again. Any other draw stands for what a student meets for the first time, and this one
    has been trained on it: the held-out draws of texts that had not been met speak for those.

    Both sides count as they are in the traffic (Horvitz-Thompson); within a side, draws at
    unequal rates are weighted as far as `pipelines.evaluate.thin` would go. Of the training side
    the newest `most_training` are asked. Empty where too little is known of that side: then
    each item has to count as one.
    """
    since = _oldest(items)
    recent = [draw for draw in draws if _since(draw.item, since)]
    held_out = [draw for draw in recent if draw.side is Side.HELD_OUT]
    training = [draw for draw in recent if draw.side is Side.TRAINING]
    groups = {item.group_id for item in items}
    judging = [draw for draw in held_out if draw.item.group_id in groups]
    if len(training) < FEWEST_TRAINING_DRAWS or not judging:
        return ()
    asked = training[-most_training:]
    ours, theirs = _weights(judging, _mass(held_out)), _weights(asked, _mass(training))
    apart = _apart(recent)
    known = np.array([_known(draw, apart) for draw in asked])
    new = np.array([not _known(draw, apart) for draw in judging])
    speak = ours * (new if new.any() else 1.0)
    ours = ours + speak * (float(theirs[~known].sum()) / float(speak.sum()))
    told = [draw for draw, one in zip(asked, known, strict=True) if one]
    return _together([*judging, *told], np.concatenate([ours, theirs[known]]))


def course_of(
    draws: Sequence[Draw],
    items: Sequence[HeldOutItem],
    traffic: Sequence[HeldOutItem],
    most_training: int,
) -> Course:
    """In which order the evidence came, and the evidence from some moments on.

    The held-out draws are uniform at every moment and train nobody, so that while nothing changes
    their order is chance. Each is named by the item that has its text and label. Where there is
    no `traffic`, the items themselves are all that is known. Empty where times are not.
    """
    groups = {item.group_id for item in items}
    since = _oldest(items)
    came = [(item.event_id, item) for item in items]
    if traffic:
        texts = {draw.item.event_id: draw.text for draw in draws}
        named = {(texts[item.event_id], item.label): item.event_id for item in traffic}
        judging = [
            (named.get((draw.text, draw.item.label)), draw.item)
            for draw in draws
            if draw.side is Side.HELD_OUT and draw.item.group_id in groups
        ]
        came = [(name, item) for name, item in judging if name and _since(item, since)]
    timed = [(item.occurred_at, name) for name, item in came if item.occurred_at is not None]
    if len(timed) < len(came):
        return NO_COURSE
    timed.sort()
    parts = []
    for before in begins(len(timed)):
        begin = timed[before][0]
        recent = [item for item in items if _since(item, begin)]
        known = [draw for draw in draws if _since(draw.item, begin)]
        own = weighted(known, recent, most_training) if traffic else ()
        parts.append(CoursePart(before, begin, own or thin(recent), weighted=bool(own)))
    return Course(tuple(name for _, name in timed), tuple(parts))


def _since(item: HeldOutItem, moment: datetime | None) -> bool:
    return moment is None or item.occurred_at is None or item.occurred_at >= moment


def _apart(draws: Sequence[Draw]) -> timedelta:
    """How long before a draw its text has to have been met: a day, or a tenth of a shorter window.

    What everybody asks for an hour, and then never again, a student knows afterwards; of what
    everybody will ask for the next hour that says nothing.
    """
    times = [draw.item.occurred_at for draw in draws if draw.item.occurred_at is not None]
    return min(MET_BEFORE, (max(times) - min(times)) / 10) if times else timedelta(0)


def _known(draw: Draw, apart: timedelta) -> bool:
    at = draw.item.occurred_at
    return draw.met is not None and at is not None and draw.met <= at - apart


def _oldest(items: Sequence[HeldOutItem]) -> datetime | None:
    return min((item.occurred_at for item in items if item.occurred_at is not None), default=None)


def _mass(draws: Sequence[Draw]) -> float:
    """How many events they were drawn from, about."""
    return sum(1.0 / draw.item.inclusion_probability for draw in draws)


def _weights(draws: Sequence[Draw], mass: float) -> NDArray[np.float64]:
    """One a draw, adding up to `mass`."""
    rates = np.array([draw.item.inclusion_probability for draw in draws])
    each: NDArray[np.float64] = np.minimum(1.0, thinning_rate(rates) / rates)
    return each * (mass / float(each.sum()))


def _together(draws: Sequence[Draw], weights: NDArray[np.float64]) -> tuple[HeldOutItem, ...]:
    """One item a text and label, the newest; the heaviest draw weighs one."""
    newest: dict[tuple[str, str], HeldOutItem] = {}
    sums: defaultdict[tuple[str, str], float] = defaultdict(float)
    for draw, weight in zip(draws, (weights / weights.max()).tolist(), strict=True):
        key = (draw.text, draw.item.label)
        newest[key] = draw.item
        sums[key] += weight
    return tuple(replace(item, weight=sums[key]) for key, item in newest.items())
