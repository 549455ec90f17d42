"""A day of traffic at a hundred events a second in the database: its size, and how quick it is.

    make bench BENCHMARKS=day      (ARGS=--quick for a short run)

The demonstration trains and approves a student, which gives the console something to show. Then a
day is written into its database through the learner's own transactions: sums for every minute,
task, version and segment, the samples and labels that the default budgets allow, estimates, ticks,
dead letters. A real learner starts over it, and every page that its console links to is asked for.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

import httpx2
import numpy as np

from benchmarks.results import write_results
from benchmarks.traffic import message, vocabulary
from pipelines.curate import Group
from pipelines.sample import side_of
from pipelines.statistics.coverage import CONFIDENCE_BINS, confidence_bins
from pipelines.tally import Tally, TrafficKey
from pipelines.types import (
    Assessment,
    DeadLetter,
    Draws,
    Estimate,
    Label,
    Message,
    PromptEvent,
    Sample,
    SampleReason,
    SourceOffset,
    StudentAnswer,
)
from service.demo.corpus import Corpus, load_corpus
from service.keys import operator_token, read_operator_token
from service.supervisor import with_life_line
from storage.database import Cursor, Database
from storage.dead_letters import add_dead_letters
from storage.estimates import StoredEstimate, add_estimate
from storage.groups import add_groups
from storage.labels import add_labels
from storage.migrate import migrate
from storage.samples import add_samples
from storage.ticks import record_tick
from storage.traffic import add_traffic, store_offsets

EVENTS_PER_SECOND = 100
DAY_MINUTES = 1_440
BATCHES_PER_MINUTE = 2  # transactions of ingest
# What the default budgets and limits of a day come to.
LABELS_BOUGHT, LABELS_GIVEN, PENDING = 2_000, 10_000, 5_000
TICKS = {"relabel": 12, "watch": 6, "evaluate": 1}  # a minute, by the default schedule
ESTIMATES_PER_MINUTE = 3
TEXT_CHARACTERS = 240
ROUNDS = 25
UP_SECONDS = 120.0
TRAIN_SECONDS = 420.0
FLYWHEEL = [sys.executable, "-m", "service"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of a day, and how often each page is asked for."""

    minutes: int = DAY_MINUTES
    rounds: int = ROUNDS
    trained: bool = True  # by the demonstration, first
    seed: int = 0


QUICK = Plan(minutes=5, rounds=2, trained=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """How long one page took, in milliseconds."""

    p50: float
    worst: float


def run(plan: Plan, folder: Path) -> tuple[dict[str, float], dict[str, Page]]:
    """Figures, and the pages by their path."""
    corpus, data = load_corpus(), folder / "data"
    if plan.trained:
        train(data)
    else:
        write_settings(data, corpus)
    before = _size(data)
    started = time.monotonic()
    fill(plan, data, corpus, _champion(data, corpus))
    print(f"{plan.minutes} minutes written in {time.monotonic() - started:.0f} s", flush=True)
    with learner(data) as address:
        pages = measure(address, read_operator_token(data), plan.rounds)
    figures = {
        "events": plan.minutes * 60 * EVENTS_PER_SECOND,
        "size_mb": round((_size(data) - before) / 1e6, 1),
        "pages": len(pages),
        "slowest_page_p50_ms": round(max(page.p50 for page in pages.values()), 1),
        "slowest_page_max_ms": round(max(page.worst for page in pages.values()), 1),
    }
    return figures, pages


def train(data: Path) -> None:
    """A data folder with a student that was trained, evaluated and approved."""
    subprocess.run(
        [
            *(*FLYWHEEL, "demo", "--approve", "--until-promoted", "--data", str(data)),
            *("--port-gateway", "0", "--port-learner", "0", "--duration", str(TRAIN_SECONDS)),
        ],
        stdout=subprocess.DEVNULL,
        check=True,
    )


def write_settings(data: Path, corpus: Corpus) -> None:
    """A data folder in which nothing was trained yet."""
    data.mkdir()
    (data / "flywheel.toml").write_text(
        f"""data_dir = {json.dumps(str(data))}
[learner]
port = 0
[tasks.{corpus.task}]
models = ["{corpus.task}"]
labels = {json.dumps(corpus.labels)}
"""
    )


# Filling


def fill(plan: Plan, data: Path, corpus: Corpus, version: str) -> None:
    """Write the minutes that end now."""
    database = Database(data / "flywheel.duckdb")
    migrate(database)
    day = _Day(plan, corpus, version)
    try:
        for minute in range(plan.minutes):
            for batch in range(BATCHES_PER_MINUTE):
                with database.transaction() as tx:
                    day.write(tx, minute, batch)
            if minute % 120 == 0:
                print(f"minute {minute} of {plan.minutes}", flush=True)
        database.checkpoint()
    finally:
        database.close()


class _Day:
    """What ingest, the relabel job and the watch job would have written, drawn by the seed."""

    def __init__(self, plan: Plan, corpus: Corpus, version: str) -> None:
        self._plan = plan
        self._corpus = corpus
        self._version = version
        self._draw = random.Random(plan.seed)
        self._numbers = np.random.default_rng(plan.seed)
        self._words = vocabulary()
        self._begin = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(
            minutes=plan.minutes
        )
        self._samples = 0
        self._spent = 0.0

    def write(self, tx: Cursor, minute: int, batch: int) -> None:
        at = self._begin + timedelta(minutes=minute)
        events = EVENTS_PER_SECOND * 60 // BATCHES_PER_MINUTE
        add_traffic(tx, self._sums(at, events))
        self._write_samples(tx, at)
        offset = (minute * BATCHES_PER_MINUTE + batch + 1) * events
        store_offsets(tx, "benchmark", "benchmark", {0: offset}, at)
        if batch:
            return
        self._write_ticks(tx, at)
        self._write_estimates(tx, at)
        if minute % 10 == 0:
            add_dead_letters(tx, [_letter(minute)], at)

    def _sums(self, at: datetime, events: int) -> dict[TrafficKey, Tally]:
        """By segment, as customers write: a few matters often, most of them rarely."""
        labels = self._corpus.labels
        share = 1 / np.arange(4, 4 + len(labels))
        counts = self._numbers.multinomial(events, share / share.sum())
        return {
            (at, self._corpus.task, self._version, label): self._tally(int(count))
            for label, count in zip(labels, counts, strict=True)
            if count
        }

    def _tally(self, count: int) -> Tally:
        confidences = 1 - 0.6 * self._numbers.random(count) ** 4
        served = confidences[confidences > 0.7]
        return Tally(
            events=count,
            assessed=count,
            served=len(served),
            teacher_served=count - len(served),
            sum_f=float(confidences.sum()),
            sum_f2=float((confidences**2).sum()),
            served_sum_f=float(served.sum()),
            served_sum_f2=float((served**2).sum()),
            histogram=np.bincount(confidence_bins(confidences), minlength=CONFIDENCE_BINS).tolist(),
        )

    def _write_samples(self, tx: Cursor, at: datetime) -> None:
        labelled = LABELS_BOUGHT + LABELS_GIVEN
        wanted = (labelled + PENDING) / (DAY_MINUTES * BATCHES_PER_MINUTE)
        count = int(wanted + self._draw.random())
        samples = [self._sample(at) for _ in range(count)]
        task = self._corpus.task
        founders = [Group(one.group_id, task, one.side, one.text) for one in samples]
        add_groups(tx, founders, at)
        add_samples(tx, samples, at)
        answered = [one for one in samples if self._draw.random() < labelled / (labelled + PENDING)]
        add_labels(tx, task, [self._label(one) for one in answered], at)

    def _sample(self, at: datetime) -> Sample:
        draw, self._samples = self._draw, self._samples + 1
        event_id = f"{draw.getrandbits(128):032x}"
        text = message(draw, self._words, TEXT_CHARACTERS)
        label = draw.choice(self._corpus.labels)
        confidence = 1 - 0.6 * draw.random() ** 4
        audited = draw.random() < 0.1
        student = (
            StudentAnswer(version=self._version, label=label, confidence=confidence)
            if self._version
            else None
        )
        event = PromptEvent(
            event_id=event_id,
            task=self._corpus.task,
            model=self._corpus.task,
            occurred_at=at + timedelta(seconds=draw.random() * 60),
            messages=(
                Message("system", self._corpus.instructions),
                Message("user", text),
            ),
            answer=label,
            served_by="teacher" if confidence < 0.7 else "app",
            student=student,
            user_key=f"{draw.randrange(20_000):032x}",
            attributes={"channel": "web"},
            source=SourceOffset("benchmark", 0, self._samples),
        )
        return Sample(
            event=event,
            text=text,
            reason=SampleReason.AUDIT if audited else SampleReason.UNCERTAIN,
            draws=Draws(audit=0.001) if audited else Draws(learning=0.02),
            group_id=event_id,
            side=side_of(event_id, b"benchmark"),
            assessment=Assessment(failure_probability=1 - confidence, segment=label),
            policy_version="benchmark",
        )

    def _label(self, sample: Sample) -> Label:
        bought = self._draw.random() < LABELS_BOUGHT / (LABELS_BOUGHT + LABELS_GIVEN)
        cost = 0.0007 if bought else 0.0
        self._spent += cost
        return Label(
            event_id=sample.event.event_id,
            label=sample.event.answer or "",
            source="bought" if bought else "given",
            teacher_model="large-1",
            prompt_version="1",
            terms="benchmark",
            prompt_tokens=220,
            completion_tokens=4,
            cost=cost,
        )

    def _write_ticks(self, tx: Cursor, at: datetime) -> None:
        for job, times in TICKS.items():
            for number in range(times):
                moment = at + timedelta(seconds=60 * number / times, milliseconds=1)
                record_tick(
                    tx,
                    job=job,
                    scheduled_at=moment,
                    outcome="done" if job == "watch" else "nothing",
                    detail=f"{self._corpus.task}: 0.0 of 2,000 new labels; nothing is due",
                    now=moment,
                )

    def _write_estimates(self, tx: Cursor, at: datetime) -> None:
        for number in range(ESTIMATES_PER_MINUTE):
            value = 0.9 + 0.05 * self._draw.random()
            estimate = Estimate(value=value, low=value - 0.02, high=value + 0.02, n=1_000)
            add_estimate(
                tx,
                self._corpus.task,
                StoredEstimate(
                    at=at + timedelta(seconds=20 * number, milliseconds=1),
                    coverage=estimate,
                    agreement=estimate,
                    spend=round(self._spent, 4),
                ),
            )


def _letter(number: int) -> DeadLetter:
    return DeadLetter(
        topic="benchmark",
        partition=0,
        offset=number,
        payload=b'{"schema": "flywheel.prompt/1", "model": 7}' + b" " * 900,
        headers=(),
        reason="Expected `str`, got `int` - at `$.model`",
    )


def _champion(data: Path, corpus: Corpus) -> str:
    """The version that answers, or none before there is one."""
    try:
        live = json.loads(json.loads((data / "live.json").read_text())["live"])
        return str(live["tasks"][corpus.task]["champion"]["name"])
    except OSError:
        return ""


# Asking


@contextmanager
def learner(data: Path) -> Iterator[str]:
    """The address of a real learner over this data. It buys nothing: nobody would answer."""
    operator_token(data)
    note = data / "run" / "learner.json"
    note.unlink(missing_ok=True)
    with (data.parent / "learner.log").open("wb") as log:
        process = subprocess.Popen(
            [*FLYWHEEL, "--config", str(data / "flywheel.toml"), "learner"],
            stdin=subprocess.PIPE,
            env={**with_life_line(), "FLYWHEEL_BUDGET__LABEL_CALLS": "0"},
            stdout=log,
            stderr=log,
        )
    assert process.stdin is not None
    try:
        yield _address(process, note)
    finally:
        process.terminate()
        process.wait(UP_SECONDS)
        process.stdin.close()


def measure(address: str, token: str, rounds: int) -> dict[str, Page]:
    """Every page that can be reached, each asked for so often, by turns."""
    with httpx2.Client(base_url=address, timeout=60) as client:
        given = {"token": token, "operator": "benchmark", "next": "/"}
        client.post("/login", data=given, headers={"origin": address}).raise_for_status()
        _wait_for_figures(client)
        paths = reachable(client)
        taken: dict[str, list[float]] = {path: [] for path in paths}
        for _ in range(rounds):
            for path in paths:
                started = time.perf_counter()
                client.get(path).raise_for_status()
                taken[path].append((time.perf_counter() - started) * 1000)
    return {
        path: Page(p50=round(statistics.median(found), 1), worst=round(max(found), 1))
        for path, found in taken.items()
    }


def reachable(client: httpx2.Client) -> list[str]:
    """The paths of all pages, by following the links from the first."""
    found, left = ["/"], ["/"]
    while left:
        path = left.pop(0)
        answer = client.get(path)
        answer.raise_for_status()
        if not answer.headers["content-type"].startswith("text/html"):
            continue
        for link in re.findall(r'<a[^>]+href="([^"]+)"', answer.text):
            target = urldefrag(urljoin(path, link.replace("&amp;", "&")))[0]
            if not target.startswith("/") or _kind(target) in map(_kind, found):
                continue
            found.append(target)
            left.append(target)
    return found


def _kind(path: str) -> str:
    """Pages that differ in a moment or a number only are one page."""
    parts = urlsplit(path)
    query = re.sub(r"before=[^&]*", "before", parts.query)
    return re.sub(r"/\d+", "/N", parts.path) + (f"?{query}" if query else "")


def _wait_for_figures(client: httpx2.Client) -> None:
    """Until the watch job has looked once: before, pages have less to show."""
    deadline = time.monotonic() + UP_SECONDS
    while time.monotonic() < deadline:
        status = client.get("/api/status").json()
        if all(task["figures"]["events_total"] for task in status["tasks"]):
            return
        time.sleep(0.2)
    raise TimeoutError("the watch job did not look")


def _address(process: "subprocess.Popen[bytes]", note: Path) -> str:
    deadline = time.monotonic() + UP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            address = f"http://127.0.0.1:{json.loads(note.read_text())['port']}"
            if httpx2.get(f"{address}/healthz").status_code == 200:
                return address
        except (OSError, ValueError, httpx2.HTTPError):
            pass
        time.sleep(0.05)
    raise TimeoutError("the learner is not up")


def _size(data: Path) -> int:
    """Of the database, with its log."""
    return sum(file.stat().st_size for file in data.glob("flywheel.duckdb*"))


def main() -> None:
    """Run the benchmark and write `benchmarks/results/day.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a few seconds; writes no results")
    chosen = parser.parse_args()
    plan = QUICK if chosen.quick else Plan()
    with tempfile.TemporaryDirectory(prefix="day-") as folder:
        figures, pages = run(plan, Path(folder))
    for path, page in pages.items():
        print(f"{path}: p50 {page.p50} ms, max {page.worst} ms")
    for name, value in figures.items():
        print(f"{name}: {value:g}")
    if not chosen.quick:
        by_path = {_kind(path): {"p50_ms": p.p50, "max_ms": p.worst} for path, p in pages.items()}
        write_results("day", figures, seed=plan.seed, pages=by_path)


if __name__ == "__main__":
    main()
