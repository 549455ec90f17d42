"""Wrong labels are found by what the other examples say."""

import numpy as np

from pipelines.rows import TrainingRow
from pipelines.students.doubts import Unseen, confidently_other, label_noise

LABELS = ("refund", "delivery", "cancel", "unused")


def test_a_label_is_doubted_where_another_is_as_likely_as_for_its_own() -> None:
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0],
            [0.7, 0.3, 0.0],
            [0.1, 0.9, 0.0],
            [0.45, 0.5, 0.05],  # as likely a delivery as deliveries are on average, 0.5
            [0.65, 0.1, 0.25],  # refund is the likeliest, and less likely than refunds are: 0.68
        ]
    )
    given = np.array([0, 0, 1, 0, 1])
    needed = (probabilities[[0, 1, 3], 0].mean(), probabilities[[2, 4], 1].mean())
    assert np.allclose(needed, (2.05 / 3, 0.5))
    assert confidently_other(probabilities, given).tolist() == [-1, -1, -1, 1, -1]
    # Where delivery has one example more that it is sure of, it needs more.
    surer = np.vstack([probabilities, [[0.02, 0.98, 0.0]]])
    assert confidently_other(surer, np.array([0, 0, 1, 0, 1, 1])).tolist() == [-1] * 6


def test_planted_slips_are_found_the_surest_first_and_few_others() -> None:
    rng = np.random.default_rng(7)
    count = 900
    truth = rng.integers(3, size=count)
    logits = rng.normal(0.0, 1.0, size=(count, 4))
    logits[np.arange(count), truth] += 5.0
    logits[:, 3] = -30.0
    slipped = rng.choice(count, size=45, replace=False)
    targets = truth.copy()
    targets[slipped] = (truth[slipped] + rng.integers(1, 3, size=45)) % 3
    rows = [
        TrainingRow(event_id=f"e-{at}", text="", label=LABELS[target], group_id=str(at))
        for at, target in enumerate(targets)
    ]
    order = rng.permutation(count)
    unseen = [Unseen(part, logits[part]) for part in np.array_split(order, 3)]
    found = label_noise(rows, targets, unseen, LABELS, temperature=1.0)
    assert found["labels_looked_at"] == count
    assert found["labels_doubtful"] == len(found["doubts"])
    events = {doubt["event_id"]: doubt for doubt in found["doubts"]}
    planted = {f"e-{at}" for at in slipped}
    assert len(planted & set(events)) >= 0.7 * len(planted)
    assert len(set(events) - planted) <= 0.02 * count
    for at in slipped:
        if doubt := events.get(f"e-{at}"):
            assert (doubt["label"], doubt["likelier"]) == (LABELS[targets[at]], LABELS[truth[at]])
    margins = [doubt["margin"] for doubt in found["doubts"]]
    assert margins == sorted(margins, reverse=True)


def test_nothing_to_look_at_is_no_doubt() -> None:
    assert label_noise([], np.zeros(0, np.int64), [], LABELS, 1.0) == {
        "labels_looked_at": 0,
        "labels_doubtful": 0,
        "doubts": [],
    }
