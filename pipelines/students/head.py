"""The frozen-encoder classifier: unit vector, linear head, calibrated confidence.

How it answers is here once: the gateway, the evaluation and the trainer all call `Head`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipelines.errors import ArtifactDamaged
from pipelines.render import label_text
from pipelines.students.encoder import Encoder, Vectors
from pipelines.types import LabelledAnswer

WEIGHTS_FILE = "head.safetensors"
CONFIG_FILE = "student.json"
FAMILY: Final = "head"
# Turns cosine similarity to label names into something like a probability; only its order
# matters for the base model, whose confidence promises nothing.
COSINE_TEMPERATURE = 0.05
CONFIG_KEYS = frozenset({"format", "family", "labels", "encoder", "max_tokens", "task"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Multinomial logistic regression over unit vectors, with one temperature.

    `weight` has shape (labels, dimension), `bias` (labels,). Confidence is the largest
    softmax probability of the logits divided by `temperature` (Guo et al., On Calibration
    of Modern Neural Networks, 2017). `prototypes`, shape (m, dimension), are unit vectors around
    which the training examples lay, each of the label with the number in `prototype_labels`.
    """

    labels: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    temperature: float
    prototypes: NDArray[np.float32] | None = None
    prototype_labels: NDArray[np.int64] | None = None

    def probabilities(self, vectors: Vectors) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (texts, labels)."""
        logits = (vectors @ self.weight.T + self.bias).astype(np.float64) / self.temperature
        logits -= logits.max(axis=1, keepdims=True)
        exponentials = np.exp(logits)
        result: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
        return result

    def answer(self, vectors: Vectors) -> list[LabelledAnswer]:
        """The most probable label of each row with its probability."""
        if not len(vectors):
            return []
        probabilities = self.probabilities(vectors)
        best = probabilities.argmax(axis=1)
        confidences = probabilities[np.arange(len(best)), best]
        return [
            LabelledAnswer(self.labels[index], float(confidence), distance)
            for index, confidence, distance in zip(
                best, confidences, self._distances(vectors, best), strict=True
            )
        ]

    def _distances(self, vectors: Vectors, best: NDArray[np.int64]) -> Sequence[float | None]:
        """Cosine distance of each row to the nearest prototype of the label that it is given."""
        if self.prototypes is None or self.prototype_labels is None:
            return [None] * len(vectors)
        similarity = vectors @ self.prototypes.T
        own = best[:, None] == self.prototype_labels[None, :]
        # At most 2 apart: of a label without an example nothing is near.
        nearest = np.where(own, similarity, -1.0).max(axis=1)
        distances: list[float] = (1.0 - nearest.astype(np.float64)).tolist()
        return distances


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """A head with the encoder that it was trained on."""

    head: Head
    encoder: Encoder

    def answer(self, texts: Sequence[str]) -> list[LabelledAnswer]:
        """Label and confidence of each text."""
        return self.head.answer(self.encoder.encode(texts))

    def untuned(self, labels: Sequence[str]) -> "LabelNames":
        """The base model used directly."""
        return LabelNames(self.encoder, labels)


class LabelNames:
    """The untrained encoder with nothing but the label names."""

    def __init__(self, encoder: Encoder, labels: Sequence[str]) -> None:
        self._encoder, self._labels = encoder, labels
        self._names = encoder.encode([label_text(label) for label in labels])

    def answer(self, texts: Sequence[str]) -> list[LabelledAnswer]:
        vectors = self._encoder.encode(texts)
        scores = (vectors @ self._names.T).astype(np.float64) / COSINE_TEMPERATURE
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        return [LabelledAnswer(self._labels[int(row.argmax())], float(row.max())) for row in scores]

    def untuned(self, labels: Sequence[str]) -> "LabelNames":
        return self


def save_head(folder: Path, head: Head, about: Mapping[str, Any]) -> None:
    """Write a student folder: safetensors and a JSON file, nothing executable."""
    tensors = {
        # safetensors writes the buffer as it lies: in any other order it would be scrambled.
        "weight": np.ascontiguousarray(head.weight, dtype=np.float32),
        "bias": head.bias.astype(np.float32),
        "temperature": np.array([head.temperature], dtype=np.float32),
    }
    if head.prototypes is not None and head.prototype_labels is not None:
        # Halves are exact to three digits of a distance, and half as many bytes.
        tensors["prototypes"] = np.ascontiguousarray(head.prototypes, dtype=np.float16)
        tensors["prototype_labels"] = head.prototype_labels.astype(np.int32)
    save_file(tensors, str(folder / WEIGHTS_FILE))
    config = {"format": 1, "family": FAMILY, "labels": list(head.labels), **about}
    text = json.dumps(config, ensure_ascii=False, indent=1)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def name_encoder(folder: Path, digest: str) -> None:
    """Write into a student folder which encoder it reads with, once that is known."""
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps({**config, "encoder": digest}, ensure_ascii=False, indent=1)
    path.write_text(text, encoding="utf-8")


def load_head(folder: Path, *, dimension: int | None = None) -> Head:
    """Read a head and check what was read: keys, shapes, finite numbers.

    Raises `ArtifactDamaged` for anything else; `dimension` is the encoder's, where known.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(str(folder / WEIGHTS_FILE))
        labels = tuple(config["labels"])
        weight, bias = tensors["weight"], tensors["bias"]
        temperature = float(tensors["temperature"][0])
        prototypes = tensors.get("prototypes")
        prototype_labels = tensors.get("prototype_labels")
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise ArtifactDamaged(f"the student's files cannot be read: {error}") from error
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) != len(labels):
        raise ArtifactDamaged(f"{CONFIG_FILE} names its labels twice, or not as texts")
    unknown = set(config) - CONFIG_KEYS
    if unknown:
        raise ArtifactDamaged(f"{CONFIG_FILE} has keys that no student has: {sorted(unknown)}")
    if weight.ndim != 2 or weight.shape[0] != len(labels) or bias.shape != (len(labels),):
        raise ArtifactDamaged(
            f"the head's shape {weight.shape} does not fit its {len(labels)} labels"
        )
    if dimension is not None and weight.shape[1] != dimension:
        raise ArtifactDamaged(
            f"the head reads vectors of {weight.shape[1]} numbers, the encoder gives {dimension}"
        )
    finite = np.isfinite(weight).all() and np.isfinite(bias).all()
    if not finite or not np.isfinite(temperature) or temperature <= 0:
        raise ArtifactDamaged("the head holds numbers that are not finite")
    head = Head(labels=labels, weight=weight, bias=bias, temperature=temperature)
    if prototypes is None and prototype_labels is None:
        return head  # from before there were prototypes
    return _with_prototypes(head, prototypes, prototype_labels)


def _with_prototypes(
    head: Head, prototypes: NDArray[Any] | None, of_labels: NDArray[Any] | None
) -> Head:
    """Raises `ArtifactDamaged` where they do not fit the head."""
    if prototypes is None or of_labels is None or prototypes.ndim != 2:
        raise ArtifactDamaged("the head has prototypes without labels, or labels without them")
    fits = (
        prototypes.shape == (len(of_labels), head.weight.shape[1])
        and of_labels.ndim == 1
        and np.issubdtype(of_labels.dtype, np.integer)
        and bool(((of_labels >= 0) & (of_labels < len(head.labels))).all())
    )
    if not fits or not np.isfinite(prototypes).all():
        raise ArtifactDamaged("the head's prototypes do not fit its labels and its encoder")
    return replace(
        head,
        prototypes=prototypes.astype(np.float32),
        prototype_labels=of_labels.astype(np.int64),
    )
