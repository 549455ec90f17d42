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

from pipelines.child import Channel, run_child
from pipelines.rows import TrainingRow, read_training
from pipelines.students.encoder import Encoder, VectorCache, Vectors
from pipelines.students.families import FAMILIES, Student
from pipelines.types import LabelledAnswer
from pipelines.work import ANSWERS_FILE, GOLDEN_FILE, AnswerFacts, AnswerWork, Host, result

CANDIDATE, CHAMPION = "candidate", "champion"
CHUNK = 32  # texts between two words of progress
GOLDEN = 16
LATENCY_SAMPLES = 32


def answer(work: AnswerWork, host: Host, channel: Channel) -> dict[str, Any]:
    """Answer the held-out items with every student and rival, then what is kept with two."""
    scratch = Path(host.scratch)
    texts = [item.text for item in work.items]
    training = read_training(host.path(work.dataset))
    loaded = LoadedBases(host.threads)
    encoder = loaded.encoder(host.path(work.encoder), work.max_tokens)
    cache = VectorCache(Path(host.vectors), encoder.dimension)
    answers: dict[str, Sequence[LabelledAnswer]] = {}
    kept = {name: [row.text for row in work.kept] for name in (CANDIDATE, CHAMPION)}
    asked = {name: texts + kept.get(name, []) for name in work.students}
    progress = Progress(channel, sum(map(len, asked.values())) + len(texts))
    latency = 0.0
    for name, one in work.students.items():
        family, folder = FAMILIES[one.family], host.path(one.student)
        student = family.open(folder, host.path(one.base), one.max_tokens, loaded)
        answers[name] = _read(student, asked[name], progress)
        if name == CANDIDATE:
            latency = _latency_ms(student, texts)
            base = student.untuned(work.labels)
            answers["base"] = _read(base, texts, progress)
    answers["majority"] = _majority(training, len(texts))
    known = cache.encode(encoder, [row.text for row in training])
    answers["nearest"] = _nearest(known, training, cache.encode(encoder, texts))
    (scratch / ANSWERS_FILE).write_text(json.dumps(answers))
    _write_golden(scratch, texts, answers[CANDIDATE])
    return result(AnswerFacts(items=len(texts), latency_ms=latency))


class LoadedBases:
    """The encoders that were loaded, by folder and tokens."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._encoders: dict[tuple[Path, int], Encoder] = {}

    def encoder(self, folder: Path, max_tokens: int) -> Encoder:
        key = (folder, max_tokens)
        if key not in self._encoders:
            self._encoders[key] = Encoder(folder, threads=self.threads, max_tokens=max_tokens)
        return self._encoders[key]


class Progress:
    """Says how many of all the texts of all the readings are answered."""

    def __init__(self, channel: Channel, total: int) -> None:
        self._channel = channel
        self._total = total
        self._done = 0

    def add(self, texts: int) -> None:
        self._done += texts
        self._channel.progress("answer", self._done, self._total)


def _read(student: Student, texts: Sequence[str], progress: Progress) -> list[LabelledAnswer]:
    """All answers of one student."""
    answers: list[LabelledAnswer] = []
    progress.add(0)
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        answers += student.answer(chunk)
        progress.add(len(chunk))
    return answers


def _majority(training: Sequence[TrainingRow], items: int) -> list[LabelledAnswer]:
    """The most frequent label of the training set, whatever is asked."""
    counts = Counter(row.label for row in training)
    label, count = counts.most_common(1)[0]
    return [LabelledAnswer(label, count / len(training))] * items


def _nearest(
    known: Vectors, training: Sequence[TrainingRow], vectors: Vectors
) -> list[LabelledAnswer]:
    """The label of the most similar training example."""
    answers = []
    for start in range(0, len(vectors), 256):
        similarity = vectors[start : start + 256] @ known.T
        for row, best in zip(similarity, similarity.argmax(axis=1), strict=True):
            confidence = float(min(1.0, max(0.0, row[best])))
            answers.append(LabelledAnswer(training[int(best)].label, confidence))
    return answers


def _write_golden(scratch: Path, texts: Sequence[str], answers: Sequence[LabelledAnswer]) -> None:
    """Prompts with the candidate's answers: a gateway that loads it must give the same."""
    step = max(1, len(texts) // GOLDEN)
    golden = [
        {"text": texts[at], "label": answers[at].label, "confidence": answers[at].confidence}
        for at in range(0, len(texts), step)
    ][:GOLDEN]
    (scratch / GOLDEN_FILE).write_text(json.dumps(golden))


def _latency_ms(student: Student, texts: Sequence[str]) -> float:
    """Median time of one answer, one text at a time, as a gateway with one client gives it."""
    durations = []
    for text in texts[:LATENCY_SAMPLES]:
        started = time.perf_counter()
        student.answer([text])
        durations.append((time.perf_counter() - started) * 1000)
    return round(float(np.median(durations)), 2) if durations else 0.0


if __name__ == "__main__":
    run_child(AnswerWork, answer)
