"""Dataset directory to student directory, in a process of its own. Reads from top to bottom.

    python -m pipelines.train SPEC.json

Trains the head of a frozen encoder: load, announce, data, fit, calibrate, save.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.child import Channel, read_lines, run_child
from pipelines.encoder import Encoder, VectorCache, Vectors
from pipelines.errors import TrainingFailed
from pipelines.students.classifier import Head, save_head

# Regularisation of the head. Chosen once on Banking77's training queries; a wide optimum.
INVERSE_PENALTY = 10.0
CALIBRATION_FOLDS = 3
# Above this many examples one fold in five calibrates as well as all of them.
ONE_FOLD_FROM = 4_000
# A label without an example is never the answer.
NEVER = -30.0


class Data(NamedTuple):
    """Training examples as arrays: (n, dimension), (n,), (n,), (n,)."""

    vectors: Vectors
    targets: NDArray[np.int64]
    weights: NDArray[np.float64]
    groups: NDArray[np.int64]

    def rows(self, chosen: NDArray[np.int64]) -> "Data":
        return Data(
            self.vectors[chosen], self.targets[chosen], self.weights[chosen], self.groups[chosen]
        )


def train(spec: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Train one student into `spec["scratch"]`; returns what the manifest should say."""
    # Load.
    dataset, scratch = Path(spec["dataset"]), Path(spec["scratch"])
    labels: list[str] = spec["labels"]
    rows = read_lines(dataset / "train.jsonl")
    if len({row["label"] for row in rows}) < 2:
        raise TrainingFailed(f"{len(rows)} examples with fewer than two labels teach nothing")
    encoder = Encoder(Path(spec["encoder"]), threads=spec["threads"], max_tokens=spec["max_tokens"])

    # Announce.
    counts = Counter(row["label"] for row in rows)
    missing = [label for label in labels if label not in counts]
    print(
        f"head: {len(rows)} examples, {len(counts)} of {len(labels)} labels, "
        f"C = {INVERSE_PENALTY:g}, seed {spec['seed']}, {spec['threads']} threads",
        file=sys.stderr,
    )

    # Data.
    cache = VectorCache(Path(spec["cache"]), encoder.dimension)
    texts = [row["text"] for row in rows]
    channel.progress("embed", 0, len(texts))
    vectors = cache.encode(
        encoder,
        texts,
        lambda done, new: channel.progress("embed", len(texts) - new + done, len(texts)),
    )
    position = {label: at for at, label in enumerate(labels)}
    group_numbers = {
        group: at for at, group in enumerate(dict.fromkeys(r["group_id"] for r in rows))
    }
    data = Data(
        vectors=vectors,
        targets=np.array([position[row["label"]] for row in rows]),
        weights=np.array([row["weight"] for row in rows], dtype=np.float64),
        groups=np.array([group_numbers[row["group_id"]] for row in rows]),
    )

    # Fit.
    folds = _folds(data, spec["seed"])
    steps = len(folds) + 1
    channel.progress("fit", 0, steps)
    weight, bias = _fit(data, len(labels))
    channel.progress("fit", 1, steps)

    # Calibrate, on examples that the fold's head has not seen.
    logits, targets = [], []
    for done, (seen, unseen) in enumerate(folds, start=2):
        known = np.isin(data.targets[unseen], data.targets[seen])
        unseen = unseen[known]
        if len(np.unique(data.targets[seen])) > 1 and len(unseen):
            fold_weight, fold_bias = _fit(data.rows(seen), len(labels))
            logits.append(data.vectors[unseen] @ fold_weight.T + fold_bias)
            targets.append(data.targets[unseen])
        channel.progress("fit", done, steps)
    temperature = _temperature(np.concatenate(logits), np.concatenate(targets)) if logits else 1.0
    if not (np.isfinite(weight).all() and np.isfinite(bias).all() and np.isfinite(temperature)):
        raise TrainingFailed("the fit ended in numbers that are not finite")

    # Save.
    head = Head(
        labels=tuple(labels),
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        temperature=temperature,
    )
    about = {
        "encoder": spec["encoder_digest"],
        "max_tokens": spec["max_tokens"],
        "task": spec["task"],
    }
    save_head(scratch, head, about)
    return {
        "examples": len(rows),
        "labels_without_example": missing,
        "temperature": round(temperature, 4),
        "inverse_penalty": INVERSE_PENALTY,
        "seed": spec["seed"],
    }


def _fit(data: Data, labels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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


def _folds(data: Data, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(seen, unseen) rows; a near-duplicate group is never on both sides."""
    count = 5 if len(data.targets) >= ONE_FOLD_FROM else CALIBRATION_FOLDS
    groups = int(data.groups.max()) + 1
    fold_of_group = np.random.default_rng(seed).permutation(groups) % count
    fold = fold_of_group[data.groups]
    used = 1 if len(data.targets) >= ONE_FOLD_FROM else count
    pairs = [(np.flatnonzero(fold != at), np.flatnonzero(fold == at)) for at in range(used)]
    return [(seen, unseen) for seen, unseen in pairs if len(seen) and len(unseen)]


def _temperature(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """The temperature that makes the unseen examples most likely (Guo et al., 2017, sec. 4.2)."""
    from scipy.optimize import minimize_scalar

    def surprise(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        log_total = np.log(np.exp(scaled).sum(axis=1))
        return float((log_total - scaled[np.arange(len(targets)), targets]).mean())

    best = minimize_scalar(surprise, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(best.x))


if __name__ == "__main__":
    run_child(train)
