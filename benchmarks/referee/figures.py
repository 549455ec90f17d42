"""A figure with its interval, and how many worlds it took."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from pipelines.statistics.intervals import wilson_share

T = TypeVar("T")
QUIET_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number with Wilson's 95 % interval, from `trials` simulated worlds."""

    name: str
    value: float
    low: float
    high: float
    trials: int
    world: str  # in words: what is true in it, and what was counted
    unit: str = "share"
    more: dict[str, float] = field(default_factory=dict)


def share(name: str, hits: int, trials: int, world: str, **more: float) -> Figure:
    """In what share of the worlds something happened."""
    found = wilson_share(hits, trials, 0.05)
    return Figure(
        name=name,
        value=found.value,
        low=found.low,
        high=found.high,
        trials=trials,
        world=world,
        more={"hits": hits, **more},
    )


def waits(name: str, times: Sequence[float], world: str, unit: str = "days") -> Figure:
    """The median wait; its interval are the waits at Wilson's interval of one half.

    What did not happen in the time that was simulated waits for ever: math.inf.
    """
    half = wilson_share(len(times) // 2, len(times), 0.05)
    low, value, high = _quantiles(times, (half.low, 0.5, half.high))
    return Figure(
        name=name,
        value=value,
        low=low,
        high=high,
        trials=len(times),
        world=world,
        unit=unit,
        more={
            "p90": _quantiles(times, (0.9,))[0],
            "never": sum(math.isinf(one) for one in times),
        },
    )


def _quantiles(values: Sequence[float], at: Iterable[float]) -> list[float]:
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return [float(ordered[min(len(ordered) - 1, int(one * len(ordered)))]) for one in at]


def tries(
    what: str, count: int, seed: Sequence[int], one: Callable[[np.random.Generator], T]
) -> Iterator[T]:
    """`one` of `count` worlds, each with a seed of its own; tells how far it has come."""
    told = time.monotonic()
    for index in range(count):
        yield one(np.random.default_rng((*seed, index)))
        if time.monotonic() - told > QUIET_SECONDS:
            told = time.monotonic()
            print(f"  {what}: {index + 1} of {count}", flush=True)
