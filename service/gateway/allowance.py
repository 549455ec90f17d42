"""What of no task may pass to the teacher: which models, and how many requests in a minute.

Tasks have their budgets. This is for the rest, which is asked with our key as well.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from pipelines.replies import MALFORMED
from service.gateway.turn import Rejected
from service.gateway.wire import encode

WINDOW_SECONDS = 60.0
# Where some servers look for further models, which are asked when the first one fails.
FURTHER_MODELS = frozenset({"models", "fallbacks"})
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Allowance:
    """Of one gateway. Without models any may pass, and without a number any number."""

    def __init__(
        self,
        models: Sequence[str],
        per_minute: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.names_models = bool(models)
        self._models = frozenset(models)
        self._per_minute = per_minute
        self._clock = clock
        self._passed: deque[float] = deque()

    def count(self) -> None:
        """One more that passes. Raises `Rejected` when there were as many in the last minute."""
        if not self._per_minute:
            return
        now = self._clock()
        while self._passed and now - self._passed[0] >= WINDOW_SECONDS:
            self._passed.popleft()
        if len(self._passed) >= self._per_minute:
            wait = math.ceil(self._passed[0] + WINDOW_SECONDS - now)
            raise Rejected(
                429,
                f"{self._per_minute} requests of no task pass in a minute "
                "(gateway.pass_requests_per_minute)",
                code="rate_limit_exceeded",
                kind="requests",
                headers={"retry-after": str(max(1, wait))},
            )
        self._passed.append(now)

    def check(self, model: str) -> None:
        """Raises `Rejected` for a model that may not pass."""
        if self.names_models and model not in self._models:
            told = (
                f"'{model[:100]}' is of no task and not one of them" if model else "this names none"
            )
            raise _not_allowed(told)

    def checked(self, body: bytes, model: str) -> bytes:
        """The body of a request for this model, written so that nobody reads another one in it."""
        self.check(model)
        if not self.names_models:
            return body
        try:
            fields: Mapping[str, msgspec.Raw] = _fields(body)
        except MALFORMED:
            raise _not_allowed("and this is no plain JSON") from None
        others = [name for name in fields if name != "model" and _names_models(name)]
        if others:
            raise _not_allowed(f"and the field '{others[0][:20]}' names more of them")
        # A name that was there twice is there once.
        return encode({**fields, "model": model})


def _names_models(field: str) -> bool:
    plain = field.casefold()
    return plain == "model" or plain in FURTHER_MODELS


def _not_allowed(why: str) -> Rejected:
    return Rejected(
        403,
        f"only the models of gateway.pass_models pass; {why}",
        code="model_not_allowed",
        kind="permission_error",
    )
