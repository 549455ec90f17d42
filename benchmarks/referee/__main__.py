"""`make bench-referee`: what our statistics do in worlds whose truth is known.

    make bench-referee ARGS="--only days served"      (what begins so; the rest stays as it is)
    make bench-referee ARGS=--short                   (under a minute; writes no results)

The worlds are those of a referee who looked for where the numbers lie. Everything that decides in
them is the product's own function, called as the program calls it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

from benchmarks.referee.certificates import (
    certificates_broken_iid,
    certificates_broken_issued_at_minimum,
)
from benchmarks.referee.drift import certificates_drop, certificates_slide
from benchmarks.referee.figures import Figure
from benchmarks.referee.gate import days_2_points_1000_a_day, false_promotions_year
from benchmarks.referee.lateness import audit_minutes_late_40_a_second
from benchmarks.referee.pool import power_2_points_150_labels
from benchmarks.referee.promise import (
    days_to_notice,
    false_alarms_a_year,
    served_ever_outside,
    served_ever_outside_few_audits,
)
from benchmarks.referee.rollback import false_rollbacks_year
from benchmarks.referee.zipf import certificates_broken_zipf
from benchmarks.results import RESULTS, commit, write_results

SEED = 1
SHORT = 40  # times fewer worlds
Study = Callable[[int, int], Iterator[Figure]]  # so many worlds, from such a seed

# Each with the number of worlds that its figure needs.
STUDIES: dict[str, tuple[Study, int]] = {
    "false_promotions_year": (false_promotions_year, 400),
    "power_2_points_150_labels": (power_2_points_150_labels, 1_000),
    "days_2_points_1000_a_day": (days_2_points_1000_a_day, 200),
    "days_5_point_drop": (lambda count, seed: days_to_notice(0.05, count, seed), 400),
    "days_2_point_drop": (lambda count, seed: days_to_notice(0.02, count, seed), 400),
    "days_5_point_drop_1000_a_day": (
        lambda count, seed: days_to_notice(0.05, count, seed, 1_000),
        400,
    ),
    "days_2_point_drop_1000_a_day": (
        lambda count, seed: days_to_notice(0.02, count, seed, 1_000),
        400,
    ),
    "false_promise_alarms_year": (false_alarms_a_year, 1_000),
    "served_ever_outside": (served_ever_outside, 400),
    "served_ever_outside_few_audits": (served_ever_outside_few_audits, 2_000),
    "certificates_broken_iid": (certificates_broken_iid, 9_000),
    "certificates_broken_issued_at_minimum": (certificates_broken_issued_at_minimum, 30_000),
    "certificates_broken_zipf": (certificates_broken_zipf, 60),
    "certificates_slide": (certificates_slide, 60),
    "certificates_drop": (certificates_drop, 60),
    "false_rollbacks_year": (false_rollbacks_year, 1_000),
    "audit_minutes_late_40_a_second": (audit_minutes_late_40_a_second, 200),
}


def run(only: tuple[str, ...] = ("",), fewer: int = 1, seed: int = SEED) -> list[Figure]:
    """All figures whose names begin with one of `only`, from so many times fewer worlds."""
    found = []
    for name, (study, count) in STUDIES.items():
        if not name.startswith(only):
            continue
        started = time.monotonic()
        for figure in study(max(2, count // fewer), seed):
            found.append(figure)
            print(
                f"{figure.name}: {figure.value:.4g} [{figure.low:.3g}, {figure.high:.3g}] "
                f"{figure.unit}, {figure.trials:,} worlds",
                flush=True,
            )
        print(f"  {time.monotonic() - started:.0f} s", flush=True)
    return found


def publish(found: list[Figure], seed: int) -> None:
    """Write them, beside what an earlier run found of the others."""
    path = RESULTS / "referee.json"
    before = json.loads(path.read_text())["worlds"] if path.exists() else {}
    worlds = {
        **before,
        **{one.name: {**asdict(one), "seed": seed, "commit": commit()} for one in found},
    }
    for world in worlds.values():
        world.pop("name", None)
    figures = {name: worlds[name]["value"] for name in sorted(worlds)}
    write_results("referee", figures, seed=seed, worlds=worlds)


def main() -> None:
    """Run the benchmark and write `benchmarks/results/referee.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="few worlds; writes no results")
    parser.add_argument("--only", nargs="+", default=[""], help="figures that begin with this")
    parser.add_argument("--seed", type=int, default=SEED)
    chosen = parser.parse_args()
    found = run(tuple(chosen.only), SHORT if chosen.short else 1, chosen.seed)
    if not chosen.short:
        publish(found, chosen.seed)


if __name__ == "__main__":
    main()
