"""Live agreement without bias: every assessed event counts, the labelled ones correct it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics.betting import betting_interval
from pipelines.statistics.sequences import sequence_half_width
from pipelines.types import Estimate

# Below this many labels a normal approximation says nothing, and neither do we.
MIN_LABELLED = 20
EVERYTHING = "everything"  # the kind that all kinds are together


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSums:
    """Sums over all events of a window that a student assessed; `f` is predicted agreement."""

    events: int
    predicted: float  # sum of f
    predicted_squares: float  # sum of f squared

    def __add__(self, other: "TrafficSums") -> "TrafficSums":
        return TrafficSums(
            events=self.events + other.events,
            predicted=self.predicted + other.predicted,
            predicted_squares=self.predicted_squares + other.predicted_squares,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnEvent:
    """One event of the window that a draw with known probability chose."""

    predicted: float  # f, computed from the past only
    probability: float  # pi, of being chosen by any of the draws that the estimate uses
    agrees: bool | None  # None: its label never came


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAgreement:
    """Agreement over all events of the window. `estimate.n` counts the labels."""

    estimate: Estimate
    variance: float  # of phi, per event
    events: int
    drawn: int
    unanswered: int  # drawn, and no label came


def live_agreement(
    sums: TrafficSums,
    drawn: Sequence[DrawnEvent],
    *,
    alpha: float = 0.05,
    expected_events: int = 20_000,
    trust: float = 1.0,
) -> LiveAgreement:
    """mean(phi) with its asymptotic confidence sequence.

    phi = f + (drawn / pi) (A - f), with f multiplied by `trust` (lambda of PPI++; 0 is
    Horvitz-Thompson). A drawn event whose label never came is taken to be like those whose
    label came: pi is multiplied by the share that was answered, and the number is returned
    to be shown.

    The interval may be looked at continuously. It restarts with every promotion and alarm,
    which the caller does by passing sums and draws from then on.
    """
    for event in drawn:
        _refuse_impossible(event)
    labelled = [event for event in drawn if event.agrees is not None]
    unanswered = len(drawn) - len(labelled)
    if sums.events <= 0 or not labelled:
        nothing = Estimate(value=math.nan, low=0.0, high=1.0, n=0)
        return LiveAgreement(
            estimate=nothing,
            variance=math.nan,
            events=sums.events,
            drawn=len(drawn),
            unanswered=unanswered,
        )
    answered = len(labelled) / len(drawn)
    total, squares = _phi_sums(sums, labelled, trust=trust, answered=answered)
    mean = total / sums.events
    variance = max(0.0, squares / sums.events - mean * mean)
    variance += _imagined_surprises(labelled, trust, answered) / sums.events
    half = sequence_half_width(
        math.sqrt(variance), sums.events, alpha=alpha, expected_events=expected_events
    )
    if len(labelled) < MIN_LABELLED:
        half = math.inf
    estimate = Estimate(
        value=min(1.0, max(0.0, mean)),
        low=min(1.0, max(0.0, mean - half)),
        high=max(0.0, min(1.0, mean + half)),
        n=len(labelled),
    )
    return LiveAgreement(
        estimate=estimate,
        variance=variance,
        events=sums.events,
        drawn=len(drawn),
        unanswered=unanswered,
    )


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


def _phi_sums(
    sums: TrafficSums, labelled: Sequence[DrawnEvent], *, trust: float, answered: float
) -> tuple[float, float]:
    """The sums of phi and of its squares."""
    total = trust * sums.predicted
    squares = trust * trust * sums.predicted_squares
    for event in labelled:
        prediction = trust * event.predicted
        correction = (float(bool(event.agrees)) - prediction) / (event.probability * answered)
        total += correction
        squares += (prediction + correction) ** 2 - prediction * prediction
    return total, squares


def _imagined_surprises(labelled: Sequence[DrawnEvent], trust: float, answered: float) -> float:
    """Squared corrections of one more agreement and one more disagreement.

    With few labels and no disagreement among them the sample variance is far too small, and
    an interval built on it would not cover. Their influence fades as labels come.
    """
    prediction = trust * sum(event.predicted for event in labelled) / len(labelled)
    probability = answered * sum(event.probability for event in labelled) / len(labelled)
    return (prediction**2 + (1.0 - prediction) ** 2) / probability**2


def _refuse_impossible(event: DrawnEvent) -> None:
    if not 0.0 < event.probability <= 1.0:
        raise ValueError(f"an event cannot have been drawn with probability {event.probability}")
    if not 0.0 <= event.predicted <= 1.0:
        raise ValueError(f"predicted agreement is a probability, not {event.predicted}")
