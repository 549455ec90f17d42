"""The geometry of a line over time: axes, ticks, gaps, bands, and the table that says the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import TypeVar

from service.operator.status import Reign

# Lines are drawn in a box of this size that stretches to the page; text is not stretched.
WIDTH, HEIGHT = 1000.0, 100.0
GAP = 3.0  # times the usual distance of two moments: then nobody looked in between
MOST_TICKS = 5
ROWS_IN_TABLE = 12
TICK_STEPS = tuple(
    timedelta(seconds=seconds)
    for seconds in (
        *(10, 30, 60, 120, 300, 600, 900, 1800),
        *(3600 * hours for hours in (1, 2, 3, 6, 12, 24)),
    )
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A tick: where, in per cent of the box, and what it says."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """One figure over time or steps, with its band where there is one. Gaps stay gaps."""

    lines: tuple[str, ...]  # points of polylines
    bands: tuple[str, ...]  # points of polygons
    dots: tuple[tuple[float, float], ...]  # moments alone between gaps, in per cent
    target: float | None  # in per cent of the height
    target_text: str
    last: tuple[float, float] | None
    rows: tuple[Mark, ...]
    columns: tuple[Mark, ...]
    summary: str
    marks: tuple[Mark, ...] = ()  # moments at which something changed
    note: str = ""  # what a reader could get wrong
    header: tuple[str, ...] = ()  # of the table that says the same
    table: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Moment:
    """What was measured at one moment. `value` None: nothing could be."""

    at: datetime
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From where to where the values are drawn, and how they are written."""

    lowest: float
    highest: float
    write: Callable[[float], str]  # at the axis
    exact: Callable[[float], str]  # in sentences and tables

    def place(self, value: float) -> float:
        share = (value - self.lowest) / (self.highest - self.lowest)
        return round(HEIGHT * (1 - min(1.0, max(0.0, share))), 2)

    def ticks(self) -> tuple[Mark, ...]:
        middle = (self.lowest + self.highest) / 2
        values = (self.lowest, middle, self.highest)
        return tuple(Mark(at=self.place(value), text=self.write(value)) for value in values)


def over_time(
    moments: Sequence[Moment],
    now: datetime,
    *,
    axis: Axis,
    name: str,
    target: float | None,
    target_text: str,
    reigns: Sequence[Reign] = (),
    note: str = "",
    grows: bool = False,
) -> LineChart | None:
    known = [one for one in moments if one.value is not None]
    if len(known) < 2:
        return None
    # The axis ends now: where nobody looked lately, there is nothing to see at its end.
    start, end = moments[0].at, max(now, moments[-1].at)
    length = max((end - start).total_seconds(), 1e-9)

    def x(at: datetime) -> float:
        return round(WIDTH * (at - start).total_seconds() / length, 2)

    runs = _runs(moments, breaks=[one.since for one in reigns], grows=grows)
    last = known[-1]
    return LineChart(
        lines=tuple(
            join([(x(one.at), axis.place(one.value or 0.0)) for one in run])
            for run in runs
            if len(run) > 1
        ),
        bands=tuple(_band(run, x, axis) for run in runs if len(run) > 1 and run[0].low is not None),
        dots=tuple(
            (x(run[0].at) / 10, axis.place(run[0].value or 0.0)) for run in runs if len(run) == 1
        ),
        target=None if target is None else axis.place(target),
        target_text=target_text,
        last=(x(last.at) / 10, axis.place(last.value or 0.0)),
        rows=axis.ticks(),
        columns=_time_ticks(start, end),
        marks=tuple(
            Mark(at=x(one.since) / 10, text=one.name.rsplit("-", 1)[-1])
            for one in reigns
            if start < one.since <= end
        ),
        summary=_summary(name, known, axis),
        note=note,
        header=("Time", name, "Interval") if last.low is not None else ("Time", name),
        table=tuple(_row(one, axis) for one in some(known)),
    )


def _runs(
    moments: Sequence[Moment], *, breaks: Sequence[datetime], grows: bool
) -> list[list[Moment]]:
    """Stretches without a gap.

    A gap: nothing measured, nobody looking, another champion, or a sum that began again.
    """
    distances = [(b.at - a.at).total_seconds() for a, b in pairwise(moments)]
    longest = GAP * median(distances) if distances else 0.0
    runs: list[list[Moment]] = [[]]
    for one in moments:
        before = runs[-1][-1] if runs[-1] else None
        if one.value is None:
            runs.append([])
            continue
        if before is not None and (
            (one.at - before.at).total_seconds() > longest
            or (grows and one.value < (before.value or 0.0))
            or any(before.at < moment <= one.at for moment in breaks)
        ):
            runs.append([])
        runs[-1].append(one)
    return [run for run in runs if run]


def _band(run: Sequence[Moment], x: Callable[[datetime], float], axis: Axis) -> str:
    upper = [(x(one.at), axis.place(one.high)) for one in run if one.high is not None]
    lower = [(x(one.at), axis.place(one.low)) for one in run if one.low is not None]
    return join([*upper, *reversed(lower)])


def _time_ticks(start: datetime, end: datetime) -> tuple[Mark, ...]:
    """Round times, a handful of them."""
    length = (end - start) / timedelta(seconds=1)
    step = next((one for one in TICK_STEPS if (end - start) / one <= MOST_TICKS), TICK_STEPS[-1])
    seconds = step.total_seconds()
    first = datetime.fromtimestamp((start.timestamp() // seconds + 1) * seconds, UTC)
    found = []
    while first <= end:
        place = 100 * (first - start).total_seconds() / length
        found.append(Mark(at=round(place, 2), text=_time_text(first, step)))
        first += step
    return tuple(found) or (Mark(at=0, text=_time_text(start, step)),)


def _time_text(at: datetime, step: timedelta) -> str:
    if (at.hour, at.minute, at.second) == (0, 0, 0):
        return at.strftime("%d %b")
    return at.strftime("%H:%M:%S" if step < timedelta(minutes=1) else "%H:%M")


def _row(one: Moment, axis: Axis) -> tuple[str, ...]:
    when, value = one.at.astimezone(UTC).strftime("%d %b %H:%M:%S"), axis.exact(one.value or 0.0)
    if one.low is None or one.high is None:
        return (when, value)
    return (when, value, f"{axis.exact(one.low)} to {axis.exact(one.high)}")


def some(found: Sequence[T]) -> list[T]:
    """A few of them, evenly, with the first and the last."""
    if len(found) <= ROWS_IN_TABLE:
        return list(found)
    step = (len(found) - 1) / (ROWS_IN_TABLE - 1)
    return [found[round(index * step)] for index in range(ROWS_IN_TABLE)]


def join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _summary(name: str, known: Sequence[Moment], axis: Axis) -> str:
    values = [one.value or 0.0 for one in known]
    last, first = known[-1].at.astimezone(UTC), known[0].at.astimezone(UTC)
    since = first.strftime("%H:%M" if first.date() == last.date() else "%d %b %H:%M")
    return (
        f"{name}: {axis.exact(values[-1])} at {last:%H:%M} UTC, between "
        f"{axis.exact(min(values))} and {axis.exact(max(values))} since {since}"
    )
