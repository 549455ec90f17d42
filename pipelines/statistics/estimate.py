"""Live agreement without bias: every assessed event counts, the labelled ones correct it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics.betting import betting_interval
from pipelines.types import Estimate

EVERYTHING = "everything"  # the kind that all kinds are together


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSums:
    """Sums over all events of a window that a student assessed; `f` is predicted agreement."""

    events: int
    predicted: float  # sum of f


class Audit(NamedTuple):
    """One event that the audit draw chose."""

    predicted: float  # f
    agrees: bool | None  # None: its label has not come


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """All events of one kind, and the simple random sample of them that is audited.

    A kind has one way to be served, and so its labels come in one way: what the student answered
    above its threshold, what it answered because nobody else could, what went to the teacher.
    """

    name: str
    sums: TrafficSums
    audits: Sequence[Audit]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindAgreement:
    """Agreement over the events of a kind. `estimate.n` counts the labels."""

    name: str
    estimate: Estimate  # without a label: not a number, within [0, 1]
    worst: float  # the interval's lower end, were every missing audit wrong
    best: float  # the interval's upper end, were every missing audit right
    predicted: float  # the mean of f
    events: int
    unanswered: int  # audits without a label


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementByKind:
    """Agreement of each kind that has events, and of all events."""

    kinds: tuple[KindAgreement, ...]
    overall: KindAgreement

    def kind(self, name: str) -> KindAgreement | None:
        """None where no event was of this kind."""
        return next((one for one in self.kinds if one.name == name), None)


def live_agreement_by_kind(kinds: Sequence[Kind], alpha: float = 0.05) -> AgreementByKind:
    """Agreement over the events of each kind and over all, with confidence sequences.

    A kind's agreement is the mean of f over its events, which is known, and of A - f over its
    audits, which is bet on (`betting_interval`). All kinds together are their mixture by number
    of events. Each interval holds at every look, and all of them together with probability
    1 - alpha: alpha is divided among the kinds that have events. So an audit speaks for its own
    kind only, and one kind with events and no label keeps the whole of its share unknown.

    Labels that have not come yet are taken to be like those of their kind that have; `worst`
    and `best` make no such assumption. Raises ValueError where f is not a probability, or where
    no kind has an event.
    """
    present = [kind for kind in kinds if kind.sums.events > 0]
    if not present:
        raise ValueError("there is no event to estimate agreement of")
    parts = [_kind_agreement(kind, alpha / len(present)) for kind in present]
    return AgreementByKind(kinds=tuple(parts), overall=_mixture(parts))


def _kind_agreement(kind: Kind, alpha: float) -> KindAgreement:
    predicted = np.array([audit.predicted for audit in kind.audits], dtype=np.float64)
    if not bool(np.all((predicted >= 0.0) & (predicted <= 1.0))):
        raise ValueError(f"a predicted agreement of kind {kind.name} is not a probability")
    known = np.array([audit.agrees is not None for audit in kind.audits], dtype=bool)
    agrees = np.array([bool(audit.agrees) for audit in kind.audits], dtype=bool)
    average = min(1.0, kind.sums.predicted / kind.sums.events)

    def corrected(agrees: NDArray[np.bool_], predicted: NDArray[np.float64]) -> Estimate:
        found = betting_interval(agrees - predicted, smallest=-1.0, largest=1.0, alpha=alpha)
        ends = np.clip(average + np.array([found.value, found.low, found.high]), 0.0, 1.0)
        return Estimate(value=float(ends[0]), low=float(ends[1]), high=float(ends[2]), n=found.n)

    estimate = corrected(agrees[known], predicted[known])
    missing = known.size - estimate.n
    return KindAgreement(
        name=kind.name,
        estimate=estimate,
        worst=corrected(agrees, predicted).low if missing else estimate.low,
        best=corrected(agrees | ~known, predicted).high if missing else estimate.high,
        predicted=average,
        events=kind.sums.events,
        unanswered=missing,
    )


def _mixture(parts: Sequence[KindAgreement]) -> KindAgreement:
    """All kinds, each weighted by its events; one without a label has the value predicted."""
    weights = np.array([part.events for part in parts]) / sum(part.events for part in parts)
    labels = sum(part.estimate.n for part in parts)

    def mixed(*ends: float) -> float:
        return float(weights @ np.array(ends))

    values = [part.estimate.value if part.estimate.n else part.predicted for part in parts]
    return KindAgreement(
        name=EVERYTHING,
        estimate=Estimate(
            value=mixed(*values) if labels else math.nan,
            low=mixed(*(part.estimate.low for part in parts)),
            high=mixed(*(part.estimate.high for part in parts)),
            n=labels,
        ),
        worst=mixed(*(part.worst for part in parts)),
        best=mixed(*(part.best for part in parts)),
        predicted=mixed(*(part.predicted for part in parts)),
        events=sum(part.events for part in parts),
        unanswered=sum(part.unanswered for part in parts),
    )
