"""What a failed call to the teacher means: sent or not, again or not, and when to pause."""

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

import httpx2
import openai

from pipelines.ask import Question
from service.learner.teacher_parameters import said_in

MAX_WAIT_SECONDS = 30.0
BREAKER_FAILURES = 5
BREAKER_MAX_SECONDS = 300.0
TO_THIS_PROMPT = "to this prompt"
CHECK = "check teacher.api_key, teacher.model and teacher.base_url"


class Failure(NamedTuple):
    """An exception of the client, judged: was it sent, and may it be tried again?"""

    outcome: Literal["not_sent", "unknown", "impossible", "refused"]
    retry_after: float | None
    rate_limited: bool
    detail: str


class Breaker:
    """Stops all calls for a while after failures in a row, longer each time."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._failures = 0
        self._impossible = 0
        self._given_up = 0
        self._until: datetime | None = None

    def open_until(self) -> datetime | None:
        if self._until is None:
            return None
        left = (self._until - self._now()).total_seconds()
        # More than any pause: the clock was put back.
        return self._until if 0 < left <= BREAKER_MAX_SECONDS else None

    def open_for(self, seconds: float) -> None:
        self._until = self._now() + timedelta(seconds=min(seconds, BREAKER_MAX_SECONDS))

    def gave_up(self) -> None:
        """All attempts for one question failed: pause, longer each time in a row."""
        if self.open_until() is None:
            self._given_up += 1
            self.open_for(2.0 ** min(self._given_up + 1, 9))

    def succeeded(self) -> None:
        self._failures = self._impossible = self._given_up = 0

    def failed(self, failure: Failure) -> Failure:
        """Count it, and return it as what it is in the light of those before it."""
        if failure.outcome == "impossible":
            self._impossible += 1
            if self._impossible < BREAKER_FAILURES:
                return failure
            # Not these prompts but all: samples must not fail by the thousand.
            detail = f"{failure.detail}, and so to {self._impossible} prompts in a row"
            self._impossible = 0
            if failure.detail.endswith(TO_THIS_PROMPT):  # it does not say why
                detail = f"{detail}: {CHECK}"
            failure = failure._replace(outcome="refused", detail=detail)
        self._failures += 1
        if failure.outcome == "refused":
            self.open_for(BREAKER_MAX_SECONDS / 5)
        elif self._failures >= BREAKER_FAILURES and not failure.rate_limited:
            self.open_for(2.0 ** (self._failures - BREAKER_FAILURES + 2))
        return failure


def judge(error: Exception, now: datetime, question: Question) -> Failure:
    """Sent or not is what decides: only what certainly was not answered may be sent again."""
    if isinstance(error, openai.APIStatusError):
        return _judge_status(error, now, said_in(error, question))
    if isinstance(error, openai.APITimeoutError) and not _connecting(error):
        return Failure("unknown", None, False, "no answer within the time limit")
    if isinstance(error, openai.APIConnectionError) and _connecting(error):
        return Failure("not_sent", None, False, "the teacher cannot be reached")
    return Failure("unknown", None, False, f"the connection broke: {type(error).__name__}")


def _judge_status(error: openai.APIStatusError, now: datetime, said: str) -> Failure:
    status = error.status_code
    detail = f"the teacher said {status}"
    why = f": {said}" if said else ""
    if status == 402 or error.code == "insufficient_quota":
        return Failure("refused", None, False, f"{detail}: there is no credit left{why}")
    if status in (429, 503):
        return Failure("not_sent", _retry_after(error, now), status == 429, detail)
    if status < 400 or status in (401, 403, 404):  # redirects are not followed
        return Failure("refused", None, False, f"{detail}: {CHECK}{why}")
    if status >= 500 or status == 408:
        return Failure("unknown", None, False, detail)
    return Failure("impossible", None, False, f"{detail} {TO_THIS_PROMPT}{why}")


def _connecting(error: Exception) -> bool:
    """Whether the failure came before any byte of the request was sent."""
    cause: BaseException | None = error.__cause__
    while cause is not None:
        if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)):
            return True
        cause = cause.__cause__
    return False


def _retry_after(error: openai.APIStatusError, now: datetime) -> float | None:
    """Seconds from a Retry-After header, given as seconds or as a date (RFC 9110, 10.2.3).

    Some servers say it more exactly in a header of their own, in milliseconds.
    """
    with suppress(ValueError):
        return max(0.0, float(error.response.headers.get("retry-after-ms", "")) / 1000)
    value = error.response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError):
        return None


def wait_before(attempt: int, retry_after: float | None) -> float:
    """Full jitter (Brooker, Exponential Backoff And Jitter), never less than was asked for."""
    jitter = random.uniform(0, min(MAX_WAIT_SECONDS, 0.5 * 2.0**attempt))
    return jitter if retry_after is None else retry_after + jitter
