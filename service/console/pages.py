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
from pipelines.pool import pairs_in_words
from pipelines.recipes import RECIPES
from service.console import charts
from service.console.api import fingerprint, letter_content
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
    "settled": "Your word counts from the next training on.",
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
    pairs_in_words=pairs_in_words,
    recipes=RECIPES,
    place_interval=charts.interval,
)


class Pages:
    """Everything that a browser opens."""

    def __init__(
        self,
        operations: Operations,
        sessions: Sessions,
        failures: SlowFailures,
        settings: Settings,
    ) -> None:
        self._operations = operations
        self._sessions = sessions
        self._failures = failures
        self._settings = settings

    def routes(self) -> APIRouter:
        """The pages, and what their forms do."""
        router = APIRouter(include_in_schema=False)
        for method, path, endpoint in (
            ("GET", "/", self.overview),
            ("GET", "/tasks/{task}/versions", self.versions),
            ("GET", "/tasks/{task}/versions/{number}", self.version),
            ("GET", "/tasks/{task}/parked", self.parked),
            ("POST", "/tasks/{task}/parked", self.settle_label),
            ("GET", "/activity", self.activity),
            ("GET", "/dead-letters", self.dead_letters),
            ("GET", "/unknown-outcomes", self.unknown_outcomes),
            ("POST", "/tasks/{task}/versions/{number}/approve", self.approve),
            ("POST", "/tasks/{task}/versions/{number}/reject", self.reject),
            ("POST", "/tasks/{task}/versions/{number}/rollback", self.rollback),
            ("POST", "/tasks/{task}/train", self.train),
            ("POST", "/jobs/{job}/{verb}", self.job),
            ("POST", "/dead-letters/{topic}/{partition}/{offset}/replay", self.replay),
            ("POST", "/unknown-outcomes/{key}/{verb}", self.settle),
            ("GET", "/login", self.login),
            ("POST", "/login", self.log_in),
            ("POST", "/logout", self.log_out),
        ):
            router.add_api_route(path, endpoint, methods=[method], response_model=None)
        return router

    def _page(self, request: Request, template: str, **content: Any) -> Response:
        status = self._operations.status()
        return _render(
            request,
            template,
            status=status,
            now=status.at,
            shown=fingerprint(status),
            teacher=status.teacher,
            **content,
        )

    def _version_page(
        self, request: Request, task: str, number: int, problem: str = "", reason: str = ""
    ) -> Response:
        detail = self._operations.show(task, number)
        return self._page(request, "version.html", detail=detail, problem=problem, reason=reason)

    def _parked_page(self, request: Request, task: str, problem: str = "") -> Response:
        return self._page(
            request,
            "parked.html",
            task=task,
            parked=self._operations.parked(task),
            labels=self._settings.tasks[task].labels,
            problem=problem,
        )

    def _versions_page(self, request: Request, task: str, problem: str = "") -> Response:
        found, reigns = self._operations.versions(task), self._operations.champions(task)
        bars = charts.reign_bars(reigns, self._operations.status().at)
        return self._page(
            request,
            "versions.html",
            task=task,
            versions=found,
            reigns=reigns,
            bars=bars,
            problem=problem,
        )

    def overview(self, request: Request) -> Response:
        return self._page(request, "overview.html", problem="")

    def versions(self, request: Request, task: str) -> Response:
        return self._versions_page(request, task)

    def version(self, request: Request, task: str, number: int) -> Response:
        return self._version_page(request, task, number)

    def activity(self, request: Request, before: str = "", kind: str = "") -> Response:
        chosen = next((one for one in KINDS if one == kind), None)
        until = _moment(before)
        found = self._operations.activity(PAGE_LENGTH + 1, until, chosen)
        entries = found[:PAGE_LENGTH]
        return self._page(
            request,
            "activity.html",
            entries=entries,
            older=entries[-1].at.isoformat() if len(found) > PAGE_LENGTH else "",
            before=until,
            kind=chosen or "",
            kinds=KIND_TITLES,
            problem="",
        )

    def dead_letters(self, request: Request) -> Response:
        letters = [letter_content(letter) for letter in self._operations.dead_letters()]
        return self._page(request, "dead_letters.html", letters=letters, problem="")

    def unknown_outcomes(self, request: Request) -> Response:
        held = self._operations.unknown_outcomes()
        return self._page(request, "unknown_outcomes.html", held=held, problem="")

    def parked(self, request: Request, task: str) -> Response:
        return self._parked_page(request, task)

    async def settle_label(self, request: Request, task: str) -> Response:
        form, operator = await _posted(request), request.state.operator

        def act() -> Response:
            event_id, label = form.get("event_id", ""), form.get("label", "")
            try:
                self._operations.settle_label(task, event_id, label, operator=operator)
            except FlywheelError as error:
                return _conflict(self._parked_page(request, task, str(error)))
            return _see(f"/tasks/{task}/parked", "settled")

        return await run_in_threadpool(act)

    async def approve(self, request: Request, task: str, number: int) -> Response:
        form, operator = await _posted(request), request.state.operator

        def act() -> Response:
            try:
                self._operations.approve(
                    task,
                    number,
                    report=form.get("report", ""),
                    operator=operator,
                    serves_nothing="serves_nothing" in form,
                    above_ceiling="above_ceiling" in form,
                )
            except FlywheelError as error:
                return _conflict(self._version_page(request, task, number, str(error)))
            return _see(f"/tasks/{task}/versions/{number}", "approved")

        return await run_in_threadpool(act)

    async def reject(self, request: Request, task: str, number: int) -> Response:
        form, operator = await _posted(request), request.state.operator
        reason = form.get("reason", "")

        def act() -> Response:
            try:
                self._operations.reject(task, number, reason=reason, operator=operator)
            except FlywheelError as error:
                return _conflict(self._version_page(request, task, number, str(error), reason))
            return _see(f"/tasks/{task}/versions/{number}", "rejected")

        return await run_in_threadpool(act)

    async def rollback(self, request: Request, task: str, number: int) -> Response:
        form, operator = await _posted(request), request.state.operator
        reason = form.get("reason", "")

        def act() -> Response:
            try:
                self._operations.rollback(task, number, reason=reason, operator=operator)
            except FlywheelError as error:
                return _conflict(self._versions_page(request, task, str(error)))
            return _see(f"/tasks/{task}/versions", "rolled-back")

        return await run_in_threadpool(act)

    def train(self, request: Request, task: str) -> Response:
        self._operations.request_train(task, operator=request.state.operator)
        return _see("/", "training")

    def job(self, request: Request, job: str, verb: str) -> Response:
        if verb == "pause":
            self._operations.pause(job, operator=request.state.operator)
            return _see("/", "paused")
        self._operations.resume(job, operator=request.state.operator)
        return _see("/", "resumed")

    def replay(self, request: Request, topic: str, partition: int, offset: int) -> Response:
        self._operations.replay(topic, partition, offset, operator=request.state.operator)
        return _see("/dead-letters", "replayed")

    def settle(self, request: Request, key: str, verb: str) -> Response:
        if verb == "release":
            self._operations.release(key, operator=request.state.operator)
            return _see("/unknown-outcomes", "released")
        self._operations.drop(key, operator=request.state.operator)
        return _see("/unknown-outcomes", "dropped")

    def _login_form(
        self, request: Request, next_page: str, problem: str = "", status: int = 200
    ) -> Response:
        return _render(
            request,
            "login.html",
            status_code=status,
            status=None,
            teacher=teacher_status(self._settings),
            next=safe_path(next_page),
            problem=problem,
        )

    def _enter(self, request: Request, operator: str, target: str) -> Response:
        # A page that goes on by itself, not a redirect: after a link from elsewhere a browser
        # would not send a strict cookie along with the redirected request.
        answer = _render(
            request,
            "entering.html",
            status=None,
            teacher=teacher_status(self._settings),
            target=safe_path(target),
        )
        secure = request.url.scheme == "https" or self._settings.learner.public_url.startswith(
            "https:"
        )
        answer.set_cookie(
            COOKIE,
            self._sessions.make_cookie(operator),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=secure,
        )
        return answer

    async def login(self, request: Request, code: str = "", next: str = "/") -> Response:
        if not code:
            return self._login_form(request, next)
        operator = self._sessions.take_code(code)
        if operator is not None:
            return self._enter(request, operator, next)
        await self._failures.wait()
        problem = "This link was used already or is too old. Make a new one: flywheel open"
        return self._login_form(request, next, problem, 401)

    async def log_in(self, request: Request) -> Response:
        given = await _posted(request)
        if self._sessions.is_token(given.get("token", "").strip()):
            return self._enter(
                request, clean_name(given.get("operator", "")), given.get("next", "/")
            )
        if not await self._failures.wait():
            return self._login_form(
                request, given.get("next", "/"), "Too many attempts. Wait a moment.", 429
            )
        return self._login_form(
            request, given.get("next", "/"), "This is not the operator token.", 401
        )

    def log_out(self) -> Response:
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


async def _posted(request: Request) -> dict[str, str]:
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
