"""Automatic rollback: how often is a version that is no worse taken back within a year?"""

from collections.abc import Iterator

import numpy as np

from benchmarks.referee.figures import Figure, share, tries
from pipelines.statistics.sequences import pair_e_value
from pipelines.types import PairCounts
from service.sections import RollbackSettings

AUDITS_A_YEAR, LOOKS = 197_100, 390
DISCORDANCES = (0.05, 0.10)


def false_rollbacks_year(count: int, seed: int) -> Iterator[Figure]:
    """Equal versions, with the settings' margin and alpha; beside it, exactly at the margin.

    The figure is that of the discordance at which it happens most often.
    """
    settings, name = RollbackSettings(), "false_rollbacks_year"
    found = dict[tuple[float, float], int]()
    for number, loss in enumerate((0.0, settings.margin)):
        for place, differ in enumerate(DISCORDANCES):

            def one(
                generator: np.random.Generator, differ: float = differ, loss: float = loss
            ) -> bool:
                wins = (differ + loss) / 2  # of the version before
                drawn = generator.multinomial(
                    AUDITS_A_YEAR // LOOKS, [wins, differ - wins, 1.0 - differ], size=LOOKS
                )
                return any(
                    pair_e_value(_counts(row), margin=-settings.margin) >= 1.0 / settings.alpha
                    for row in drawn.cumsum(axis=0)
                )

            what = f"{name}, {100 * loss:g} points"
            hits = sum(tries(what, count, (seed, 60, number, place), one))
            found[loss, differ] = hits
    yield share(
        name,
        max(found[0.0, differ] for differ in DISCORDANCES),
        count,
        f"Two equal versions that differ on {' or '.join(f'{d:.0%}' for d in DISCORDANCES)} of "
        f"{AUDITS_A_YEAR:,} audits, {LOOKS} looks: rolled back at any of them.",
        hits_at_the_margin=max(found[settings.margin, differ] for differ in DISCORDANCES),
    )


def _counts(row: "np.typing.NDArray[np.int64]") -> PairCounts:
    wins, losses, ties = (int(count) for count in row)
    return PairCounts(wins=wins, losses=losses, ties=ties)
