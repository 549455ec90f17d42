"""The pages. Each is a template over what the API answers; forms do what the API does."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse

from pipelines.card import training_facts
from pipelines.errors import FlywheelError
from pipelines.recipes import RECIPES
from service.console import charts
from service.console.api import letter_content
from service.console.auth import (
    COOKIE,
    SESSION_SECONDS,
    Sessions,
    SlowFailures,
    clean_name,
    safe_path,
)
from service.console.formats import FILTERS
from service.operator.activity import KINDS
from service.operator.operations import Operations
from service.operator.overview import teacher_status
from service.settings import Settings

DONE = {
    "approved": "Approved and published.",
    "rejected": "Rejected.",
    "rolled-back": "Rolled back. The gateways switch at once.",
    "paused": "Paused.",
    "resumed": "Running again.",
    "training": "Training was asked for.",
    "replayed": "The record is back on the topic.",
    "released": "The teacher will be asked again.",
    "dropped": "Dropped. The teacher will not be asked again.",
}

PAGE_LENGTH = 50
KIND_TITLES = (
    ("", "All"),
    ("decision", "Decisions"),
    ("training", "Trainings"),
    ("evaluation", "Evaluations"),
    ("swap", "Swaps"),
    ("trouble", "Trouble"),
)

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(default=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(FILTERS)
_environment.globals.update(
    coverage_chart=charts.coverage_chart,
    agreement_chart=charts.agreement_chart,
    spend_chart=charts.spend_chart,
    loss_chart=charts.loss_chart,
    training_facts=training_facts,
    recipes=RECIPES,
    place_interval=charts.interval,
)


def page_routes(
    operations: Operations, sessions: Sessions, failures: SlowFailures, settings: Settings
) -> APIRouter:
    """Everything that a browser opens."""
    router = APIRouter(include_in_schema=False)

    def page(request: Request, template: str, **content: Any) -> Response:
        status = operations.status()
        return _render(
            request, template, status=status, now=status.at, teacher=status.teacher, **content
        )

    def version_page(
        request: Request, task: str, number: int, problem: str = "", reason: str = ""
    ) -> Response:
        detail = operations.show(task, number)
        return page(request, "version.html", detail=detail, problem=problem, reason=reason)

    def versions_page(request: Request, task: str, problem: str = "") -> Response:
        found, reigns = operations.versions(task), operations.champions(task)
        bars = charts.reign_bars(reigns, operations.status().at)
        return page(
            request,
            "versions.html",
            task=task,
            versions=found,
            reigns=reigns,
            bars=bars,
            problem=problem,
        )

    @router.get("/")
    def overview(request: Request) -> Response:
        return page(request, "overview.html", problem="")

    @router.get("/tasks/{task}/versions")
    def versions(request: Request, task: str) -> Response:
        return versions_page(request, task)

    @router.get("/tasks/{task}/versions/{number}")
    def version(request: Request, task: str, number: int) -> Response:
        return version_page(request, task, number)

    @router.get("/activity")
    def activity(request: Request, before: str = "", kind: str = "") -> Response:
        chosen = next((one for one in KINDS if one == kind), None)
        until = _moment(before)
        found = operations.activity(PAGE_LENGTH + 1, until, chosen)
        entries = found[:PAGE_LENGTH]
        return page(
            request,
            "activity.html",
            entries=entries,
            older=entries[-1].at.isoformat() if len(found) > PAGE_LENGTH else "",
            before=until,
            kind=chosen or "",
            kinds=KIND_TITLES,
            problem="",
        )

    @router.get("/dead-letters")
    def dead_letters(request: Request) -> Response:
        letters = [letter_content(letter) for letter in operations.dead_letters()]
        return page(request, "dead_letters.html", letters=letters, problem="")

    @router.get("/unknown-outcomes")
    def unknown_outcomes(request: Request) -> Response:
        held = operations.unknown_outcomes()
        return page(request, "unknown_outcomes.html", held=held, problem="")

    @router.post("/tasks/{task}/versions/{number}/approve")
    async def approve(request: Request, task: str, number: int) -> Response:
        form, operator = await _form(request), request.state.operator

        def act() -> Response:
            try:
                operations.approve(task, number, report=form.get("report", ""), operator=operator)
            except FlywheelError as error:
                return _conflict(version_page(request, task, number, str(error)))
            return _see(f"/tasks/{task}/versions/{number}", "approved")

        return await run_in_threadpool(act)

    @router.post("/tasks/{task}/versions/{number}/reject")
    async def reject(request: Request, task: str, number: int) -> Response:
        form, operator = await _form(request), request.state.operator
        reason = form.get("reason", "")

        def act() -> Response:
            try:
                operations.reject(task, number, reason=reason, operator=operator)
            except FlywheelError as error:
                return _conflict(version_page(request, task, number, str(error), reason))
            return _see(f"/tasks/{task}/versions/{number}", "rejected")

        return await run_in_threadpool(act)

    @router.post("/tasks/{task}/versions/{number}/rollback")
    async def rollback(request: Request, task: str, number: int) -> Response:
        form, operator = await _form(request), request.state.operator
        reason = form.get("reason", "")

        def act() -> Response:
            try:
                operations.rollback(task, number, reason=reason, operator=operator)
            except FlywheelError as error:
                return _conflict(versions_page(request, task, str(error)))
            return _see(f"/tasks/{task}/versions", "rolled-back")

        return await run_in_threadpool(act)

    @router.post("/tasks/{task}/train")
    def train(request: Request, task: str) -> Response:
        operations.request_train(task, operator=request.state.operator)
        return _see("/", "training")

    @router.post("/jobs/{job}/{verb}")
    def job(request: Request, job: str, verb: str) -> Response:
        if verb == "pause":
            operations.pause(job, operator=request.state.operator)
            return _see("/", "paused")
        operations.resume(job, operator=request.state.operator)
        return _see("/", "resumed")

    @router.post("/dead-letters/{topic}/{partition}/{offset}/replay")
    def replay(request: Request, topic: str, partition: int, offset: int) -> Response:
        operations.replay(topic, partition, offset, operator=request.state.operator)
        return _see("/dead-letters", "replayed")

    @router.post("/unknown-outcomes/{key}/{verb}")
    def settle(request: Request, key: str, verb: str) -> Response:
        if verb == "release":
            operations.release(key, operator=request.state.operator)
            return _see("/unknown-outcomes", "released")
        operations.drop(key, operator=request.state.operator)
        return _see("/unknown-outcomes", "dropped")

    _add_login(router, sessions, failures, settings)
    return router


def _add_login(
    router: APIRouter, sessions: Sessions, failures: SlowFailures, settings: Settings
) -> None:
    teacher = teacher_status(settings)

    def form(request: Request, next_page: str, problem: str = "", status: int = 200) -> Response:
        return _render(
            request,
            "login.html",
            status_code=status,
            status=None,
            teacher=teacher,
            next=safe_path(next_page),
            problem=problem,
        )

    def enter(request: Request, operator: str, target: str) -> Response:
        # A page that goes on by itself, not a redirect: after a link from elsewhere a browser
        # would not send a strict cookie along with the redirected request.
        answer = _render(
            request, "entering.html", status=None, teacher=teacher, target=safe_path(target)
        )
        secure = request.url.scheme == "https" or settings.learner.public_url.startswith("https:")
        answer.set_cookie(
            COOKIE,
            sessions.make_cookie(operator),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=secure,
        )
        return answer

    @router.get("/login")
    async def login(request: Request, code: str = "", next: str = "/") -> Response:
        if not code:
            return form(request, next)
        operator = sessions.take_code(code)
        if operator is not None:
            return enter(request, operator, next)
        await failures.wait()
        problem = "This link was used already or is too old. Make a new one: flywheel open"
        return form(request, next, problem, 401)

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        given = await _form(request)
        if sessions.is_token(given.get("token", "").strip()):
            return enter(request, clean_name(given.get("operator", "")), given.get("next", "/"))
        if not await failures.wait():
            return form(request, given.get("next", "/"), "Too many attempts. Wait a moment.", 429)
        return form(request, given.get("next", "/"), "This is not the operator token.", 401)

    @router.post("/logout")
    def log_out() -> Response:
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(COOKIE)
        return answer


def error_page(request: Request, status: int, message: str) -> Response:
    """A page that says what went wrong."""
    return _render(
        request, "error.html", status_code=status, status=None, teacher=None, message=message
    )


def _render(
    request: Request, template: str, *, status_code: int = 200, **content: Any
) -> HTMLResponse:
    html = _environment.get_template(template).render(
        operator=getattr(request.state, "operator", None),
        path=request.url.path,
        done=DONE.get(request.query_params.get("done", ""), ""),
        **content,
    )
    return HTMLResponse(html, status_code=status_code)


async def _form(request: Request) -> dict[str, str]:
    """A posted form. The guard has limited its size."""
    body = (await request.body()).decode("utf-8", "replace")
    return {name: values[0] for name, values in parse_qs(body, max_num_fields=20).items()}


def _moment(text: str) -> datetime | None:
    """Where a page of the feed begins; None for the newest, and for what is no time."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _see(path: str, done: str) -> Response:
    return RedirectResponse(f"{path}?done={done}", status_code=303)


def _conflict(answer: Response) -> Response:
    answer.status_code = 409
    return answer
