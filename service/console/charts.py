"""The charts of the console. The templates only draw what is worked out here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import floor, log10
from typing import Any

from pipelines.types import Estimate
from service.console.formats import money, percent
from service.console.plot import WIDTH, Axis, LineChart, Mark, Moment, join, over_time, some
from service.operator.status import Figures, Reign


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A dot with its interval, in per cent of the width."""

    low: float
    value: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A stretch of time, in per cent of the width."""

    at: float
    width: float


def interval(found: Estimate, floor: float = 0.0) -> Interval:
    """Place an estimate between `floor` and 1."""

    def place(share: float) -> float:
        return round(100 * min(1.0, max(0.0, (share - floor) / (1 - floor))), 2)

    return Interval(low=place(found.low), value=place(found.value), high=place(found.high))


def reign_bars(reigns: Sequence[Reign], now: datetime) -> list[Bar]:
    """Each reign as a stretch of the time since the first of them."""
    if not reigns:
        return []
    start = reigns[0].since
    length = max((now - start).total_seconds(), 1e-9)

    def place(moment: datetime) -> float:
        return round(100 * min(1.0, max(0.0, (moment - start).total_seconds() / length)), 2)

    spans = [(place(one.since), place(one.until or now)) for one in reigns]
    # What was short is still there to be seen.
    return [Bar(at=min(a, 99.0), width=max(round(b - a, 2), 1.0)) for a, b in spans]


def coverage_chart(figures: Figures, now: datetime, reigns: Sequence[Reign]) -> LineChart | None:
    """Trusted coverage over time, and what was certified."""
    moments = [
        Moment(one.at, one.coverage, one.coverage_low, one.coverage_high) for one in figures.history
    ]
    certified = figures.certified_coverage
    return over_time(
        moments,
        now,
        axis=Axis(lowest=0.0, highest=1.0, write=_whole_percent, exact=percent),
        name="Trusted coverage",
        target=certified,
        target_text="" if certified is None else f"certified {percent(certified)}",
        reigns=reigns,
    )


def agreement_chart(
    figures: Figures, target: float, now: datetime, reigns: Sequence[Reign]
) -> LineChart | None:
    """Live agreement with its confidence sequence, and the target."""
    moments = [Moment(one.at, one.agreement, one.low, one.high) for one in figures.history]
    known = [one for one in moments if one.value is not None]
    values = [one.value for one in known if one.value is not None]
    # The first intervals reach down to nothing; the axis is for what is known by now.
    seen = [*values, *(one.low for one in known[-1:] if one.low is not None), target - 0.05]
    lowest = min(max(0.0, int(min(seen) * 20) / 20), 0.9)
    cut = any(one.low is not None and one.low < lowest for one in known)
    return over_time(
        moments,
        now,
        axis=Axis(lowest=lowest, highest=1.0, write=_whole_percent, exact=percent),
        name="Agreement",
        target=target,
        target_text=f"target {percent(target)}",
        reigns=reigns,
        note=_begins(lowest, cut=cut),
    )


def spend_chart(figures: Figures, now: datetime) -> LineChart | None:
    """What labels cost, added up since midnight UTC, against the day's budget."""
    moments = [Moment(one.at, one.spend) for one in figures.history]
    highest = max((one.value or 0.0 for one in moments), default=0.0)
    budget = figures.budget_today
    # A budget far above would press the line to the floor; then it is said, not drawn.
    drawn = 0 < budget <= 4 * highest
    top = _round_up(1.05 * (budget if drawn and budget > highest else highest))
    return over_time(
        moments,
        now,
        axis=Axis(lowest=0.0, highest=top, write=money, exact=money),
        name="Spent on labels",
        target=budget if drawn else None,
        target_text=f"budget {money(budget)}" if drawn else "",
        note="" if drawn else f"The day's budget of {money(budget)} lies above the axis.",
        grows=True,
    )


def loss_chart(training: Mapping[str, Any]) -> LineChart | None:
    """The loss over the steps of a training; None where nothing was tuned."""
    points = [(int(step), float(loss)) for step, loss in training.get("loss_curve") or ()]
    if len(points) < 2:
        return None
    (start, first), (end, last) = points[0], points[-1]
    top = _round_up(max(loss for _, loss in points))
    axis = Axis(lowest=0.0, highest=top, write=_short, exact=_short)
    placed = [(WIDTH * (step - start) / (end - start), axis.place(loss)) for step, loss in points]
    return LineChart(
        lines=(join([(round(x, 2), y) for x, y in placed]),),
        bands=(),
        dots=(),
        target=None,
        target_text="",
        last=(100.0, placed[-1][1]),
        rows=axis.ticks(),
        columns=(Mark(at=0, text=f"step {start:,}"), Mark(at=100, text=f"step {end:,}")),
        summary=f"The loss fell from {first:.3g} at step {start:,} to {last:.3g} at step {end:,}"
        if last < first
        else f"The loss did not fall: {first:.3g} at step {start:,}, {last:.3g} at step {end:,}",
        header=("Step", "Loss"),
        table=tuple((f"{step:,}", f"{loss:.3g}") for step, loss in some(points)),
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, ... at any size: where an axis may end."""
    if value <= 0:
        return 1.0
    size: float = 10.0 ** floor(log10(value))
    return next(size * digit for digit in (1, 2, 5, 10) if size * digit >= value * (1 - 1e-9))


def _begins(lowest: float, *, cut: bool) -> str:
    if not lowest:
        return ""
    more = "; the interval reached below it" if cut else ""
    return f"The axis begins at {_whole_percent(lowest)}{more}."


def _whole_percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _short(value: float) -> str:
    return f"{value:.3g}"
