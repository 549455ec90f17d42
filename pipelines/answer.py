"""What candidate, champion and the cheap rivals answer to the held-out items, in a child process.

    python -m pipelines.answer SPEC.json

Writes `answers.json` and `golden.json`; the learner makes the evaluation from them.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.child import Channel, read_lines, run_child
from pipelines.encoder import Encoder, VectorCache, Vectors
from pipelines.render import label_text
from pipelines.students.classifier import LabelledAnswer, load_head

GOLDEN = 16
LATENCY_SAMPLES = 32
# Turns cosine similarity to label names into something like a probability; only its order
# matters for the base model, whose confidence promises nothing.
COSINE_TEMPERATURE = 0.05


def answer(spec: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Answer the held-out items of `spec["dataset"]` with every student and rival."""
    dataset, scratch = Path(spec["dataset"]), Path(spec["scratch"])
    items = read_lines(Path(spec["items"]))
    training = read_lines(dataset / "train.jsonl")
    encoder = Encoder(Path(spec["encoder"]), threads=spec["threads"], max_tokens=spec["max_tokens"])
    cache = VectorCache(Path(spec["cache"]), encoder.dimension)
    texts = [item["text"] for item in items]
    channel.progress("answer", 0, len(texts))
    vectors = cache.encode(
        encoder,
        texts,
        lambda done, new: channel.progress("answer", len(texts) - new + done, len(texts)),
    )
    candidate = load_head(Path(spec["candidate"]), dimension=encoder.dimension)
    answers = {"candidate": candidate.answer(vectors)}
    if spec["champion"] is not None:
        answers["champion"] = _champion(spec, encoder, vectors, texts)
    answers["base"] = _base(encoder, vectors, spec["labels"])
    answers["majority"] = _majority(training, len(items))
    answers["nearest"] = _nearest(
        cache.encode(encoder, [row["text"] for row in training]), training, vectors
    )
    (scratch / "answers.json").write_text(json.dumps(answers))
    _write_golden(scratch, texts, answers["candidate"])
    channel.progress("answer", len(texts), len(texts))
    return {"items": len(items), "latency_ms": _latency_ms(encoder, candidate, texts)}


def _champion(
    spec: dict[str, Any], encoder: Encoder, vectors: Vectors, texts: Sequence[str]
) -> list[LabelledAnswer]:
    """The champion's answers, read with the encoder that it was trained on."""
    if spec["champion_encoder"] != spec["encoder"]:
        folder = Path(spec["champion_encoder"])
        encoder = Encoder(folder, threads=spec["threads"], max_tokens=spec["champion_max_tokens"])
        vectors = encoder.encode(texts)
    head = load_head(Path(spec["champion"]), dimension=encoder.dimension)
    return head.answer(vectors)


def _base(encoder: Encoder, vectors: Vectors, labels: Sequence[str]) -> list[LabelledAnswer]:
    """The untrained encoder with nothing but the label names."""
    names = encoder.encode([label_text(label) for label in labels])
    scores = (vectors @ names.T).astype(np.float64) / COSINE_TEMPERATURE
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    return [LabelledAnswer(labels[int(row.argmax())], float(row.max())) for row in scores]


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


def _latency_ms(encoder: Encoder, head: Any, texts: Sequence[str]) -> float:
    """Median time of one answer, one text at a time, as a gateway with one client gives it."""
    durations = []
    for text in texts[:LATENCY_SAMPLES]:
        started = time.perf_counter()
        head.answer(encoder.encode([text]))
        durations.append((time.perf_counter() - started) * 1000)
    return round(float(np.median(durations)), 2) if durations else 0.0


if __name__ == "__main__":
    run_child(answer)
