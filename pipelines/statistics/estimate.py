"""Live agreement without bias: every assessed event counts, the labelled ones correct it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.statistics.sequences import Block, bernstein_sequence, sequence_half_width
from pipelines.types import Estimate

# Below this many labels a normal approximation says nothing, and neither do we.
MIN_LABELLED = 20


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAgreement:
    """Agreement over all events of the window. `estimate.n` counts the labels."""

    estimate: Estimate
    variance: float  # of phi, per event
    events: int
    drawn: int
    unanswered: int  # drawn, and no label came


def joint_probability(*probabilities: float) -> float:
    """The probability that at least one of several independent draws chooses an event."""
    return 1.0 - math.prod(1.0 - probability for probability in probabilities)


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
    to be shown. `bernstein_agreement` makes no such assumption.

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
    block = _phi_sums(sums, labelled, trust=trust, answered=answered)
    mean = block.total / block.events
    variance = max(0.0, block.squares / block.events - mean * mean)
    variance += _imagined_surprises(labelled, trust, answered) / block.events
    half = sequence_half_width(
        math.sqrt(variance), block.events, alpha=alpha, expected_events=expected_events
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


def bernstein_agreement(
    windows: Sequence[tuple[TrafficSums, Sequence[DrawnEvent]]],
    *,
    smallest_probability: float,
    alpha: float = 0.05,
) -> Estimate:
    """Agreement with a non-asymptotic confidence sequence: what automatic rollback trusts.

    `windows` are consecutive, for example minutes, oldest first, from the last promotion on.
    `smallest_probability` is the lowest pi that the policy allows, known beforehand: phi
    then lies within [1 - 1/pi, 1/pi]. A label that never came counts as agreement in the
    upper end and as disagreement in the lower.
    """
    if not 0.0 < smallest_probability <= 1.0:
        raise ValueError(f"a probability of being drawn is in (0, 1], not {smallest_probability}")
    limit = 1.0 / smallest_probability
    ends: list[Estimate] = []
    for fill in (False, True):
        blocks = []
        for sums, drawn in windows:
            for event in drawn:
                _refuse_impossible(event, smallest_probability)
            filled = [
                DrawnEvent(
                    predicted=event.predicted,
                    probability=event.probability,
                    agrees=fill if event.agrees is None else event.agrees,
                )
                for event in drawn
            ]
            blocks.append(_phi_sums(sums, filled, trust=1.0, answered=1.0))
        ends.append(bernstein_sequence(blocks, smallest=1.0 - limit, largest=limit, alpha=alpha))
    labels = sum(1 for _, drawn in windows for event in drawn if event.agrees is not None)
    return Estimate(
        value=(ends[0].value + ends[1].value) / 2,
        low=min(1.0, max(0.0, ends[0].low)),
        high=max(0.0, min(1.0, ends[1].high)),
        n=labels,
    )


def _phi_sums(
    sums: TrafficSums, labelled: Sequence[DrawnEvent], *, trust: float, answered: float
) -> Block:
    total = trust * sums.predicted
    squares = trust * trust * sums.predicted_squares
    for event in labelled:
        prediction = trust * event.predicted
        correction = (float(bool(event.agrees)) - prediction) / (event.probability * answered)
        total += correction
        squares += (prediction + correction) ** 2 - prediction * prediction
    return Block(events=sums.events, total=total, squares=squares)


def _imagined_surprises(labelled: Sequence[DrawnEvent], trust: float, answered: float) -> float:
    """Squared corrections of one more agreement and one more disagreement.

    With few labels and no disagreement among them the sample variance is far too small, and
    an interval built on it would not cover. Their influence fades as labels come.
    """
    prediction = trust * sum(event.predicted for event in labelled) / len(labelled)
    probability = answered * sum(event.probability for event in labelled) / len(labelled)
    return (prediction**2 + (1.0 - prediction) ** 2) / probability**2


def _refuse_impossible(event: DrawnEvent, smallest: float = 0.0) -> None:
    if not (0.0 < event.probability <= 1.0 and event.probability >= smallest):
        raise ValueError(f"an event cannot have been drawn with probability {event.probability}")
    if not 0.0 <= event.predicted <= 1.0:
        raise ValueError(f"predicted agreement is a probability, not {event.predicted}")
