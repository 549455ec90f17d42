"""The whole loop over a real Kafka broker on real queries: accuracy against labels bought.

    make bench-loop        (needs Java, Maven and the Banking77 folder)

The training queries arrive as production prompts, shuffled by seed; the teacher, an HTTP server,
answers with the gold label; students retrain as labels come, and what the gate lets through is
approved and swapped in. After each swap the gateway answers the test queries.
"""

import argparse
import csv
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx2

from benchmarks.results import ROOT, write_results
from benchmarks.running import Running, running_service, scripted_teacher
from pipelines.records.native import SCHEMA, NativeRecord, encode_native
from pipelines.types import Message
from service.settings import load_settings
from service.topics.opening import open_writer

BANKING77 = Path(os.environ.get("BANKING77", ROOT.parent / "shared" / "data" / "banking77"))
TASK = "banking"
CHUNK = 100
WAIT_SECONDS = 1_800.0  # a limit for what hangs: a busy machine may take several times as long
ASSESS_BATCH = 128


class Query(NamedTuple):
    """A customer's text with the label that people gave it."""

    text: str
    gold: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopPlan:
    """One run of the loop: the stream, its test set, and when a first student is due."""

    stream: tuple[Query, ...]
    test: tuple[Query, ...]
    first_training_labels: int
    min_groups: int
    target: float = 0.9
    random_labels: bool = False  # label whatever comes, instead of what the draws choose
    seed: int = 0
    recipe: str = "head"
    more_settings: str = ""
    assess_batch: int = ASSESS_BATCH  # a slow student does not answer more in time

    @property
    def labels(self) -> list[str]:
        return sorted({query.gold for query in self.stream})


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One approved version: what it cost, and how often it is right on the test queries."""

    version: str
    labels_bought: int
    labels_trained: int
    accuracy: float
    agreement: float
    coverage: float
    verdict: str
    seed: int


def read_queries(path: Path) -> list[Query]:
    with path.open(newline="", encoding="utf-8") as file:
        return [Query(row["text"], row["gold"]) for row in csv.DictReader(file)]


def full_plan(seed: int, *, random_labels: bool) -> LoopPlan:
    """All training queries. 616 training labels are 770 bought: a fifth is held out."""
    stream = read_queries(BANKING77 / "train.csv")
    random.Random(seed).shuffle(stream)
    return LoopPlan(
        stream=tuple(stream),
        test=tuple(read_queries(BANKING77 / "test.csv")),
        first_training_labels=616,
        min_groups=150,
        random_labels=random_labels,
        seed=seed,
    )


class Loop:
    """A running service over one topic, and the operator that approves what the gate lets by."""

    def __init__(self, plan: LoopPlan, running: Running) -> None:
        self._plan = plan
        self._client = running.client
        self.running = running
        self.gateway = running.gateway
        self._http = httpx2.Client(timeout=60)
        self._writer = open_writer(load_settings(running.config))
        self.points: list[Point] = []

    def run(self) -> list[Point]:
        """Send the stream, a chunk at a time, and let the loop catch up before the next."""
        for start in range(0, len(self._plan.stream), CHUNK):
            self._send(range(start, min(start + CHUNK, len(self._plan.stream))))
            self._settle(start + CHUNK)
        self._train()
        self._settle(len(self._plan.stream))
        return self.points

    def events_counted(self) -> int:
        """What the learner says it has seen."""
        return int(self._client.get("status")["tasks"][0]["figures"]["events_total"])

    def close(self) -> None:
        self._writer.close()
        self._http.close()

    def _send(self, indices: Sequence[int]) -> None:
        now = datetime.now(UTC)
        for index in indices:
            record = NativeRecord(
                schema=SCHEMA,
                event_id=f"banking-{self._plan.seed}-{index}",
                model=TASK,
                occurred_at=now,
                messages=(Message("user", self._plan.stream[index].text),),
            )
            self._writer.send(encode_native(record), key=str(index).encode())
        self._writer.flush(30)

    def _train(self) -> None:
        """Ask for a training; returns once the job that begins it has."""
        asked = datetime.fromisoformat(self._client.get("status")["at"])
        self._client.post("tasks", TASK, "train")
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            (job,) = (j for j in self._client.get("status")["jobs"] if j["job"] == "train")
            if job["last"] and datetime.fromisoformat(job["last"]["started_at"]) > asked:
                return
            time.sleep(0.1)
        raise TimeoutError("no training was begun")

    def _settle(self, sent: int) -> None:
        """Until all was read and labelled, nothing trains, and what waits was approved."""
        deadline = time.monotonic() + WAIT_SECONDS
        quiet = 0
        while quiet < 3:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the loop did not settle after {sent} prompts")
            time.sleep(0.4)
            status = self._client.get("status")
            task = status["tasks"][0]
            if task["waiting"]:
                self._approve(task["waiting"])
            idle = (
                task["figures"]["events_total"] >= min(sent, len(self._plan.stream))
                and task["figures"]["pending_samples"] == 0
                and not status["progress"]
                and not any(
                    job["last"] and job["last"]["outcome"] == "running"
                    for job in status["jobs"]
                    if job["job"] == "train"
                )
            )
            quiet = quiet + 1 if idle else 0

    def _approve(self, version: dict[str, Any]) -> None:
        where = ("tasks", TASK, "versions", str(version["number"]))
        body = {"report": version["report"], "serves_nothing": version["threshold"] is None}
        self._client.post(*where, "approve", body=body)
        self._wait_until_served(version["name"])
        report = self._client.get(*where)["report"]
        point = Point(
            version=version["name"],
            labels_bought=version["labels_bought"],
            labels_trained=version["labels_trained"],
            accuracy=self._accuracy(version["name"]),
            agreement=report["evaluation"]["agreement"]["candidate"]["value"],
            coverage=report["evaluation"]["threshold"]["coverage"],
            verdict=report["gate"]["verdict"],
            seed=self._plan.seed,
        )
        self.points.append(point)
        print(
            f"{point.version}: {point.labels_bought} labels bought, {point.labels_trained} "
            f"trained, accuracy {point.accuracy:.4f}, {point.verdict}",
            flush=True,
        )

    def _wait_until_served(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._assess(self._plan.test[:1])[0] == name:
                return
            time.sleep(0.1)
        raise TimeoutError(f"the gateway does not serve {name}")

    def _accuracy(self, name: str) -> float:
        right = 0
        for start in range(0, len(self._plan.test), self._plan.assess_batch):
            batch = self._plan.test[start : start + self._plan.assess_batch]
            version, answers = self._assess(batch)
            assert version == name, f"{version} answered instead of {name}"
            right += sum(answer == query.gold for answer, query in zip(answers, batch, strict=True))
        return right / len(self._plan.test)

    def _assess(self, queries: Sequence[Query]) -> tuple[str, list[str]]:
        """What the gateway's student says: the path that production events take."""
        body = {
            "task": TASK,
            "events": [
                {"event_id": str(at), "messages": [{"role": "user", "content": query.text}]}
                for at, query in enumerate(queries)
            ],
        }
        response = self._http.post(f"{self.gateway}/v1/assess", json=body)
        if response.status_code != 200:
            return "", []
        found = response.json()
        return found["version"], [answer["label"] for answer in found["answers"]]


@contextmanager
def running_loop(plan: LoopPlan, folder: Path, bootstrap_servers: str) -> Iterator[Loop]:
    """Teacher, gateway and learner as processes over the given broker; ended afterwards."""
    answers = folder / "answers.csv"
    with answers.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Query._fields)
        writer.writerows(plan.stream)
    with scripted_teacher(f"--answers={answers}", "--label-column=gold") as teacher:
        settings = _settings(plan, bootstrap_servers, teacher)
        with running_service(folder, settings) as running:
            loop = Loop(plan, running)
            try:
                yield loop
            finally:
                loop.close()


def _settings(plan: LoopPlan, bootstrap_servers: str, teacher: str) -> str:
    labels = ", ".join(json.dumps(label) for label in plan.labels)
    cold = 10**9 if plan.random_labels else plan.first_training_labels
    return f"""\

[kafka]
bootstrap_servers = "{bootstrap_servers}"
topic = "banking-{uuid4().hex[:8]}"

[gateway]
port = 0

[learner]
port = 0

[teacher]
base_url = "{teacher}"
model = "scripted-gold"
terms = "scripted: the data set's own labels"
terms_allow_training = true

[budget]
label_calls = 100000
label_tokens = 1000000000

[sampling]
audit_rate = 0.0
held_out_rate = 1.0
cold_start_labels = {cold}

[trigger]
min_labels = {plan.first_training_labels}
growth = 2.0
min_interval = "0s"

[gate]
min_groups = {plan.min_groups}

[schedule]
relabel = "every 500ms"
watch = "every 1s"
evaluate = "every 5s"

[tasks.{TASK}]
models = ["{TASK}"]
target = {plan.target}
labels = [{labels}]
recipe = "{plan.recipe}"
{plan.more_settings}"""


def main() -> None:
    """Run the benchmark and write `benchmarks/results/loop.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--random-labels", action="store_true", help="label all that comes, not what draws choose"
    )
    chosen = parser.parse_args()
    if not BANKING77.is_dir():
        sys.exit("The Banking77 folder is not there; name it with BANKING77=FOLDER.")
    sys.path.insert(0, str(ROOT / "deploy" / "kafka"))
    from broker import Broker  # type: ignore[import-not-found]  # a script, not a package

    plan = full_plan(chosen.seed, random_labels=chosen.random_labels)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="loop-") as folder:
        broker = Broker(Path(folder) / "kafka")
        broker.start()
        try:
            with running_loop(plan, Path(folder), broker.bootstrap_servers) as loop:
                points = loop.run()
        finally:
            broker.stop()
    figures = {f"accuracy_at_{point.labels_bought}": point.accuracy for point in points}
    path = write_results(
        "loop-random" if plan.random_labels else "loop",
        {**figures, "minutes": round((time.monotonic() - started) / 60, 1)},
        seed=plan.seed,
        prompts=len(plan.stream),
        test_queries=len(plan.test),
        target=plan.target,
        points=[asdict(point) for point in points],
    )
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
