"""A real gateway for tests: real students, a teacher with behaviour, the embedded topic."""

import asyncio
import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import httpx2
import numpy as np
import psutil
import uvicorn
from prometheus_client import CollectorRegistry
from sklearn.linear_model import LogisticRegression
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pipelines.decode import decode
from pipelines.records.common import DecodePolicy
from pipelines.students.encoder import Encoder, installed_encoder_files
from pipelines.students.head import Head, save_head
from pipelines.types import PromptEvent, Record, SourceOffset
from service.gateway.app import run_gateway
from service.keys import GATEWAY_PRODUCER, Keys, open_keys
from service.learner.gateway_api import gateway_routes
from service.learner.leases import LeaseBook
from service.sections import BudgetSettings
from service.settings import Settings
from service.topics.embedded import EmbeddedTopicReader, EmbeddedTopicWriter
from storage.artifacts import Artifacts
from storage.database import Database
from storage.live import Live, LiveStudent, LiveTask, read_live, write_live
from storage.migrate import migrate

TASK = "support"
LABELS = ("refund", "delivery", "invoice")
TEXTS: Mapping[str, Sequence[str]] = {
    "refund": (
        "I want my money back",
        "please refund my order",
        "how do I get a refund for this purchase",
        "return the amount to my card",
        "you charged me, give me the money back",
        "refund me the broken kettle",
        "can I have my payment returned",
        "I would like a full refund",
    ),
    "delivery": (
        "where is my parcel",
        "the package has not arrived yet",
        "when will my order be delivered",
        "track my shipment please",
        "the courier never came",
        "my delivery is late",
        "has my box been shipped",
        "delivery status of my order",
    ),
    "invoice": (
        "send me the invoice",
        "I need a receipt for my taxes",
        "the bill has the wrong address",
        "can you email the invoice as pdf",
        "our accountant wants the VAT number on the bill",
        "where can I download receipts",
        "please correct my invoice",
        "I never got a bill for March",
    ),
}
ALL_TEXTS = tuple(text for texts in TEXTS.values() for text in texts)
ALL_LABELS = tuple(label for label, texts in TEXTS.items() for _ in texts)
TOPIC_FILE = "topic.sqlite3"
ENGINE = "pipelines.students.engine"


class Students:
    """Trains heads on the installed encoder and publishes them as the learner would."""

    def __init__(self, folder: Path) -> None:
        scratch = folder / "encoder"
        scratch.mkdir(parents=True)
        for name, (path, _) in installed_encoder_files().items():
            shutil.copy(path, scratch / name)
        self._artifacts = folder / "artifacts"
        published = Artifacts(self._artifacts).publish("encoder", scratch, {"name": "test"})
        self.encoder_digest = published.digest
        self.encoder_path = published.path
        self.encoder = Encoder(published.path, threads=1)
        self.vectors = self.encoder.encode(ALL_TEXTS)

    def head(self, *, strength: float = 10.0, with_prototypes: bool = False) -> Head:
        """`with_prototypes`: every example is one."""
        fitted = LogisticRegression(C=strength, max_iter=500).fit(self.vectors, ALL_LABELS)
        numbers = [list(fitted.classes_).index(label) for label in ALL_LABELS]
        return Head(
            labels=tuple(fitted.classes_),
            weight=fitted.coef_.astype(np.float32),
            bias=fitted.intercept_.astype(np.float32),
            temperature=0.5,
            prototypes=self.vectors if with_prototypes else None,
            prototype_labels=np.array(numbers, dtype=np.int64) if with_prototypes else None,
        )

    def give_encoder(self, data_dir: Path) -> None:
        """The encoder in this data folder, as links: it has 23 MB."""
        target = data_dir / "artifacts" / "encoder" / self.encoder_digest
        if not target.exists():
            source = self._artifacts / "encoder" / self.encoder_digest
            shutil.copytree(source, target, copy_function=os.link)

    def publish(
        self,
        data_dir: Path,
        number: int,
        *,
        threshold: float | None = 0.0,
        strength: float = 10.0,
        golden: Sequence[Mapping[str, Any]] | None = None,
        about: Mapping[str, Any] | None = None,
        with_encoder: bool = True,
        near: float | None = None,
        radius: float | None = None,
    ) -> LiveStudent:
        """Student and report as artifacts in `data_dir`; with prototypes where it has a radius."""
        if with_encoder:
            self.give_encoder(data_dir)
        artifacts = Artifacts(data_dir / "artifacts")
        head = self.head(strength=strength, with_prototypes=radius is not None)
        scratch = data_dir / f"scratch-{number}"
        scratch.mkdir()
        save_head(scratch, head, {"encoder": self.encoder_digest, "task": TASK, **(about or {})})
        student = artifacts.publish("student", scratch, {"number": number})
        if golden is None:
            answers = head.answer(self.vectors)
            golden = [
                {"text": text, "label": answer.label, "confidence": answer.confidence}
                for text, answer in zip(ALL_TEXTS, answers, strict=True)
            ]
        scratch.mkdir(exist_ok=True)
        (scratch / "golden.json").write_text(json.dumps(golden))
        report = artifacts.publish("report", scratch, {"number": number})
        return LiveStudent(
            name=f"{TASK}-v{number}-{student.digest[:8]}",
            number=number,
            student=student.digest,
            base=self.encoder_digest,
            report=report.digest,
            decision=f"decision-{number}",
            threshold=threshold,
            near=near,
            radius=radius,
        )


@lru_cache(maxsize=1)
def shared_students() -> Students:
    """The same for all tests: loading an encoder takes its time."""
    folder = Path(mkdtemp(prefix="flywheel-students-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Students(folder)


@dataclass
class LearnerSide:
    """What a learner offers to gateways, on a real database, without the rest of it."""

    data_dir: Path
    keys: Keys
    budget: BudgetSettings
    statuses: list[Mapping[str, Any]] = field(default_factory=list)
    now: datetime = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    port: int = 0

    @contextmanager
    def running(self) -> Iterator["LearnerSide"]:
        """Listen; on leaving, be as dead as after `kill -9`."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        database = Database(self.data_dir / "learner.duckdb")
        migrate(database)
        self.book = LeaseBook(database, self.budget, now=lambda: self.now)
        routes = gateway_routes(
            keys=self.keys,
            artifacts=Artifacts(self.data_dir / "artifacts"),
            live_path=self.data_dir / "live.json",
            leases=self.book,
            on_status=self.statuses.append,
        )
        with serving(Starlette(routes=routes), port=self.port) as self.port:
            yield self
        database.close()


@dataclass
class Teacher:
    """An OpenAI-compatible upstream that remembers what it was sent."""

    answer: str = "refund"
    status: int = 200
    latency: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    cut_after: int | None = None  # pieces of a stream after which the connection breaks
    piece_seconds: float = 0.005  # between two pieces of a stream
    ending: bytes = b"data: [DONE]\n\n"
    lingers: float = 0.0  # seconds from a stream's last bytes to its end
    streaming: int = 0  # streams that are open now
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self._chat, methods=["POST"])])

    async def _chat(self, request: Request) -> Response:
        body = await request.body()
        self.requests.append((dict(request.headers), body))
        await asyncio.sleep(self.latency)
        if self.status != 200:
            problem = {"error": {"message": "no", "type": "t", "code": "c"}}
            return JSONResponse(problem, self.status, headers=self.headers)
        try:
            chat = json.loads(body)
        except ValueError:
            problem = {"error": {"message": "no JSON", "type": "t", "code": "c"}}
            return JSONResponse(problem, 400)
        if chat.get("stream"):
            pieces = self._pieces(chat["model"])
            return StreamingResponse(pieces, media_type="text/event-stream")
        return JSONResponse(
            {
                "id": "chatcmpl-teacher-1",
                "object": "chat.completion",
                "created": 1,
                "model": chat["model"],
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": self.answer},
                        "finish_reason": self.finish_reason,
                    }
                ],
                "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
            },
            headers=self.headers,
        )

    async def _pieces(self, model: str) -> AsyncIterator[bytes]:
        self.streaming += 1
        pieces = [self._piece(model, letter) for letter in [*self.answer, None]]
        try:
            for index, piece in enumerate([*pieces, self.ending]):
                if index == self.cut_after:
                    raise RuntimeError("the teacher breaks off")
                yield piece
                await asyncio.sleep(self.piece_seconds)
            if self.cut_after is not None:
                raise RuntimeError("the teacher breaks off after all")
            await asyncio.sleep(self.lingers)
        finally:
            self.streaming -= 1

    def _piece(self, model: str, letter: str | None) -> bytes:
        delta = {"content": letter} if letter is not None else {}
        finish = None if letter is not None else self.finish_reason
        chunk = {
            "id": "chatcmpl-teacher-2",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        return f"data: {json.dumps(chunk)}\n\n".encode()


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[int]:
    """Any ASGI app, on a free port unless one is named."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


class RunningGateway:
    """A gateway in a thread of this process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = open_keys(settings.data_dir, settings.gateway.learner_token.get_secret_value())
        self.registry = CollectorRegistry()
        self._stop = threading.Event()
        self._result: list[Any] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        note = settings.data_dir / "run" / "gateway.json"
        note.unlink(missing_ok=True)
        self._thread.start()
        wait_until(lambda: note.exists() or bool(self._result))
        assert not self._result, self._result
        self.port = int(json.loads(note.read_text())["port"])
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx2.Client(base_url=self.url, timeout=30)
        wait_until(lambda: self.readyz()[0] == 200)

    def _run(self) -> None:
        path = self.settings.data_dir / TOPIC_FILE
        try:
            code = run_gateway(
                self.settings,
                open_writer=lambda: EmbeddedTopicWriter(path),
                registry=self.registry,
                stop=self._stop,
            )
            self._result.append(code)
        except BaseException as error:
            self._result.append(error)

    def stop(self) -> Any:
        self.http.close()
        self._stop.set()
        self._thread.join(30)
        return self._result[0]

    def chat(self, text: str = "where is my parcel", **more: Any) -> httpx2.Response:
        headers = more.pop("headers", None)
        body = {
            "model": "desk",
            "messages": [{"role": "user", "content": text}],
            **more,
        }
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def readyz(self) -> tuple[int, dict[str, Any]]:
        try:
            response = self.http.get("/readyz")
        except httpx2.HTTPError:
            return 0, {}
        return response.status_code, response.json()

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"flywheel_gateway_{name}", labels) or 0.0

    def publish(self, champion: LiveStudent | None, previous: LiveStudent | None = None) -> None:
        publish_live(self.settings.data_dir, self.keys, champion, previous)

    def serve(self, champion: LiveStudent, previous: LiveStudent | None = None) -> None:
        """Publish, and wait until it is served."""
        self.publish(champion, previous)
        wait_until(lambda: self.readyz()[1].get("serving") == {TASK: champion.name})

    def events(self) -> list[PromptEvent]:
        return captured(self.settings.data_dir, self.keys)


@dataclass
class Load:
    """Clients that never stop asking, and what came of it."""

    gateway: RunningGateway
    clients: int = 4
    text: str = ALL_TEXTS[3]

    def __post_init__(self) -> None:
        self.failures: list[str] = []
        self.versions: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(self.clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        with httpx2.Client(base_url=self.gateway.url, timeout=30) as http:
            while not self._stop.is_set():
                body = {"model": "desk", "messages": [{"role": "user", "content": self.text}]}
                try:
                    response = http.post("/v1/chat/completions", json=body)
                except httpx2.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                version = response.headers.get("x-flywheel-version")
                if response.status_code != 200 or response.json()["model"] != version:
                    self.failures.append(response.text)
                self.versions.append(str(version))


def publish_live(
    data_dir: Path, keys: Keys, champion: LiveStudent | None, previous: LiveStudent | None = None
) -> None:
    path = data_dir / "live.json"
    serial = read_live(path, keys.live).serial + 1
    task = LiveTask(champion=champion, previous=previous)
    write_live(path, Live(serial=serial, tasks={TASK: task}), keys.live)


def captured(data_dir: Path, keys: Keys) -> list[PromptEvent]:
    """What is on the topic, decoded and with its signature checked."""
    policy = DecodePolicy(
        claims={"desk": TASK},
        tasks=frozenset({TASK}),
        producer_keys={GATEWAY_PRODUCER: keys.capture},
        own_producers=frozenset({GATEWAY_PRODUCER}),
        user_salt=b"salt",
    )
    events = []
    for record in topic_records(data_dir):
        source = SourceOffset("t", record.partition, record.offset)
        event = decode(record.value, record.headers, source, record.timestamp_ms, policy)
        assert any(name == "flywheel-signature" for name, _ in record.headers)
        events.append(event)
    return events


def topic_records(data_dir: Path) -> list[Record]:
    reader = EmbeddedTopicReader(data_dir / TOPIC_FILE)
    reader.seek({})
    found: list[Record] = []
    while batch := reader.poll(max_records=5_000, timeout_seconds=0.0).records:
        found.extend(batch)
    reader.close()
    return found


def settings_for(data_dir: Path, teacher: Teacher | None = None, **more: Any) -> Settings:
    task: dict[str, Any] = {"models": ["desk"], "labels": list(LABELS), **more.pop("task", {})}
    upstream: dict[str, Any] = {}
    if teacher is not None:
        upstream = {"base_url": teacher.url, "model": "big-teacher", "api_key": "our-own-key"}
    upstream |= more.pop("upstream", {})
    gateway = {"port": 0, "drain_timeout": "5s", "threads": 1, **more.pop("gateway", {})}
    # No learner listens here unless the test starts one and says so.
    learner = {"port": 9, **more.pop("learner", {})}
    described = {
        "data_dir": data_dir,
        "teacher": upstream,
        "gateway": gateway,
        "learner": learner,
        "tasks": {TASK: task},
        **more,
    }
    return Settings(**described)


def engine_processes(gateway: int | None = None) -> list[psutil.Process]:
    """The engines of a gateway: of this process, unless another is named."""
    found = []
    for child in psutil.Process(gateway).children():
        with suppress(psutil.Error):
            if ENGINE in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


PROCESS = """
import json, sys
from pathlib import Path
from service.gateway.app import run_gateway
from service.settings import Settings
from service.topics.embedded import EmbeddedTopicWriter

settings = Settings(**json.loads(sys.argv[1]))
path = settings.data_dir / sys.argv[2]
code = run_gateway(settings, open_writer=lambda: EmbeddedTopicWriter(path))
heavy = {"torch", "transformers", "peft", "sklearn", "scipy", "duckdb"} & set(sys.modules)
print("heavy:", sorted(heavy))
sys.exit(code)
"""


def gateway_process(settings: Settings) -> tuple[subprocess.Popen[str], str]:
    """A gateway in a process of its own, and its address."""
    note = settings.data_dir / "run" / "gateway.json"
    note.unlink(missing_ok=True)
    described = json.dumps(
        {
            "data_dir": str(settings.data_dir),
            "teacher": {
                **settings.teacher.model_dump(mode="json"),
                "api_key": settings.teacher.api_key.get_secret_value(),
            },
            "gateway": settings.gateway.model_dump(mode="json"),
            "learner": settings.learner.model_dump(mode="json"),
            "tasks": {name: task.model_dump(mode="json") for name, task in settings.tasks.items()},
        }
    )
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, described, TOPIC_FILE],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: note.exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[1]
    port = json.loads(note.read_text())["port"]
    return process, f"http://127.0.0.1:{port}"
