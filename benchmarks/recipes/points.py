"""One point of the recipes' benchmark: a student trained as the learner trains, and measured.

Training runs in a child of its own, so that its memory and its time are nobody else's.
"""

import csv
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import psutil

from benchmarks.loose_work import BASE as BASE_MODEL
from benchmarks.loose_work import DATASET, ENCODER, loose_executor, write_training
from benchmarks.results import ROOT, commit
from pipelines.recipes import RECIPES, RecipeName
from pipelines.students.bases import installed_base
from pipelines.students.encoder import Encoder, installed_encoder_files
from pipelines.students.head import load_head
from pipelines.work import AdoptWork, Input, TrainWork
from service.learner.executor import LocalExecutor
from service.sections import TrainerSettings

BANKING77 = Path(os.environ.get("BANKING77", ROOT.parent / "shared" / "data" / "banking77"))
# The chat model as the program keeps it and the precision once chosen; `make clean` removes it.
CACHE = ROOT / ".cache" / "bench-recipes"
TASK = "banking"
BASE = "chat-model"  # the base model used directly: no recipe, no labels
CAUSAL_QUERIES = 500  # a chat model answers a few texts a second
LATENCY_QUERIES = 200
WATCH_SECONDS = 0.1
MAX_TOKENS = 128

Progress = Callable[[Mapping[str, Any]], None]


class Query(NamedTuple):
    """A customer's text with the label that people gave it."""

    text: str
    gold: str


class Case(NamedTuple):
    """What is measured: a recipe (or `BASE`) on so many labels, drawn by this seed."""

    recipe: str
    labels: int
    seed: int

    def __str__(self) -> str:
        return f"{self.recipe}, {self.labels:,} labels, seed {self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A case with what came out. `right` has a bit for each query, in the order of the sample."""

    recipe: str
    labels: int
    seed: int
    commit: str
    settings: dict[str, Any]  # of the recipe
    threads: int
    queries: int
    accuracy: float
    right: str
    minutes: float  # of training, from the start of the child to its end
    processor_minutes: float  # of it, of all cores: what other work on the machine does not change
    minutes_in_all: float  # with the evaluation
    peak_memory_mb: int
    size_mb: float
    latency_p50_ms: float
    trained: dict[str, Any]  # what the trainer said

    @property
    def case(self) -> Case:
        return Case(self.recipe, self.labels, self.seed)


@dataclass(slots=True)
class Used:
    """What a child used: the most bytes that it had resident, and seconds of processor."""

    peak: int = 0
    seconds: float = 0.0


class Answers(NamedTuple):
    """Labels in the order of the queries, and the milliseconds of texts asked one at a time."""

    labels: list[str]
    milliseconds: list[float]


def read_queries(name: str) -> list[Query]:
    with (BANKING77 / name).open(newline="", encoding="utf-8") as file:
        return [Query(row["text"], row["gold"]) for row in csv.DictReader(file)]


def settings_of(recipe: str) -> dict[str, Any]:
    """What decides about the outcome: a point with other settings is measured again."""
    if recipe == BASE:
        return {}
    told = asdict(RECIPES[_name(recipe)])
    for about in ("name", "family", "summary", "memory_mb", "bytes_per_weight"):
        told.pop(about)
    return told


def sample(recipe: str, seed: int, size: int) -> list[int]:
    """The test queries that are asked: all, or for a chat model some, drawn by the seed."""
    if _family(recipe) == "head" or size <= CAUSAL_QUERIES:
        return list(range(size))
    return sorted(random.Random(seed).sample(range(size), CAUSAL_QUERIES))


def pack(right: Sequence[bool]) -> str:
    return f"{int(''.join('01'[bit] for bit in right), 2):0{-(-len(right) // 4)}x}"


def unpack(right: str, count: int) -> list[bool]:
    return [bit == "1" for bit in f"{int(right, 16):0{count}b}"]


def measure(case: Case, threads: int, progress: Progress) -> Point:
    """Train and measure one case; a minute or an hour, told to `progress`."""
    began = time.monotonic()
    stream, test = read_queries("train.csv"), read_queries("test.csv")
    labels = sorted({query.gold for query in stream})
    random.Random(case.seed).shuffle(stream)
    asked = [test[at] for at in sample(case.recipe, case.seed, len(test))]
    with tempfile.TemporaryDirectory(prefix="recipes-") as name:
        folder = Path(name)
        base = _base(case, folder, threads, progress)
        if case.recipe == BASE:
            trained, minutes, used = dict[str, Any](), 0.0, Used()
            answers = _ask_chat_model(base, None, labels, asked, threads, progress)
        else:
            pairs = [(query.text, query.gold) for query in stream[: case.labels]]
            write_training(folder / "dataset", pairs)
            started = time.monotonic()
            trained, used = _train(_work(case, labels, base), folder, base, threads, progress)
            minutes = (time.monotonic() - started) / 60
            ask = _ask_head if _family(case.recipe) == "head" else _ask_adapters
            answers = ask(base, folder, labels, asked, threads, progress)
        size = sum(file.stat().st_size for file in (folder / "student").rglob("*"))
    right = [label == query.gold for label, query in zip(answers.labels, asked, strict=True)]
    trained.pop("loss_curve", None)
    return Point(
        recipe=case.recipe,
        labels=case.labels,
        seed=case.seed,
        commit=commit(),
        settings=settings_of(case.recipe),
        threads=threads,
        queries=len(asked),
        accuracy=round(sum(right) / len(right), 4),
        right=pack(right),
        minutes=round(minutes, 2),
        processor_minutes=round(used.seconds / 60, 2),
        minutes_in_all=round((time.monotonic() - began) / 60, 2),
        peak_memory_mb=used.peak // 2**20,
        size_mb=round(size / 1e6, 2),
        latency_p50_ms=round(statistics.median(answers.milliseconds), 1),
        trained=trained,
    )


# Training


def _base(case: Case, folder: Path, threads: int, progress: Progress) -> Path:
    """What the student stands on: the folder of an encoder or of a chat model."""
    (folder / "student").mkdir()
    frozen = folder / "encoder"
    frozen.mkdir()
    for name, (path, _) in installed_encoder_files().items():
        (frozen / name).symlink_to(path)
    if case.recipe == "head":
        return frozen
    if _family(case.recipe) == "head":
        return installed_base(RECIPES[_name(case.recipe)])
    return _chat_model(threads, progress)


def _chat_model(threads: int, progress: Progress) -> Path:
    """The installed chat model, made ready once by the child that the learner uses for it."""
    ready = CACHE / "chat-model"
    if not ready.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=CACHE, prefix="adopting-"))
        source = {BASE_MODEL: installed_base(RECIPES["causal-lora"])}
        _executor(scratch, source, threads, progress).run(AdoptWork(source=BASE_MODEL), scratch)
        scratch.rename(ready)
    return ready


def _work(case: Case, labels: Sequence[str], base: Path) -> TrainWork:
    """What the learner would tell the trainer."""
    return TrainWork(
        recipe=RECIPES[_name(case.recipe)],
        task=TASK,
        labels=tuple(labels),
        instructions="",
        seed=case.seed,
        dataset=DATASET,
        encoder=ENCODER,
        max_tokens=MAX_TOKENS,
        base=BASE_MODEL,
        base_name=base.name,
        checkpoint="checkpoint",
    )


def _train(
    work: TrainWork, folder: Path, base: Path, threads: int, progress: Progress
) -> tuple[dict[str, Any], Used]:
    """What the trainer reports, and what it used."""
    inputs = {DATASET: folder / "dataset", ENCODER: folder / "encoder", BASE_MODEL: base}
    with _watched() as used:
        executor = _executor(folder, inputs, threads, progress)
        trained = executor.run(work, folder / "student")
    return trained, used


def _executor(
    folder: Path, inputs: Mapping[Input, Path], threads: int, progress: Progress
) -> LocalExecutor:
    limits = TrainerSettings(
        time_limit=timedelta(hours=12),
        memory_limit_mb=psutil.virtual_memory().total // 2**20,
        heartbeat_timeout=timedelta(minutes=5),
        threads=threads,
    )
    # The folder's vectors are empty: what is embedded is part of the time.
    return loose_executor(folder, limits, inputs, progress, precision=CACHE / "precision.json")


@contextmanager
def _watched() -> Iterator[Used]:
    """What the processes use that we start inside: grows while they run."""
    used, stop = Used(), Event()

    def watch() -> None:
        while not stop.wait(WATCH_SECONDS):
            resident, seconds = 0, 0.0
            for child in psutil.Process().children(recursive=True):
                try:
                    resident += child.memory_info().rss
                    seconds += sum(child.cpu_times()[:2])
                except psutil.Error:  # it has just ended
                    continue
            used.peak, used.seconds = max(used.peak, resident), max(used.seconds, seconds)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield used
    finally:
        stop.set()
        watcher.join()


# Asking


def _ask_head(
    base: Path,
    folder: Path,
    labels: Sequence[str],
    asked: Sequence[Query],
    threads: int,
    progress: Progress,
) -> Answers:
    student = folder / "student"
    own = student / "encoder"
    encoder = Encoder(own if own.is_dir() else base, threads=threads, max_tokens=MAX_TOKENS)
    head = load_head(student, dimension=encoder.dimension)

    def told(done: int) -> None:
        progress({"phase": "answer", "step": done, "total": len(asked)})

    found = head.answer(encoder.encode([query.text for query in asked], told))
    milliseconds = []
    for query in asked[:LATENCY_QUERIES]:
        started = time.perf_counter()
        head.answer(encoder.encode([query.text]))
        milliseconds.append((time.perf_counter() - started) * 1000)
    return Answers([answer.label for answer in found], milliseconds)


def _ask_adapters(
    base: Path,
    folder: Path,
    labels: Sequence[str],
    asked: Sequence[Query],
    threads: int,
    progress: Progress,
) -> Answers:
    return _ask_chat_model(base, folder / "student", labels, asked, threads, progress)


def _ask_chat_model(
    base: Path,
    adapters: Path | None,
    labels: Sequence[str],
    asked: Sequence[Query],
    threads: int,
    progress: Progress,
) -> Answers:
    """Through the adapters, or the base model directly: the same prompt and the same trie."""
    from pipelines.students.causal import CausalConfig, ChatModel

    chat = ChatModel(base, threads=threads)
    direct = CausalConfig(
        labels=tuple(labels),
        instructions="",
        temperature=1.0,
        max_tokens=RECIPES["causal-lora"].max_tokens,
        chat_model="benchmark",
        task=TASK,
    )
    if adapters is not None:
        chat.load("student", adapters)
    found, milliseconds = [], []
    for done, query in enumerate(asked, start=1):
        started = time.perf_counter()
        if adapters is None:
            reply = chat.read_without_adapters(direct, [query.text])[0]
        else:
            reply = chat.read("student", [query.text])[0]
        milliseconds.append((time.perf_counter() - started) * 1000)
        found.append(reply.label)
        progress({"phase": "answer", "step": done, "total": len(asked)})
    return Answers(found, milliseconds)


def _family(recipe: str) -> str:
    return "causal" if recipe == BASE else RECIPES[_name(recipe)].family


def _name(recipe: str) -> RecipeName:
    return next(name for name in RECIPES if name == recipe)
