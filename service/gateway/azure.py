"""Azure's dialect: the same endpoints under other paths, and a model's name in the path."""

import re
from urllib.parse import quote

from starlette.types import Scope

from pipelines.replies import MALFORMED, read_object
from service.gateway.wire import replace_fields

# In a scope: the model that the path names.
DEPLOYMENT = "flywheel.deployment"
_PATH = re.compile(r"/+openai/+(?:v1/+)?(?:deployments/+([^/]+)/+)?(.+)", re.S)


def as_openai(scope: Scope) -> Scope:
    """The request as OpenAI's own clients make it: its path is under /v1."""
    found = _PATH.fullmatch(scope["path"])
    if found is None:
        return scope
    path = f"/v1/{found[2]}"
    return {**scope, "path": path, "raw_path": quote(path).encode(), DEPLOYMENT: found[1] or ""}


def with_model(body: bytes, scope: Scope) -> bytes:
    """A body that names no model gets the one of the path."""
    name = scope.get(DEPLOYMENT)
    found = read_object(body) if name else None
    if found is None or found.get("model"):
        return body
    try:
        return replace_fields(body, {"model": name})
    except MALFORMED:
        return body
