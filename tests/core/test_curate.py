"""Near-duplicate groups, their sides, caps and decontamination."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

from core_samples import labelled

from pipelines.curate import CurationPolicy, NearDuplicates, curate, of_now, uncontaminated
from pipelines.identities import content_digest
from pipelines.types import Side

SALT = b"s" * 32
POLICY = CurationPolicy(max_per_user=100, max_per_group=100, held_out_window=1_000)
PARCEL = "where is my parcel, it should have been here on {} already"


def sentence(dice: Random) -> str:
    """Twelve made-up words: like no other."""
    return " ".join("".join(dice.choices("abcdefghijklmnop", k=7)) for _ in range(12))


def test_near_duplicates_share_group_and_side() -> None:
    groups = NearDuplicates(SALT)
    first = groups.place(PARCEL.format("monday"), "e-1")
    for number, text in enumerate(
        (PARCEL.format("monday") + "!", PARCEL.format("Monday").upper(), PARCEL.format("sunday"))
    ):
        place = groups.place(text, f"e-{number + 2}")
        assert (place.group_id, place.side, place.founded) == (first.group_id, first.side, False)
    assert groups.place("cancel my order please", "e-9").group_id == "e-9"
    assert len(groups) == 2


def test_one_group_in_five_is_held_out() -> None:
    dice, groups = Random(1), NearDuplicates(SALT)
    places = [groups.place(sentence(dice), f"e-{number}") for number in range(2_000)]
    assert all(place.founded for place in places)
    held_out = sum(place.side is Side.HELD_OUT for place in places)
    assert abs(held_out - 400) < 5 * (2_000 * 0.2 * 0.8) ** 0.5


def test_side_survives_a_restart_whatever_comes_later() -> None:
    dice = Random(2)
    texts = [sentence(dice) for _ in range(300)]
    before = NearDuplicates(SALT)
    placed = [before.place(text, f"e-{number}") for number, text in enumerate(texts)]
    after = NearDuplicates(b"another salt: the stored side counts")
    for place, text in zip(placed, texts, strict=True):
        after.restore(place.group_id, place.side, text)
    for number, text in reversed(list(enumerate(texts))):
        again = after.place(text + " ok", f"late-{number}")
        assert (again.group_id, again.side) == (placed[number].group_id, placed[number].side)


def test_group_does_not_depend_on_the_order_of_restoring() -> None:
    """A text that is near to both groups goes to the same one after a restart."""
    one, two = (PARCEL.format(day) + " and I want it now" for day in ("aaaa", "bbbb"))
    chosen = set()
    for order in ((one, two), (two, one)):
        groups = NearDuplicates(SALT)
        for text in order:
            groups.restore("g-one" if text == one else "g-two", Side.TRAINING, text)
        near = PARCEL.format("cccc") + " and I want it now"
        chosen.add(groups.place(near, "e").group_id)
    assert len(chosen) == 1
    assert chosen < {"g-one", "g-two"}


def test_training_example_near_a_held_out_item_is_dropped() -> None:
    samples = [
        labelled(1, PARCEL.format("monday"), side=Side.HELD_OUT, pi=0.5),
        labelled(2, PARCEL.format("sunday")),
        labelled(3, "cancel my order please"),
    ]
    made = curate(samples, POLICY)
    assert [example.event_id for example in made.training] == ["e-3"]
    assert made.dropped == {"near a held-out item": 1}


def test_later_held_out_item_near_a_training_text_does_not_judge() -> None:
    items = curate(
        [
            labelled(1, PARCEL.format("monday"), side=Side.HELD_OUT, pi=0.5),
            labelled(2, "cancel my order please", side=Side.HELD_OUT, pi=0.5),
        ],
        POLICY,
    ).held_out
    kept = uncontaminated(items, [PARCEL.format("sunday"), "something else"])
    assert [item.event_id for item in kept] == ["e-2"]


def test_held_out_side_never_trains_drawn_or_not() -> None:
    samples = [
        labelled(1, "cancel my order please", side=Side.HELD_OUT, pi=0.5),
        labelled(2, "i want my money back", side=Side.HELD_OUT),  # an audit: it judges nothing
        labelled(3, "the lamp is broken again"),
    ]
    made = curate(samples, POLICY)
    assert [item.event_id for item in made.held_out] == ["e-1"]
    assert [example.event_id for example in made.training] == ["e-3"]


def test_one_item_per_group_judges_and_it_is_the_newest() -> None:
    samples = [
        labelled(n, f"text number {n} of the group", side=Side.HELD_OUT, group="g", pi=n / 10)
        for n in (1, 2, 3)
    ]
    held_out = curate(samples, POLICY).held_out
    assert [(item.event_id, item.inclusion_probability) for item in held_out] == [("e-3", 0.3)]


def test_what_the_traffic_was_before_it_changed_judges_nobody() -> None:
    dice, noon = Random(6), datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    samples = [labelled(n, sentence(dice), side=Side.HELD_OUT, pi=0.5) for n in range(10)]
    items = [
        replace(item, occurred_at=noon + timedelta(hours=n))
        for n, item in enumerate(curate(samples, POLICY).held_out)
    ]

    assert of_now(items, None, 4) == items
    assert of_now(items, noon + timedelta(hours=4), 4) == items[4:]
    evenly = [replace(item, inclusion_probability=1.0) for item in items]  # a mixture: none thinned
    assert of_now(items, noon + timedelta(hours=8), 4) == evenly[6:], "the newest four at least"
    assert of_now(items, noon + timedelta(hours=8), 40) == evenly


def test_held_out_window_keeps_the_newest_groups() -> None:
    dice = Random(3)
    samples = [labelled(n, sentence(dice), side=Side.HELD_OUT, pi=0.5) for n in range(20)]
    made = curate(samples, replace(POLICY, held_out_window=5))
    assert [item.event_id for item in made.held_out] == [f"e-{n}" for n in range(15, 20)]


def test_held_out_items_that_are_too_old_judge_only_where_others_are_too_few() -> None:
    dice, noon = Random(7), datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    samples = [
        labelled(n, sentence(dice), side=Side.HELD_OUT, pi=0.5)._replace(
            occurred_at=noon + timedelta(days=n)
        )
        for n in range(20)
    ]
    aged = replace(POLICY, held_out_since=noon + timedelta(days=15))
    for fewest, first in ((0, 15), (5, 15), (8, 12), (100, 0)):
        held_out = curate(samples, replace(aged, fewest=fewest)).held_out
        assert [item.event_id for item in held_out] == [f"e-{n}" for n in range(first, 20)]


def test_draws_are_held_out_events_and_audits_of_the_other_side() -> None:
    samples = [
        labelled(1, "cancel my order please", side=Side.HELD_OUT, pi=0.5),
        labelled(2, "i want my money back", side=Side.HELD_OUT)._replace(audit_pi=0.1),
        labelled(3, "the lamp is broken again")._replace(audit_pi=0.1),
        labelled(4, "The lamp is  broken again"),
        labelled(5, "the lamp is broken again")._replace(audit_pi=0.1),
    ]
    noon = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    samples = [one._replace(occurred_at=noon + timedelta(n)) for n, one in enumerate(samples)]
    found = curate(samples, POLICY).draws
    assert [(draw.item.event_id, draw.side, draw.met) for draw in found] == [
        ("e-1", Side.HELD_OUT, None),
        ("e-3", Side.TRAINING, None),
        ("e-5", Side.TRAINING, noon + timedelta(days=2)),
    ]
    assert [draw.item.inclusion_probability for draw in found] == [0.5, 0.1, 0.1]


def test_one_user_contributes_at_most_the_cap() -> None:
    dice = Random(4)
    samples = [labelled(n, sentence(dice), user="mallory") for n in range(30)]
    samples += [labelled(n, sentence(dice)) for n in range(30, 40)]
    made = curate(samples, replace(POLICY, max_per_user=7))
    assert sum(example.user_key == "mallory" for example in made.training) == 7
    assert len(made.training) == 17
    assert made.dropped == {"over the cap of its user": 23}


def test_one_group_contributes_at_most_the_cap() -> None:
    dice = Random(5)
    samples = [labelled(n, sentence(dice), group="g") for n in range(30)]
    made = curate(samples, replace(POLICY, max_per_group=4))
    assert [example.event_id for example in made.training] == ["e-0", "e-1", "e-2", "e-3"]


def test_repeats_train_once_unless_their_labels_differ() -> None:
    samples = [
        labelled(1, "Cancel it"),
        labelled(2, "cancel  it "),
        labelled(3, "cancel it", "cancel"),
    ]
    made = curate(samples, POLICY)
    assert [(e.event_id, e.label) for e in made.training] == [("e-1", "refund"), ("e-3", "cancel")]


def test_curation_is_deterministic() -> None:
    dice = Random(6)
    samples = [
        labelled(n, sentence(dice), side=Side.HELD_OUT if n % 5 == 0 else Side.TRAINING, pi=0.5)
        for n in range(200)
    ]
    assert curate(samples, POLICY) == curate(list(samples), POLICY)


def test_content_digest_knows_where_a_text_ends() -> None:
    assert content_digest(["ab", "c"]) != content_digest(["a", "bc"])
