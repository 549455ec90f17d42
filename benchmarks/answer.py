"""A student's answer over HTTP, against tokenizer, session and head called directly.

    make bench BENCHMARKS=answer      (ARGS=--quick for a short run)

A real gateway answers a client in another process that keeps its connection. By turns the same
texts are answered by the bare parts in this process, with the same number of threads. Then sixteen
clients ask at once, against one client that asks one text at a time.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from benchmarks.load import Load, generate
from benchmarks.results import write_results
from benchmarks.serving import publish_student, running_gateway, task_settings
from pipelines.students.encoder import MODEL_FILE, TOKENIZER_FILE, installed_encoder_files
from pipelines.students.head import Head
from service.demo.corpus import Corpus, load_corpus

CLIENTS = 16
WORDS = 12  # of a short text, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is asked in a round, and how many rounds there are."""

    rounds: int = 5
    requests: int = 600  # of one client
    crowd: int = 3_000  # of sixteen clients together
    threads: int = 0  # as many as cores
    seed: int = 0


QUICK = Plan(rounds=1, requests=40, crowd=80)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn of each."""

    bare_p50_ms: float
    p50_ms: float
    p99_ms: float
    per_second: float
    p50_ms_16: float
    p99_ms_16: float
    per_second_16: float


class Bare:
    """Tokenizer, session and head, called with nothing around them."""

    def __init__(self, head: Head, threads: int) -> None:
        files = {name: path for name, (path, _) in installed_encoder_files().items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(files[MODEL_FILE]), options)
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._tokenizer = Tokenizer.from_file(str(files[TOKENIZER_FILE]))
        self._tokenizer.no_padding()
        self._head = head

    def answer(self, text: str) -> str:
        ids = np.array([self._tokenizer.encode(text).ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        feed["token_type_ids"] = np.zeros_like(ids)
        states = self._session.run(None, {name: feed[name] for name in self._inputs})[0]
        vector = states.mean(axis=1)
        vector /= np.linalg.norm(vector, axis=1, keepdims=True)
        return self._head.answer(vector)[0].label

    def milliseconds(self, texts: Sequence[str], requests: int) -> list[float]:
        found = []
        for number in range(requests):
            started = time.perf_counter()
            self.answer(texts[number % len(texts)])
            found.append((time.perf_counter() - started) * 1000)
        return found


def run(plan: Plan, folder: Path) -> tuple[dict[str, float], list[Round]]:
    """Figures, and the rounds that they come from."""
    corpus, data = load_corpus(), folder / "data"
    threads = plan.threads or os.cpu_count() or 1
    _, head = publish_student(data, corpus)
    texts = short_texts(corpus)
    bodies = [_body(corpus, text) for text in texts]
    bare = Bare(head, threads)
    with running_gateway(data, _settings(corpus, threads)) as address:
        url = f"{address}/v1/chat/completions"

        def ask(clients: int, requests: int) -> Load:
            return generate(url, bodies, clients=clients, requests=requests)

        ask(1, 40)
        bare.milliseconds(texts, 40)
        rounds = [_round(plan, bare, texts, ask) for _ in range(plan.rounds)]
    return _figures(rounds), rounds


def short_texts(corpus: Corpus) -> list[str]:
    """Messages of the demonstration's customers of at most twelve words."""
    return [
        text
        for texts in corpus.messages.values()
        for text in texts
        if len(text.split()) <= WORDS and text.isascii()
    ]


def _round(plan: Plan, bare: Bare, texts: Sequence[str], ask: Callable[[int, int], Load]) -> Round:
    """Bare and one client by turns, half before and half after, then the crowd."""
    half = plan.requests // 2
    bare_times = bare.milliseconds(texts, half)
    one = ask(1, plan.requests)
    bare_times += bare.milliseconds(texts, half)
    crowd = ask(CLIENTS, plan.crowd)
    found = Round(
        bare_p50_ms=statistics.median(bare_times),
        p50_ms=one.p50,
        p99_ms=one.p99,
        per_second=one.per_second,
        p50_ms_16=crowd.p50,
        p99_ms_16=crowd.p99,
        per_second_16=crowd.per_second,
    )
    print(
        f"bare {found.bare_p50_ms:.2f} ms, over HTTP {found.p50_ms:.2f} ms; "
        f"{CLIENTS} clients: {found.per_second_16:.0f}/s against {found.per_second:.0f}/s, "
        f"p50 {found.p50_ms_16:.1f} ms, p99 {found.p99_ms_16:.1f} ms",
        flush=True,
    )
    return found


def _figures(rounds: Sequence[Round]) -> dict[str, float]:
    """Medians over the rounds: a disturbance spoils one of them."""

    def median(of: Callable[[Round], float]) -> float:
        return round(statistics.median(map(of, rounds)), 3)

    return {
        "ratio_to_bare": median(lambda one: one.p50_ms / one.bare_p50_ms),
        "p50_ms": median(lambda one: one.p50_ms),
        "p99_ms": median(lambda one: one.p99_ms),
        "bare_p50_ms": median(lambda one: one.bare_p50_ms),
        "throughput_gain_16": median(lambda one: one.per_second_16 / one.per_second),
        "per_second": median(lambda one: one.per_second),
        "per_second_16": median(lambda one: one.per_second_16),
        "p50_ms_16": median(lambda one: one.p50_ms_16),
        "p99_ms_16": median(lambda one: one.p99_ms_16),
        "p99_to_p50_16": median(lambda one: one.p99_ms_16 / one.p50_ms_16),
    }


def _body(corpus: Corpus, text: str) -> bytes:
    messages = [
        {"role": "system", "content": corpus.instructions},
        {"role": "user", "content": text},
    ]
    return json.dumps({"model": corpus.task, "messages": messages}).encode()


def _settings(corpus: Corpus, threads: int) -> str:
    return f"threads = {threads}\n{task_settings(corpus)}"


def main() -> None:
    """Run the benchmark and write `benchmarks/results/answer.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a few seconds; writes no results")
    parser.add_argument("--threads", type=int, default=0, help="of the encoder; 0: one a core")
    chosen = parser.parse_args()
    plan = replace(QUICK if chosen.quick else Plan(), threads=chosen.threads)
    with tempfile.TemporaryDirectory(prefix="answer-") as folder:
        figures, rounds = run(plan, Path(folder))
    for name, value in figures.items():
        print(f"{name}: {value:g}")
    if not chosen.quick:
        write_results("answer", figures, seed=plan.seed, rounds=[asdict(one) for one in rounds])


if __name__ == "__main__":
    main()
