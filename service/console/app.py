"""The operator port: the JSON API, the pages over it, health and metrics."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from pipelines.errors import DataDamaged, ExitCode, FlywheelError, Refused
from service.console.api import OperatorApi
from service.console.auth import Sessions, SlowFailures, allowed_hosts
from service.console.guard import Guard, error_response
from service.console.pages import Pages, error_page
from service.operator.operations import Operations
from service.settings import Settings

log = structlog.get_logger()

STATIC = Path(__file__).parent / "static"
FAILURE_SECONDS = 0.5


def console_app(
    operations: Operations,
    token: str,
    settings: Settings,
    extra_routes: Sequence[BaseRoute] = (),
    *,
    registry: CollectorRegistry | None = None,
    ready: Callable[[], None] = lambda: None,
    failure_seconds: float = FAILURE_SECONDS,
) -> FastAPI:
    """Build the application.

    `ready` does a real read and write and raises when it cannot. `extra_routes` under
    /gateway/ check their own key. Set `app.state.stopping` before shutting the server down:
    it ends the pages' event streams.
    """
    app = FastAPI(
        title="flywheel operator API",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.state.stopping = Event()
    sessions = Sessions(token)
    failures = SlowFailures(failure_seconds)
    app.add_middleware(Guard, sessions=sessions, hosts=allowed_hosts(settings), failures=failures)
    _add_health(app, registry or CollectorRegistry(), ready)
    app.include_router(OperatorApi(operations, sessions, settings).routes())
    app.include_router(Pages(operations, sessions, failures, settings).routes())
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.router.routes.extend(extra_routes)
    _add_error_answers(app)
    return app


def _add_health(app: FastAPI, registry: CollectorRegistry, ready: Callable[[], None]) -> None:
    """Without token: what probes and scrapers read has no prompt text in it."""

    @app.get("/healthz")
    def healthz() -> Response:
        """The process is alive."""
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz")
    def readyz() -> Response:
        """It can read and write its database; otherwise 503."""
        try:
            ready()
        except Exception as error:  # a probe wants an answer, whatever it is that fails
            log.warning("not_ready", error=str(error))
            return Response("not ready\n", status_code=503, media_type="text/plain")
        return Response("ready\n", media_type="text/plain")

    @app.get("/metrics")
    def metrics() -> Response:
        """For Prometheus, without a token; there is no prompt text in it."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _add_error_answers(app: FastAPI) -> None:
    """Errors as JSON under /api, as a page elsewhere."""

    def answer(request: Request, status: int, message: str, code: ExitCode) -> Response:
        if request.url.path.startswith(("/api/", "/gateway/")):
            return error_response(status, message, code)
        return error_page(request, status, message)

    @app.exception_handler(FlywheelError)
    def on_flywheel_error(request: Request, error: FlywheelError) -> Response:
        status = 409 if isinstance(error, Refused) else 503
        if isinstance(error, DataDamaged):
            status = 500
        return answer(request, status, str(error), error.exit_code)

    @app.exception_handler(RequestValidationError)
    def on_invalid(request: Request, error: RequestValidationError) -> Response:
        where = "; ".join(
            f"{'.'.join(str(part) for part in found['loc'])}: {found['msg']}"
            for found in error.errors()
        )
        return answer(request, 422, where, ExitCode.USAGE)

    @app.exception_handler(HTTPException)
    def on_http_error(request: Request, error: HTTPException) -> Response:
        message = "there is no such page" if error.status_code == 404 else str(error.detail)
        return answer(request, error.status_code, message, ExitCode.USAGE)

    @app.exception_handler(Exception)
    def on_unforeseen(request: Request, error: Exception) -> Response:
        log.error("console_failed", path=request.url.path, error=repr(error), exc_info=error)
        return answer(request, 500, "an unforeseen error; the log has it", ExitCode.FAILURE)
