"""What candidate, champion and the cheap rivals answer to the held-out items, in a child process.

    python -m pipelines.answer SPEC.json

Writes `answers.json` and `golden.json`; the learner makes the evaluation from them.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipelines.child import Channel, read_lines, run_child
from pipelines.render import label_text
from pipelines.students.encoder import Encoder, VectorCache, Vectors
from pipelines.students.head import Classifier, LabelledAnswer, load_head

CANDIDATE = "candidate"
CHUNK = 32  # texts between two words of progress
GOLDEN = 16
LATENCY_SAMPLES = 32
# Turns cosine similarity to label names into something like a probability; only its order
# matters for the base model, whose confidence promises nothing.
COSINE_TEMPERATURE = 0.05


class Reader(Protocol):
    """A student, or the base model used directly."""

    def answer(self, texts: Sequence[str]) -> list[LabelledAnswer]:
        """Label and confidence of each text."""


def answer(spec: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Answer the held-out items of `spec["dataset"]` with every student and rival.

    `spec["students"]` maps `candidate`, and where there are some `champion` and `sibling`, to
    the folder, family and base of each.
    """
    scratch = Path(spec["scratch"])
    texts = [item["text"] for item in read_lines(Path(spec["items"]))]
    training = read_lines(Path(spec["dataset"]) / "train.jsonl")
    encoder = Encoder(Path(spec["encoder"]), threads=spec["threads"], max_tokens=spec["max_tokens"])
    cache = VectorCache(Path(spec["cache"]), encoder.dimension)
    answers: dict[str, Sequence[LabelledAnswer]] = {}
    readings = len(spec["students"]) + 1
    latency = 0.0
    for number, (name, student) in enumerate(spec["students"].items()):
        reader = _load(student, spec, encoder)
        answers[name] = _read(reader, texts, channel, number, readings)
        if name == CANDIDATE:
            latency = _latency_ms(reader, texts)
            base = _base(reader, encoder, spec["labels"])
            answers["base"] = _read(base, texts, channel, readings - 1, readings)
    answers["majority"] = _majority(training, len(texts))
    known = cache.encode(encoder, [row["text"] for row in training])
    answers["nearest"] = _nearest(known, training, cache.encode(encoder, texts))
    (scratch / "answers.json").write_text(json.dumps(answers))
    _write_golden(scratch, texts, answers[CANDIDATE])
    return {"items": len(texts), "latency_ms": latency}


def _load(student: dict[str, Any], spec: dict[str, Any], encoder: Encoder) -> Reader:
    """Each reads with what it was trained on, whatever the settings name now."""
    folder, base = Path(student["folder"]), Path(student["base"])
    if student["family"] == "causal":
        return _Causal(base, folder, spec["threads"])
    if str(base) != spec["encoder"] or student["max_tokens"] != spec["max_tokens"]:
        encoder = Encoder(base, threads=spec["threads"], max_tokens=student["max_tokens"])
    return Classifier(head=load_head(folder, dimension=encoder.dimension), encoder=encoder)


def _read(
    reader: Reader, texts: Sequence[str], channel: Channel, number: int, readings: int
) -> list[LabelledAnswer]:
    """All answers of one reader. Progress counts the texts of all `readings`."""
    answers: list[LabelledAnswer] = []
    total = readings * len(texts)
    for start in range(0, len(texts), CHUNK):
        channel.progress("answer", number * len(texts) + start, total)
        answers += reader.answer(texts[start : start + CHUNK])
    channel.progress("answer", (number + 1) * len(texts), total)
    return answers


class _Causal:
    """A chat model with one student's adapters, or, `untuned`, without."""

    def __init__(self, base: Path, folder: Path, threads: int) -> None:
        from pipelines.students.causal import ChatModel

        self._model = ChatModel(base, threads=threads)
        self._config = self._model.load("student", folder)
        self.untuned = False

    def answer(self, texts: Sequence[str]) -> list[LabelledAnswer]:
        if self.untuned:
            config = replace(self._config, temperature=1.0)
            replies = self._model.read_without_adapters(config, texts)
        else:
            replies = self._model.read("student", texts)
        return [LabelledAnswer(reply.label, reply.confidence) for reply in replies]


def _base(reader: Reader, encoder: Encoder, labels: Sequence[str]) -> Reader:
    """The base model used directly: the same chat model, or the untrained encoder."""
    if isinstance(reader, _Causal):
        reader.untuned = True
        return reader
    return _LabelNames(encoder, labels)


class _LabelNames:
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


def _majority(training: Sequence[dict[str, Any]], items: int) -> list[LabelledAnswer]:
    """The most frequent label of the training set, whatever is asked."""
    counts = Counter(row["label"] for row in training)
    label, count = counts.most_common(1)[0]
    return [LabelledAnswer(label, count / len(training))] * items


def _nearest(
    known: Vectors, training: Sequence[dict[str, Any]], vectors: Vectors
) -> list[LabelledAnswer]:
    """The label of the most similar training example."""
    answers = []
    for start in range(0, len(vectors), 256):
        similarity = vectors[start : start + 256] @ known.T
        for row, best in zip(similarity, similarity.argmax(axis=1), strict=True):
            confidence = float(min(1.0, max(0.0, row[best])))
            answers.append(LabelledAnswer(training[int(best)]["label"], confidence))
    return answers


def _write_golden(scratch: Path, texts: Sequence[str], answers: Sequence[LabelledAnswer]) -> None:
    """Prompts with the candidate's answers: a gateway that loads it must give the same."""
    step = max(1, len(texts) // GOLDEN)
    golden = [
        {"text": texts[at], "label": answers[at].label, "confidence": answers[at].confidence}
        for at in range(0, len(texts), step)
    ][:GOLDEN]
    (scratch / "golden.json").write_text(json.dumps(golden))


def _latency_ms(reader: Reader, texts: Sequence[str]) -> float:
    """Median time of one answer, one text at a time, as a gateway with one client gives it."""
    durations = []
    for text in texts[:LATENCY_SAMPLES]:
        started = time.perf_counter()
        reader.answer([text])
        durations.append((time.perf_counter() - started) * 1000)
    return round(float(np.median(durations)), 2) if durations else 0.0


if __name__ == "__main__":
    run_child(answer)
