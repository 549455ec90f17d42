"""When a candidate is judged again, and what it carries from one look to the next."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from operating import make_report
from simulated_pairs import held_out_items
from training_rig import PHRASES, THINGS, Shop, open_shop

from pipelines.identities import snapshot_hash
from pipelines.types import Draws, PairCounts, SampleReason, Side, StudentVersion, Verdict
from service.learner.looks import departed
from storage.evaluations import StoredEvaluation, add_evaluation, evaluations_of
from storage.reports import read_items, write_report
from storage.versions import versions


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, StudentVersion]]:
    with open_shop(tmp_path_factory.mktemp("shop")) as shop:
        shop.fill(11)
        _, version = shop.training.run("support", "a test")
        assert version is not None
        assert shop.evaluating.run("support").outcome == "done"
        shop.fill(len(THINGS), start=11)
        for number in range(16, 40, 5):  # more of what judges; the training set stays
            for label in ("refund", "delivery", "cancel"):
                shop._add(f"{label}-{number}", f"{label} of purchase number {number}", label, 0)
        yield shop, version


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [("worse", "nothing"), ("non_inferior", "done"), ("insufficient_evidence", "done")],
)
def test_a_candidate_is_looked_at_again_unless_it_is_worse(
    judged: tuple[Shop, StudentVersion], verdict: Verdict, outcome: str
) -> None:
    shop, version = judged
    with shop.rig.database.transaction() as tx:  # as if the first look had ended so
        tx.execute("DELETE FROM evaluations WHERE items > 36")
        tx.execute(
            "UPDATE evaluations SET verdict = $verdict, promotable = false", {"verdict": verdict}
        )
    found = shop.evaluating.run("support")
    assert found.outcome == outcome
    if outcome == "done":
        assert f"{version.name} (there are new held-out items)" in found.detail


def test_a_promotable_candidate_is_not_looked_at_again(
    judged: tuple[Shop, StudentVersion],
) -> None:
    shop, _ = judged
    with shop.rig.database.transaction() as tx:
        tx.execute("DELETE FROM evaluations WHERE items > 36")
        tx.execute("UPDATE evaluations SET verdict = 'non_inferior', promotable = true")
    assert shop.evaluating.run("support").outcome == "nothing"


def test_in_a_full_window_new_items_are_evidence_although_there_are_no_more_of_them(
    tmp_path: Path,
) -> None:
    with open_shop(tmp_path, dataset={"held_out_window": 36}) as shop:
        shop.fill(11)
        shop.training.run("support", "a test")
        assert shop.evaluating.run("support").outcome == "done"
        assert "0 new held-out items" in shop.evaluating.run("support").detail
        for number in (21, 26, 31):
            for label in ("refund", "delivery", "cancel"):
                shop._add(f"{label}-{number}", f"{label} of purchase number {number}", label, 0)
        again = shop.evaluating.run("support")
        with shop.rig.database.snapshot() as tx:
            (version,) = versions(tx, "support")
            found = evaluations_of(tx, "support", version.student)
    assert "there are new held-out items" in again.detail
    assert [one.items for one in found] == [36, 36]


def test_a_threshold_is_certified_on_what_the_traffic_repeats_as_well(tmp_path: Path) -> None:
    with open_shop(tmp_path) as shop:
        shop.fill(11)
        _, version = shop.training.run("support", "a test")
        assert version is not None
        often = PHRASES["refund"][0].format(THINGS[1])  # it trains
        for number in range(40):
            shop.rig.sample(
                f"again-{number}",
                often,
                side=Side.TRAINING,
                reason=SampleReason.AUDIT,
                draws=Draws(audit=0.5),
            )
            shop.rig.label(f"again-{number}", "refund")
        items, traffic, _ = shop.evaluating._items(version)
        assert shop.evaluating.run("support").outcome == "done"
        with shop.rig.database.snapshot() as tx:
            (found,) = evaluations_of(tx, "support", version.student)
        judged = read_items(shop.artifacts, found.report)
    assert often not in {item.text for item in items}
    share = sum(item.weight for item in traffic if item.text == often)
    assert share / sum(item.weight for item in traffic) == pytest.approx(40 / (40 + len(items)))
    assert found.snapshot == snapshot_hash([*items, *traffic])
    assert found.items == len(items)  # that students are compared on
    assert judged == {item.event_id for item in items}


def test_a_report_of_an_earlier_version_names_no_items(
    judged: tuple[Shop, StudentVersion], tmp_path: Path
) -> None:
    shop, _ = judged
    (tmp_path / "report.json").write_text("{}")
    old = shop.artifacts.publish("report", tmp_path, {}).digest
    assert read_items(shop.artifacts, old) == frozenset()
    assert read_items(shop.artifacts, "0" * 64) == frozenset()


def test_a_later_look_carries_what_earlier_ones_found_on_items_that_left(
    judged: tuple[Shop, StudentVersion], tmp_path: Path
) -> None:
    shop, version = judged
    champion = replace(version, student="c" * 64)
    report = make_report(
        version,
        champion=champion,
        verdict="non_inferior",
        passed=True,
        threshold=0.6,
        attempt=1,
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert [(flip.event_id, flip.negative) for flip in report.evaluation.flips] == [
        ("e-1", True),
        ("e-2", False),
    ]
    write_report(tmp_path, report, [])
    published = shop.artifacts.publish("report", tmp_path, {}).digest
    pruned = StoredEvaluation(
        task=version.task,
        digest=version.student,
        attempt=1,
        champion=champion.student,
        snapshot="s",
        items=412,
        report="f" * 64,
        verdict="non_inferior",
        promotable=False,
        compared=True,
        threshold=0.6,
        coverage=0.5,
        evaluated_at=report.evaluated_at,
    )
    present = [replace(item, event_id=f"e-{n}") for n, item in enumerate(held_out_items(2))]
    with shop.rig.database.transaction() as tx:
        add_evaluation(tx, pruned)
        later = datetime(2026, 1, 2, tzinfo=UTC)
        add_evaluation(tx, replace(pruned, report=published, evaluated_at=later))
        past = evaluations_of(tx, version.task, version.student)
    assert departed(shop.artifacts, past, champion.student, present) == PairCounts(wins=1)
    assert departed(shop.artifacts, past, "d" * 64, present) == PairCounts()
