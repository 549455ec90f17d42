"""The head: a linear classifier on the vectors of an encoder, fitted and calibrated on the CPU.

Both families of recipes that end in a head use it: the frozen encoder and the tuned one.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.child import Channel
from pipelines.errors import TrainingFailed
from pipelines.rows import TrainingRow, read_training
from pipelines.students.doubts import Unseen, label_noise
from pipelines.students.encoder import Encoder, VectorCache, Vectors
from pipelines.students.head import Head, save_head
from pipelines.work import Host, TrainWork

# Regularisation of the head. Chosen once on Banking77's training queries; a wide optimum.
INVERSE_PENALTY = 10.0
CALIBRATION_FOLDS = 3
# Above this many examples one fold in five calibrates as well as all of them.
ONE_FOLD_FROM = 4_000
# Prototypes of one label, and of all: a few hundred kilobytes.
FEWEST_PROTOTYPES, MOST_PROTOTYPES, ALL_PROTOTYPES = 4, 16, 1_024
# A label without an example is never the answer.
NEVER = -30.0

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]  # numbers of seen and of unseen rows


class Data(NamedTuple):
    """Training examples as arrays: (n, dimension), (n,), (n,), (n,)."""

    vectors: Vectors
    targets: NDArray[np.int64]
    weights: NDArray[np.float64]
    groups: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[TrainingRow], vectors: Vectors, labels: Sequence[str]) -> "Data":
        """The rows of a dataset with their vectors."""
        position = {label: at for at, label in enumerate(labels)}
        groups = {group: at for at, group in enumerate(dict.fromkeys(r.group_id for r in rows))}
        return cls(
            vectors=vectors,
            targets=np.array([position[row.label] for row in rows], dtype=np.int64),
            weights=np.array([row.weight for row in rows], dtype=np.float64),
            groups=np.array([groups[row.group_id] for row in rows], dtype=np.int64),
        )

    def rows(self, chosen: NDArray[np.int64]) -> "Data":
        return Data(
            self.vectors[chosen], self.targets[chosen], self.weights[chosen], self.groups[chosen]
        )


def train_head(work: TrainWork, host: Host, channel: Channel) -> dict[str, Any]:
    """Train the head of a frozen encoder: load, announce, data, fit, save.

    Returns what the manifest should say.
    """
    # Load.
    labels = work.labels
    rows = read_training(host.path(work.dataset))
    refuse_one_label(rows)

    # Announce.
    print(
        f"head: {describe(rows, labels)}, C = {INVERSE_PENALTY:g}, seed {work.seed}, "
        f"{host.threads} threads",
        file=sys.stderr,
    )

    # Data.
    data = embedded(rows, work, host, channel)

    # Fit, calibrate, save.
    folds = folds_of(data, work.seed)
    channel.progress("fit", 0, len(folds) + 1)
    weight, bias = fit(data, len(labels))
    channel.progress("fit", 1, len(folds) + 1)
    unseen = unseen_logits(data, folds, len(labels), channel)
    temperature = best_temperature(
        [one.logits for one in unseen], [data.targets[one.rows] for one in unseen]
    )
    head = finished_head(labels, weight, bias, temperature, data)
    about = {"encoder": work.encoder.digest, "max_tokens": work.max_tokens, "task": work.task}
    save_head(Path(host.scratch), head, about)
    return {
        "examples": len(rows),
        "labels_without_example": missing_labels(rows, labels),
        "temperature": round(temperature, 4),
        "inverse_penalty": INVERSE_PENALTY,
        "seed": work.seed,
        **label_noise(rows, data.targets, unseen, labels, temperature),
    }


def noise_by_encoder(
    rows: Sequence[TrainingRow], work: TrainWork, host: Host, channel: Channel
) -> dict[str, Any]:
    """What `label_noise` says, by heads on the frozen encoder: for students that are tuned.

    To tune one anew for each fold would take as many trainings.
    """
    data = embedded(rows, work, host, channel)
    unseen = unseen_logits(data, folds_of(data, work.seed), len(work.labels), channel)
    targets = [data.targets[one.rows] for one in unseen]
    temperature = best_temperature([one.logits for one in unseen], targets)
    return label_noise(rows, data.targets, unseen, work.labels, temperature)


def embedded(rows: Sequence[TrainingRow], work: TrainWork, host: Host, channel: Channel) -> Data:
    """The rows with the vectors of the encoder; what was embedded before is not again."""
    encoder = Encoder(host.path(work.encoder), threads=host.threads, max_tokens=work.max_tokens)
    cache = VectorCache(Path(host.vectors), encoder.dimension)
    texts = [row.text for row in rows]
    channel.progress("embed", 0, len(texts))
    vectors = cache.encode(
        encoder,
        texts,
        lambda done, new: channel.progress("embed", len(texts) - new + done, len(texts)),
    )
    return Data.of(rows, vectors, work.labels)


def unseen_logits(data: Data, folds: Sequence[Fold], labels: int, channel: Channel) -> list[Unseen]:
    """What the head of each fold says of the rows that it has not seen, of labels that it has."""
    found = []
    for done, (seen, unseen) in enumerate(folds, start=2):
        known = unseen[np.isin(data.targets[unseen], data.targets[seen])]
        if len(np.unique(data.targets[seen])) > 1 and len(known):
            weight, bias = fit(data.rows(seen), labels)
            found.append(Unseen(known, data.vectors[known] @ weight.T + bias))
        channel.progress("fit", done, len(folds) + 1)
    return found


def refuse_one_label(rows: Sequence[TrainingRow]) -> None:
    if len({row.label for row in rows}) < 2:
        raise TrainingFailed(f"{len(rows)} examples with fewer than two labels teach nothing")


def missing_labels(rows: Sequence[TrainingRow], labels: Sequence[str]) -> list[str]:
    counts = Counter(row.label for row in rows)
    return [label for label in labels if label not in counts]


def describe(rows: Sequence[TrainingRow], labels: Sequence[str]) -> str:
    known = len(labels) - len(missing_labels(rows, labels))
    return f"{len(rows)} examples, {known} of {len(labels)} labels"


def finished_head(
    labels: Sequence[str],
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    temperature: float,
    data: Data,
) -> Head:
    """The head with its prototypes. Raises `TrainingFailed` where a number is not finite."""
    if not (np.isfinite(weight).all() and np.isfinite(bias).all() and np.isfinite(temperature)):
        raise TrainingFailed("the fit ended in numbers that are not finite")
    prototypes, of_labels = prototypes_of(data)
    return Head(
        labels=tuple(labels),
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        temperature=temperature,
        prototypes=prototypes,
        prototype_labels=of_labels,
    )


def prototypes_of(data: Data) -> tuple[Vectors, NDArray[np.int64]]:
    """Unit vectors that stand for the training examples, label by label, and their labels.

    Of few examples each stands for itself; of many the centres of k-means do: with 16 a label
    they tell unseen topics as well as all examples would (Banking77).
    """
    present = np.unique(data.targets)
    most = max(FEWEST_PROTOTYPES, min(MOST_PROTOTYPES, ALL_PROTOTYPES // len(present)))
    parts = [_centres(data.vectors[data.targets == label], most) for label in present]
    counts = [len(part) for part in parts]
    return np.concatenate(parts), np.repeat(present, counts)


def _centres(vectors: Vectors, most: int) -> Vectors:
    if len(vectors) <= most:
        return vectors
    from sklearn.cluster import KMeans

    found = KMeans(most, n_init=1, max_iter=30, random_state=0).fit(vectors).cluster_centers_
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    unit: Vectors = (found / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


def fit(data: Data, labels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Multinomial logistic regression: weight (labels, dimension) and bias (labels,)."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)
    model.fit(data.vectors, data.targets, sample_weight=data.weights)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes
        coefficients = np.vstack([-coefficients / 2, coefficients / 2])
        intercepts = np.array([-intercepts[0] / 2, intercepts[0] / 2])
    weight = np.zeros((labels, data.vectors.shape[1]))
    bias = np.full(labels, NEVER)
    weight[model.classes_] = coefficients
    bias[model.classes_] = intercepts
    return weight, bias


def folds_of(data: Data, seed: int) -> list[Fold]:
    """(seen, unseen) rows; a near-duplicate group is never on both sides."""
    count = 5 if len(data.targets) >= ONE_FOLD_FROM else CALIBRATION_FOLDS
    groups = int(data.groups.max()) + 1
    fold_of_group = np.random.default_rng(seed).permutation(groups) % count
    fold = fold_of_group[data.groups]
    used = 1 if len(data.targets) >= ONE_FOLD_FROM else count
    pairs = [(np.flatnonzero(fold != at), np.flatnonzero(fold == at)) for at in range(used)]
    return [(seen, unseen) for seen, unseen in pairs if len(seen) and len(unseen)]


def best_temperature(logits: Sequence[NDArray[Any]], targets: Sequence[NDArray[np.int64]]) -> float:
    """The temperature that makes the unseen answers most likely (Guo et al., 2017, sec. 4.2).

    Each item of `logits` is of shape (answers, choices), with `targets` the choices that were
    right; 1 where there is nothing to learn it from.
    """
    from scipy.optimize import minimize_scalar

    pairs = [pair for pair in zip(logits, targets, strict=True) if len(pair[1])]
    if not pairs:
        return 1.0
    total = sum(len(right) for _, right in pairs)

    def surprise(log_temperature: float) -> float:
        lost = 0.0
        for scores, right in pairs:
            scaled = scores.astype(np.float64) / np.exp(log_temperature)
            scaled = scaled - scaled.max(axis=1, keepdims=True)
            log_total = np.log(np.exp(scaled).sum(axis=1))
            lost += float((log_total - scaled[np.arange(len(right)), right]).sum())
        return lost / total

    best = minimize_scalar(surprise, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(best.x))
