"""The gateway: what it is made of, its endpoints, its start and its end."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    ProcessCollector,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pipelines.errors import ExitCode, FlywheelError
from pipelines.types import Task
from service.gateway.access import Door, Endpoint
from service.gateway.allowance import Allowance
from service.gateway.assess import Assess
from service.gateway.capture import Capture
from service.gateway.chat import Chat
from service.gateway.endings import Endings
from service.gateway.escalation import Escalations
from service.gateway.feedback import Feedback
from service.gateway.front import Front
from service.gateway.generations import Generations
from service.gateway.learner_client import LearnerClient
from service.gateway.lease import Lease
from service.gateway.passing import Passing
from service.gateway.recent import Recent
from service.gateway.server import Server, run
from service.gateway.sync import LiveFile, LiveOverHttp, Watcher
from service.gateway.turn import KNOWN, Rejected, json_response, meant, rejection
from service.gateway.upstream import Upstream
from service.gateway.wire import encode
from service.host.memory import hoard_less
from service.host.process import bind
from service.keys import Keys, open_keys
from service.metrics.gateway import GatewayMetrics
from service.planes import GatewayReport, LeaseReply, LeaseRequest, learner_address
from service.settings import Settings
from service.topics import TopicWriter
from storage.artifacts import Artifacts
from storage.durable import write_json

log = structlog.get_logger()

LOOK_SECONDS = 0.5
REPORT_SECONDS = 5.0
CAPTURE_STOP_SECONDS = 5.0


class Gateway:
    """All parts of one gateway, wired."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        open_writer: Callable[[], TopicWriter],
        registry: CollectorRegistry,
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self._settings = settings
        self._registry = registry
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []
        metrics = GatewayMetrics(registry)
        tasks = {name: settings.task_of(name) for name in settings.tasks}
        artifacts = Artifacts(settings.folder.artifacts)
        threads = settings.gateway.threads or os.cpu_count() or 1
        self._generations = Generations(tasks, artifacts, metrics, threads=threads)
        self._learner = LearnerClient(lambda: learner_address(settings), keys.internal)
        source = self._live_source(artifacts)
        self._watcher = Watcher(source, self._generations, metrics, key=keys.live)
        self._capture = Capture(
            open_writer,
            metrics,
            key=keys.capture,
            buffer=settings.gateway.capture_buffer,
            max_record_bytes=settings.ingest.max_record_bytes,
        )
        self._upstream = Upstream(settings.teacher, metrics, settings.gateway.timeout)
        self._lease = Lease(self._ask_lease, metrics, gateway=self.name)
        self.app = self._build_app(tasks, keys, metrics)

    async def start(self) -> None:
        self._watcher.start()
        self._capture.start()
        self._tasks = [
            asyncio.create_task(self._lease.run(), name="lease"),
            asyncio.create_task(self._report(), name="report"),
        ]

    def drain(self) -> None:
        """Not ready from here on; what was begun is finished."""
        self._draining = True

    async def stop(self) -> None:
        """After the last request: give the lease back, send what was captured."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._lease.release()
        await asyncio.to_thread(self._capture.stop, CAPTURE_STOP_SECONDS)
        await asyncio.to_thread(self._generations.close)  # so that no swap waits for an engine
        await asyncio.to_thread(self._watcher.stop)
        await self._upstream.close()
        self._learner.close()

    def _live_source(self, artifacts: Artifacts) -> LiveFile | LiveOverHttp:
        settings = self._settings
        if not settings.gateway.learner_url:
            return LiveFile(settings.folder.live)
        interval = settings.gateway.poll_interval.total_seconds()
        return LiveOverHttp(self._learner, artifacts, settings.folder, interval=interval)

    async def _ask_lease(self, request: LeaseRequest) -> LeaseReply:
        return await asyncio.to_thread(self._learner.ask_lease, request)

    async def _report(self) -> None:
        """Tell the learner what is served, on every change and now and then. It may be away."""
        told: GatewayReport | None = None
        told_at = float("-inf")
        while True:
            report = GatewayReport(gateway=self.name, **self._watcher.status())
            if report != told or time.monotonic() - told_at > REPORT_SECONDS:
                told, told_at = report, time.monotonic()
                with suppress(FlywheelError):
                    await asyncio.to_thread(self._learner.report, report)
            await asyncio.sleep(LOOK_SECONDS)

    def _build_app(self, tasks: Mapping[str, Task], keys: Keys, metrics: GatewayMetrics) -> ASGIApp:
        settings = self._settings
        claims, listed = settings.claims(), settings.gateway.pass_through
        recent, gateway = Recent(), settings.gateway
        allowance = Allowance(gateway.pass_models, gateway.pass_requests_per_minute)
        chat = self._chat(tasks, recent, allowance, metrics)
        feedback = Feedback(
            tasks=tasks,
            claims=claims,
            recent=recent,
            capture=self._capture,
            metrics=metrics,
            max_body_bytes=settings.gateway.max_body_bytes,
        )
        assess = Assess(tasks=tasks, generations=self._generations)
        door = Door(settings.gateway, metrics)
        own: dict[str, Endpoint] = {
            "chat/completions": chat,
            "responses": chat.responses,
            "feedback": feedback,
        }
        passing = Passing(
            own={path: door.guard(endpoint) for path, endpoint in own.items()},
            endpoints=listed,
            claims=claims,
            upstream=self._upstream,
            metrics=metrics,
            capture=self._capture,
            allowance=allowance,
            max_body_bytes=settings.gateway.max_body_bytes,
        )
        routes = [
            Route("/v1/chat/completions", door.guard(chat), methods=["POST"]),
            Route("/v1/responses", door.guard(chat.responses), methods=["POST"]),
            Route("/v1/feedback", door.guard(feedback), methods=["POST"]),
            # The learner assesses too; its key is the internal one.
            Route("/v1/assess", door.guard(assess, also=[keys.internal]), methods=["POST"]),
            Route("/v1/models", door.guard(self._models), methods=["GET"]),
            Route("/v1/{path:path}", door.guard(passing, forms=True), methods=["GET", "POST"]),
            Route("/healthz", _health, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]
        handlers: Mapping[Any, Any] = {HTTPException: _http_error, Exception: _crash}
        app = Starlette(routes=routes, exception_handlers=handlers)
        return Front(app, settings.gateway.cors_origins)

    def _chat(
        self,
        tasks: Mapping[str, Task],
        recent: Recent,
        allowance: Allowance,
        metrics: GatewayMetrics,
    ) -> Chat:
        settings, listed = self._settings, self._settings.gateway.pass_through
        escalations = Escalations(self._upstream, self._lease, settings.teacher, metrics)
        return Chat(
            tasks=tasks,
            claims=settings.claims(),
            refusing=frozenset(
                name for name, task in settings.tasks.items() if task.when_unsure == "refuse"
            ),
            stateless=frozenset(name for name, task in settings.tasks.items() if task.stateless),
            passes=frozenset(f"/{one.removesuffix('/*')}" for one in ("chat/completions", *listed)),
            generations=self._generations,
            upstream=self._upstream,
            escalations=escalations,
            endings=Endings(
                metrics=metrics,
                capture=self._capture,
                recent=recent,
                teacher_model=self._upstream.model,
            ),
            metrics=metrics,
            allowance=allowance,
            max_body_bytes=settings.gateway.max_body_bytes,
        )

    async def _models(self, request: Request) -> Response:
        """The names under which apps reach tasks, and the version behind each."""
        models = []
        for model, task in self._settings.claims().items():
            champion = self._generations.champion(task)
            version = champion.version if champion else "teacher"
            models.append(
                {
                    "id": model,
                    "object": "model",
                    "created": 0,
                    "owned_by": "flywheel",
                    "task": task,
                    "version": version,
                }
            )
        return json_response(encode({"object": "list", "data": models}))

    async def _ready(self, request: Request) -> Response:
        """It knows what is published and can answer; otherwise 503 and the reasons."""
        problems = []
        if self._draining:
            problems.append("draining")
        if not self._watcher.ready:
            problems.append("what is published was not read yet")
        if not self._watcher.is_alive() or not self._capture.is_alive():
            problems.append("a thread has died; see the log")
        body = {
            "ready": not problems,
            "problems": problems,
            "gateway": self.name,
            **self._watcher.status(),
        }
        return json_response(encode(body), status=503 if problems else 200)

    async def _metrics(self, request: Request) -> Response:
        """For Prometheus, without a key; there is no prompt text in it."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


def run_gateway(
    settings: Settings,
    *,
    open_writer: Callable[[], TopicWriter],
    keys: Keys | None = None,
    registry: CollectorRegistry | None = None,
    stop: threading.Event | None = None,
) -> ExitCode:
    """Serve until a signal (or `stop`), then drain. Raises `PortInUse` before anything starts.

    `open_writer` is called in the capture thread, again and again while the topic is down.
    """
    hoard_less()
    listener = bind(settings.gateway.host, settings.gateway.port, "gateway")
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    keys = keys or open_keys(settings.data_dir, settings.gateway.learner_token.get_secret_value())
    gateway = Gateway(settings, keys, open_writer, registry or _registry())
    run(_serve(gateway, settings, listener, stop or threading.Event()))
    return ExitCode.OK


async def _serve(
    gateway: Gateway, settings: Settings, listener: socket.socket, stop: threading.Event
) -> None:
    drain_seconds = settings.gateway.drain_timeout.total_seconds()
    server = Server(gateway.app, drain_seconds, gateway.drain)
    port = listener.getsockname()[1]
    await gateway.start()
    watch = asyncio.create_task(server.stop_with(stop))
    note = settings.folder.note("gateway")
    try:
        with server.capture_signals():  # before anybody can know that it is there
            note.parent.mkdir(exist_ok=True)
            write_json(note, {"host": settings.gateway.host, "port": port, "pid": os.getpid()})
            log.info("gateway_started", host=settings.gateway.host, port=port, gateway=gateway.name)
            await server.serve(sockets=[listener])
    finally:
        note.unlink(missing_ok=True)
        watch.cancel()
        await gateway.stop()
        log.info("gateway_stopped", gateway=gateway.name)


async def _health(request: Request) -> Response:
    """The process is alive."""
    return json_response(b'{"status":"alive"}')


async def _http_error(request: Request, error: HTTPException) -> Response:
    told = str(error.detail)
    if error.status_code == 404:
        told += f": there is {KNOWN}{meant(request.url.path)}"
    elif request.method == "OPTIONS":
        told += ": web pages may ask where gateway.cors_origins names their origin"
    return rejection(Rejected(error.status_code, told, code="not_found"))


async def _crash(request: Request, error: Exception) -> Response:
    log.error("request_crashed", path=request.url.path, error=type(error).__name__)
    return rejection(Rejected(500, "the gateway failed; its log says more", code="internal_error"))


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry
