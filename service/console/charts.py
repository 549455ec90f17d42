"""The geometry of the charts. The templates only draw what is worked out here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import floor, log10
from typing import Any

from pipelines.types import Estimate
from service.learner.status import HistoryPoint

# Lines are drawn in a box of this size that stretches to the page; text is not stretched.
WIDTH, HEIGHT = 1000.0, 100.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A dot with its interval, in per cent of the width."""

    low: float
    value: float
    high: float


def interval(found: Estimate, floor: float = 0.0) -> Interval:
    """Place an estimate between `floor` and 1."""

    def place(share: float) -> float:
        return round(100 * min(1.0, max(0.0, (share - floor) / (1 - floor))), 2)

    return Interval(low=place(found.low), value=place(found.value), high=place(found.high))


def scale_floor(estimates: Sequence[Estimate]) -> float:
    """Where an axis of shares starts: the tens below the lowest bound."""
    lowest = min((found.low for found in estimates), default=0.0)
    return min(0.9, max(0.0, int(lowest * 10) / 10))


def coverage_chart(history: Sequence[HistoryPoint]) -> LineChart | None:
    """Trusted coverage over time."""
    points = [(one.at, one.coverage, None, None) for one in history]
    return _chart(points, lowest=0.0, target=None, name="Trusted coverage")


def agreement_chart(history: Sequence[HistoryPoint], target: float) -> LineChart | None:
    """Live agreement with its interval, and the target."""
    points = [(one.at, one.agreement, one.low, one.high) for one in history]
    bounds = [low for _, _, low, _ in points if low is not None]
    start = max(0.0, int(min([*bounds, target - 0.05]) * 20) / 20)
    return _chart(points, lowest=min(start, 0.9), target=target, name="Agreement")


def loss_chart(training: Mapping[str, Any]) -> LineChart | None:
    """The loss over the steps of a training; None where nothing was tuned."""
    points = [(int(step), float(loss)) for step, loss in training.get("loss_curve") or ()]
    if len(points) < 2:
        return None
    (start, first), (end, last) = points[0], points[-1]
    top = _round_up(max(loss for _, loss in points))
    placed = [
        (WIDTH * (step - start) / (end - start), HEIGHT * (1 - loss / top)) for step, loss in points
    ]
    return LineChart(
        lines=(_join([(round(x, 2), round(y, 2)) for x, y in placed]),),
        bands=(),
        dots=(),
        target=None,
        target_text="",
        last=(100.0, round(placed[-1][1], 2)),
        rows=tuple(
            Mark(at=round(HEIGHT * (1 - share), 2), text=f"{share * top:.3g}")
            for share in (0.0, 0.5, 1.0)
        ),
        columns=(Mark(at=0, text=f"step {start:,}"), Mark(at=100, text=f"step {end:,}")),
        summary=f"The loss fell from {first:.3g} at step {start:,} to {last:.3g} at step {end:,}"
        if last < first
        else f"The loss did not fall: {first:.3g} at step {start:,}, {last:.3g} at step {end:,}",
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, ... at any size: where an axis may end."""
    if value <= 0:
        return 1.0
    size: float = 10.0 ** floor(log10(value))
    return next(size * digit for digit in (1, 2, 5, 10) if size * digit >= value * (1 - 1e-9))


Moment = tuple[datetime, float | None, float | None, float | None]


def _chart(
    points: Sequence[Moment], *, lowest: float, target: float | None, name: str
) -> LineChart | None:
    known = [(at, value) for at, value, _, _ in points if value is not None]
    if len(known) < 2:
        return None
    start, end = points[0][0], points[-1][0]
    length = max((end - start).total_seconds(), 1e-9)

    def x(at: datetime) -> float:
        return round(WIDTH * (at - start).total_seconds() / length, 2)

    def y(share: float) -> float:
        return round(HEIGHT * (1 - min(1.0, max(0.0, (share - lowest) / (1 - lowest)))), 2)

    runs = _runs(points)
    return LineChart(
        lines=tuple(_join([(x(at), y(v)) for at, v, _, _ in run]) for run in runs if len(run) > 1),
        bands=tuple(_band(run, x, y) for run in runs if len(run) > 1 and run[0][2] is not None),
        dots=tuple((x(run[0][0]) / 10, y(run[0][1])) for run in runs if len(run) == 1),
        target=None if target is None else y(target),
        target_text="" if target is None else f"target {100 * target:g} %",
        last=(x(known[-1][0]) / 10, y(known[-1][1])),
        rows=tuple(_row(share, y) for share in _steps(lowest)),
        columns=(_column(start, 0, length), _column(end, 100, length)),
        summary=_summary(name, known),
    )


Known = tuple[datetime, float, float | None, float | None]


def _runs(points: Sequence[Moment]) -> list[list[Known]]:
    """Stretches without a gap."""
    runs: list[list[Known]] = [[]]
    for at, value, low, high in points:
        if value is None:
            runs.append([])
        else:
            runs[-1].append((at, value, low, high))
    return [run for run in runs if run]


def _band(run: Sequence[Known], x: Callable[[datetime], float], y: Callable[[float], float]) -> str:
    upper = [(x(at), y(high)) for at, _, _, high in run if high is not None]
    lower = [(x(at), y(low)) for at, _, low, _ in run if low is not None]
    return _join([*upper, *reversed(lower)])


def _steps(lowest: float) -> list[float]:
    return [lowest, lowest + (1 - lowest) / 2, 1.0]


def _row(share: float, y: Callable[[float], float]) -> Mark:
    return Mark(at=y(share), text=f"{100 * share:.3g} %")


def _column(at: datetime, place: float, length: float) -> Mark:
    form = "%H:%M" if length < 86_400 else "%d %b"
    return Mark(at=place, text=at.astimezone(UTC).strftime(form) + (" UTC" if place else ""))


def _join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _summary(name: str, known: Sequence[tuple[datetime, float]]) -> str:
    lowest, highest = min(v for _, v in known), max(v for _, v in known)
    return (
        f"{name}: {100 * known[-1][1]:.1f} % now, between {100 * lowest:.1f} % and "
        f"{100 * highest:.1f} % since {known[0][0].astimezone(UTC):%H:%M} UTC"
    )
