"""The reference of both HTTP interfaces, from the routes and what their endpoints say."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from types import NoneType
from typing import Any, cast, get_args

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from generator.places import NOTE, ROOT, first_line
from service.console.app import console_app
from service.gateway.feedback import FeedbackRequest
from service.gateway.packing import CODINGS
from service.operator.operations import Operations
from service.planes import AssessRequest
from service.settings import Settings

BODIES: dict[str, type[msgspec.Struct]] = {"feedback": FeedbackRequest, "assess": AssessRequest}
ANSWER_HEADERS = {
    "x-request-id": "the teacher's; where it gave none, `x-flywheel-event-id` or a new one",
    "x-flywheel-event-id": "this request, on the topic and in `/v1/feedback`",
    "x-flywheel-served-by": "`student`, `teacher` or `nobody`",
    "x-flywheel-version": "the student version, or `teacher`",
    "x-flywheel-confidence": "the student's calibrated confidence, where one was asked",
    "x-flywheel-unsure": (
        "the student was unsure (below its threshold, or the prompt beyond its reach) and answered "
        "all the same; why it did not escalate"
    ),
}
Route = tuple[str, str, str, str]  # method, path, body, what it does


def http_page() -> Iterator[str]:
    yield from (NOTE.format(source="the endpoints"), "", "# HTTP", "")
    yield from (
        "## Gateway (port 8700)",
        "",
        "For apps. With `gateway.keys` set, each request wants one as `Authorization: Bearer KEY`",
        "or `api-key: KEY`. Errors have OpenAI's form. Azure's paths are the same endpoints:",
        "`/openai/v1/…`, and `/openai/deployments/NAME/…`, where NAME is the model if the body",
        "names none.",
        "",
        *_table(gateway_routes()),
        "",
        "Headers of an answer:",
        "",
        "| header | meaning |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in ANSWER_HEADERS.items()),
        "",
        "Headers of a request: `x-flywheel-attribute-NAME` is kept with the event, at most 16 of",
        "them, and may be what `segment_by` names. `content-encoding` may be one of",
        f"{', '.join(CODINGS)}; limits count what is unpacked.",
        "",
        "## Learner (port 8701)",
        "",
        "For operators. Every request under `/api` wants the operator token, which lies in the",
        "data folder (`secrets/operator.token`), as `Authorization: Bearer TOKEN`;",
        "`X-Flywheel-Operator` says who acts. The console's pages are views of these:",
        "",
        *_table(learner_routes()),
        "",
        'Errors are `{"error": {"message", "exit_code"}}`, with the code that the command line',
        "ends with ([exit codes](exit-codes.md)). `GET /api/openapi.json` describes the same for",
        "programs.",
        "",
        "Requests under `/gateway/` are between gateways and learner and may change at any time.",
    )


def _table(routes: list[Route]) -> Iterator[str]:
    yield from ("| request | body or query | what it does |", "|---|---|---|")
    for method, path, body, meaning in routes:
        yield f"| `{method} {path}` | {body} | {meaning} |"


def learner_routes() -> list[Route]:
    """Everything for programs: what is under /api, and what probes and scrapers read."""
    app = console_app(cast("Operations", None), "", Settings())
    return [
        (method, route.path, _inputs(route), first_line(inspect.getdoc(route.endpoint)))
        for route in _api_routes(app)
        for method in sorted(route.methods or ())
        if route.path.startswith(("/api/", "/healthz", "/readyz", "/metrics"))
    ]


def _api_routes(app: FastAPI) -> Iterator[APIRoute]:
    routes = list(app.routes)
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            inner = getattr(route, "original_router", None) or getattr(route, "router", None)
            yield from (one for one in getattr(inner, "routes", ()) if isinstance(one, APIRoute))


def _inputs(route: APIRoute) -> str:
    query = [f"`{field.name}`" for field in route.dependant.query_params]
    models = [_model(field.field_info.annotation) for field in route.dependant.body_params]
    fields = [f"`{name}`" for model in models if model for name in model.model_fields]
    return ", ".join(query + fields)


def _model(annotation: Any) -> type[BaseModel] | None:
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType]
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def gateway_routes() -> list[Route]:
    """From the list of routes in the source: a gateway cannot be built without its students."""
    source = (ROOT / "service" / "gateway" / "app.py").read_text()
    found = re.findall(
        r'Route\("([^"]+)",\s*(?:door\.guard\()?([\w.]+).*?methods=\["(\w+)"\]', source
    )
    docstrings = {
        node.name: ast.get_docstring(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    routes = []
    for path, handler, method in found:
        name = handler.removeprefix("self.")
        said = docstrings.get(name) or inspect.getdoc(_endpoint(name))
        fields = msgspec.structs.fields(BODIES[name]) if name in BODIES else ()
        as_theirs = "as OpenAI" if name.startswith("chat") else ""
        body = ", ".join(f"`{field.name}`" for field in fields) or as_theirs
        routes.append((method, path, body, first_line(said)))
    return routes


def _endpoint(handler: str) -> Any:
    """Of `feedback` the call of the class, of `chat.responses` the method."""
    name, _, method = handler.partition(".")
    found = getattr(import_module(f"service.gateway.{name}"), name.capitalize())
    return getattr(found, method or "__call__")
