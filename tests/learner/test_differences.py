"""Labels are bought where candidate and champion differ, and serve that comparison alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from core_samples import TASK
from ingest_rig import Producer, drain, make_ingest, record
from learner_rig import Bench, Rig, Scripted, open_bench, open_rig, scripted_teacher
from training_rig import PHRASES, THINGS, Shop, open_shop

from pipelines.records.native import NativeStudent
from pipelines.types import Draws, SampleReason, Side, StudentVersion
from service.learner.retention import Retention
from service.topics.embedded import EmbeddedTopicWriter
from storage.artifacts import Artifacts
from storage.decisions import record_decision
from storage.evaluations import latest_evaluation
from storage.folder import DataFolder
from storage.labels import audited, count_labels, judged_audits
from storage.pool import pool_of
from storage.reports import Report, read_card, read_pool_memory, read_report

LABELS = tuple(PHRASES)
TAUGHT_WRONGLY = 3  # the phrase of each label that the champion learned under the next one
KEPT_THINGS = (
    "the wooden chess set", "an umbrella", "my wedding ring", "the dog food", "a violin",
    "the drill", "three t-shirts", "a sleeping bag", "the microwave", "some wine glasses",
    "the carpet", "a telescope",
)  # fmt: skip


def right_label(event_id: str) -> str:
    return event_id.split("/")[1]


def prompts(kind: str, things: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for number, thing in enumerate(things):
        for label, phrases in PHRASES.items():
            for at, phrase in enumerate(phrases):
                yield f"{kind}/{label}/{number}/{at}", phrase.format(thing)


def judges() -> list[tuple[str, str]]:
    """Of what the champion was taught wrongly one thing only: too little to tell the two apart."""
    found = prompts("judge", THINGS[10:14])
    return [one for one in found if one[0][-1] != str(TAUGHT_WRONGLY) or "/0/" in one[0]]


def fill(shop: Shop) -> None:
    """Training examples of which a quarter is wrong, a few items that judge, and the pool."""
    for event_id, text in prompts("train", THINGS[:10]):
        label = right_label(event_id)
        if event_id.endswith(str(TAUGHT_WRONGLY)):
            label = LABELS[(LABELS.index(label) + 1) % len(LABELS)]
        shop.rig.sample(event_id, text, reason=SampleReason.GIVEN)
        shop.rig.label(event_id, label)
    for event_id, text in judges():
        draws = Draws(held_out=0.5)
        shop.rig.sample(
            event_id, text, side=Side.HELD_OUT, reason=SampleReason.HELD_OUT, draws=draws
        )
        shop.rig.label(event_id, right_label(event_id))
    for event_id, text in prompts("kept", KEPT_THINGS):
        draws = Draws(pool=0.25)
        shop.rig.sample(event_id, text, side=Side.HELD_OUT, reason=SampleReason.POOL, draws=draws)


def candidate_after_champion(shop: Shop) -> StudentVersion:
    """A champion that learned some labels wrongly serves; its successor learned them rightly."""
    _, champion = shop.training.run("support", "a test")
    assert champion is not None
    with shop.rig.database.transaction() as tx:
        record_decision(
            tx,
            shop.rig.folder / "decisions.jsonl",
            task="support",
            action="approve",
            student=champion.student,
            report=None,
            operator="ada",
            reason="",
            now=shop.rig.now(),
        )
    for event_id, _ in prompts("train", THINGS[:10]):
        shop.rig.label(event_id, right_label(event_id), source="correction")
    _, candidate = shop.training.run("support", "a test")
    assert candidate is not None
    return candidate


def last_report(shop: Shop, version: StudentVersion) -> tuple[str, Report]:
    with shop.rig.database.snapshot() as tx:
        last = latest_evaluation(tx, "support", version.student)
    assert last is not None
    return last.report, read_report(shop.artifacts, last.report)


class Story:
    """What happened, look by look. `late`: labels come after a first judgement."""

    def __init__(self, shop: Shop, bench: Bench, teacher: Scripted, *, late: bool) -> None:
        self.shop, self.teacher = shop, teacher
        fill(shop)
        self.candidate = candidate_after_champion(shop)
        self.first = shop.evaluating.run("support")
        self.statuses = shop.rig.statuses()
        digest, self.first_report = last_report(shop, self.candidate)
        self.asked = set(read_pool_memory(shop.artifacts, digest).asked)
        self.early = shop.evaluating.run("support")  # before the labels have come
        if late:
            with shop.rig.database.transaction() as tx:
                tx.execute("UPDATE evaluations SET evaluated_at = evaluated_at - INTERVAL 2 HOUR")
            self.early = shop.evaluating.run("support")
            self.early_report = last_report(shop, self.candidate)[1]
        self.relabelled = bench.relabel.run()
        self.second = shop.evaluating.run("support")
        self.digest, self.report = last_report(shop, self.candidate)
        self.third = shop.evaluating.run("support")


@contextmanager
def open_story(folder: Path, *, late: bool = False) -> Iterator[Story]:
    answers = {text: right_label(event_id) for event_id, text in prompts("kept", KEPT_THINGS)}
    with (
        scripted_teacher(folder, answers) as teacher,
        open_shop(
            folder / "data",
            gate={"min_groups": 30},
            task={"target": 0.6},
            teacher={"base_url": teacher.url},
        ) as shop,
        open_bench(shop.rig) as bench,
    ):
        yield Story(shop, bench, teacher, late=late)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with open_story(tmp_path_factory.mktemp("story")) as told:
        yield told


def test_only_kept_events_on_which_the_two_differ_are_asked_for(story: Story) -> None:
    pool = {event_id for event_id, _ in prompts("kept", KEPT_THINGS)}
    pending = {event_id for event_id, status in story.statuses.items() if status == "pending"}
    assert pending == story.asked
    assert {story.statuses[event_id] for event_id in pool - story.asked} == {"kept"}
    # They differ where the champion was taught wrongly, and about nowhere else.
    wrong = {event_id for event_id in pool if event_id.endswith(str(TAUGHT_WRONGLY))}
    assert len(story.asked & wrong) > 0.8 * len(wrong)
    assert len(story.asked - wrong) < 0.1 * len(pool)


def test_a_candidate_that_few_items_cannot_tell_is_shown_better_by_those_labels(
    story: Story,
) -> None:
    (failed,) = [check for check in story.first_report.gate.checks if not check.passed]
    assert failed.name == "labels_came"
    assert f"{len(story.asked)} labels of kept events are asked for" in failed.sentence
    assert story.early.outcome == "nothing"
    assert "waits for the labels" in story.early.detail
    assert story.relabelled.detail == f"{len(story.asked)} labels"
    assert "the labels where it and the champion differ have come" in story.second.detail
    assert story.report.gate.verdict == "better"
    assert story.report.gate.promotable
    assert story.report.gate.alpha == story.first_report.gate.alpha, (
        "the first look was kept for it"
    )
    assert story.third.outcome == "nothing"


def test_nothing_is_bought_twice_nor_where_they_agree(story: Story) -> None:
    assert len(story.teacher.bills()) == len(story.asked)


def test_kept_events_count_in_the_comparison_with_the_champion_and_nowhere_else(
    story: Story,
) -> None:
    found, judged = story.report.evaluation, len(judges())
    pooled = found.pooled
    assert pooled is not None
    assert pooled.items > 0.95 * len(list(prompts("kept", KEPT_THINGS))), "some resemble training"
    assert (pooled.agreed, pooled.bought) == (pooled.items - len(story.asked), len(story.asked))
    assert found.pairs["champion"].total == judged + pooled.items
    assert found.difference["champion"].n == judged + pooled.items
    assert found.items == judged
    assert {estimate.n for estimate in found.agreement.values()} == {judged}
    assert {pairs.total for name, pairs in found.pairs.items() if name != "champion"} == {judged}
    assert found.calibration_error.n == judged
    assert found.threshold == story.first_report.evaluation.threshold
    assert found.champion_threshold == story.first_report.evaluation.champion_threshold
    assert {flip.event_id for flip in found.flips} >= {
        event_id for event_id in story.asked if event_id.endswith(str(TAUGHT_WRONGLY))
    }


def test_what_was_bought_for_a_comparison_never_trains_judges_alone_or_estimates(
    story: Story,
) -> None:
    shop = story.shop
    curated = shop.workshop.curated(TASK, shop.rig.now())
    used = {one.event_id for one in curated.training} | {one.event_id for one in curated.held_out}
    assert used
    assert not {event_id for event_id in used if event_id.startswith("kept/")}
    before = shop.rig.now() - timedelta(days=1)
    with shop.rig.database.snapshot() as tx:
        for name in {version for (version,) in shop.rig.rows("SELECT digest FROM students")}:
            assert audited(tx, "support", name, before, shop.rig.now()) == []
            assert judged_audits(tx, "support", name, before, before) == []
        counts = count_labels(tx, "support")
    assert counts.held_out_groups == len(judges())
    assert counts.bought == len(story.asked), "what was paid for is said"


def test_report_and_card_say_how_many_pairs_needed_no_label(story: Story) -> None:
    asked = len(story.asked)
    card, pooled = read_card(story.shop.artifacts, story.digest), story.report.evaluation.pooled
    assert card is not None
    assert pooled is not None
    assert f"{pooled.agreed} were decided by both giving the same answer" in card
    assert f"{asked} labels were bought where they differ" in card
    assert story.first_report.labels_asked == asked
    assert story.report.labels_asked == 0


def test_labels_that_are_late_count_at_a_later_look(tmp_path: Path) -> None:
    with open_story(tmp_path, late=True) as story:
        early, pooled = story.early_report, story.report.evaluation.pooled
        assert "are late" in story.early.detail
        assert early.evaluation.pooled is None
        assert not early.gate.promotable
        assert any(check.name == "not_worse" for check in early.gate.checks), "it was compared"
        assert "have come" in story.second.detail
        assert pooled is not None
        assert pooled.bought == len(story.asked)
        (better,) = [c for c in story.report.gate.checks if c.name == "better_or_more_coverage"]
        assert "Look 2 at this candidate" in better.sentence
        assert story.report.gate.promotable
        assert len(story.teacher.bills()) == len(story.asked)


# --- The pool ---


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path, dataset={"held_out_window": 10}) as opened:
        EmbeddedTopicWriter(DataFolder(tmp_path).topic).close()
        yield opened


def test_ingest_keeps_what_the_held_out_draw_leaves_and_asks_nobody(rig: Rig) -> None:
    ingest = make_ingest(rig, sampling={"audit_rate": 0.0, "held_out_rate": 0.25})
    policy = ingest._sampling.policy(TASK.name)
    ingest._sampling.replace(TASK.name, replace(policy, pool_rate=0.5))
    producer = Producer(rig.folder)
    student = NativeStudent(version="support-v1", label="refund", confidence=0.9)
    producer.send(
        *(
            record(f"e-{n}", f"{n * 7919} is number {n} of what is asked", student=student)
            for n in range(400)
        )
    )
    producer.close()
    drain(ingest)
    found = rig.rows(
        "SELECT reason, status, count(*), min(pool_pi), max(held_out_pi), min(side) FROM samples "
        "WHERE side = 'held_out' GROUP BY ALL ORDER BY reason"
    )
    held_out, pool = found
    assert (held_out[:2], pool[:2]) == (("held_out", "pending"), ("pool", "kept"))
    assert (held_out[3], held_out[4]) == (None, 0.25)
    assert (pool[3], pool[4]) == (0.5, None)
    assert 1.2 < pool[2] / held_out[2] < 3.5, "a stretch twice as long"
    assert rig.scalar("SELECT count(*) FROM samples WHERE side = 'training' AND pool_pi > 0") == 0
    assert rig.scalar("SELECT min(length(text)) FROM samples WHERE reason = 'pool'") > 0


def keep(rig: Rig, number: int, days_ago: float, *, bought: bool = False) -> None:
    rig.sample(
        f"k-{number}",
        f"text {number}",
        side=Side.HELD_OUT,
        reason=SampleReason.DISAGREEMENT if bought else SampleReason.POOL,
        draws=Draws(pool=0.5),
        at=rig.now() - timedelta(days=days_ago),
    )
    if bought:
        rig.label(f"k-{number}", "refund", source="bought")


def forget(rig: Rig) -> None:
    Retention(rig.database, Artifacts(rig.folder / "artifacts"), rig.settings, rig.now).run()


def in_pool(rig: Rig) -> list[str]:
    with rig.database.snapshot() as tx:
        return [one.item.event_id for one in pool_of(tx, TASK.name, None)]


def test_an_event_is_kept_no_longer_than_other_texts_without_a_label(rig: Rig) -> None:
    keep(rig, 1, days_ago=15)
    keep(rig, 2, days_ago=13)
    forget(rig)
    assert in_pool(rig) == ["k-2"]
    assert rig.statuses() == {"k-2": "kept"}, "its text is gone with its row"


def test_labelled_events_leave_the_pool_with_those_of_their_day(rig: Rig) -> None:
    """If they stayed, an old day would consist of what two students differed on."""
    keep(rig, 1, days_ago=15, bought=True)
    keep(rig, 2, days_ago=13, bought=True)
    forget(rig)
    assert in_pool(rig) == ["k-2"]
    assert rig.statuses() == {"k-1": "labelled", "k-2": "labelled"}


def test_the_pool_is_as_large_as_the_window_and_its_oldest_leave_first(rig: Rig) -> None:
    for number in range(12):
        keep(rig, number, days_ago=12 - number, bought=number % 2 == 0)
    forget(rig)
    assert in_pool(rig) == [f"k-{number}" for number in range(2, 12)]


def test_one_of_a_group_is_kept_and_nothing_of_before_a_shift(rig: Rig) -> None:
    for event_id, group, days in (("a", "g", 3), ("b", "g", 2), ("c", "h", 1)):
        rig.sample(
            event_id,
            side=Side.HELD_OUT,
            group=group,
            reason=SampleReason.POOL,
            draws=Draws(pool=0.5),
            at=rig.now() - timedelta(days=days),
        )
    assert in_pool(rig) == ["b", "c"]
    with rig.database.snapshot() as tx:
        since = rig.now() - timedelta(days=1, hours=12)
        assert [one.item.event_id for one in pool_of(tx, TASK.name, since)] == ["c"]
