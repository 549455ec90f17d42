"""The teacher: every paid call goes through here, with its ledger lines, budget and retries."""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Annotated, Literal, NamedTuple

import httpx2
import msgspec
import openai
import structlog

from pipelines.ask import Question, cost
from pipelines.errors import FlywheelError
from pipelines.types import Label
from service.sections import BudgetSettings, TeacherSettings
from storage.failpoints import passing
from storage.ledger import Amounts, Ledger, Step

log = structlog.get_logger()

ATTEMPTS = 4
MAX_WAIT_SECONDS = 30.0
BREAKER_FAILURES = 5
BREAKER_MAX_SECONDS = 300.0
CHECK = "check teacher.api_key, teacher.model and teacher.base_url"

# `impossible`: not this prompt, ever; `refused`: no prompt at all, until somebody does something.
Outcome = Literal["received", "not_sent", "unknown", "impossible", "refused", "over_budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of one question. `text` only when received."""

    question: Question
    outcome: Outcome
    text: str | None = None
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    bought: bool = False  # False: the ledger had the answer already
    detail: str = ""

    def as_label(
        self, label: str, *, prompt_version: str, terms: str, ledger_key: str | None = None
    ) -> Label:
        """The label that was read from it; `ledger_key` where another question was asked."""
        return Label(
            event_id=self.question.event_id,
            label=label,
            source="bought",
            teacher_model=self.model,
            prompt_version=prompt_version,
            terms=terms,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cost=self.cost,
            ledger_key=ledger_key or self.question.key,
        )


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Usage(msgspec.Struct):
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0)]
    completion_tokens: Annotated[int, msgspec.Meta(ge=0)]


class _Completion(msgspec.Struct):
    """What is read of a reply; compatible servers differ in all the rest."""

    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


class _Failure(NamedTuple):
    """An exception of the client, judged: was it sent, and may it be tried again?"""

    outcome: Literal["not_sent", "unknown", "impossible", "refused"]
    retry_after: float | None
    rate_limited: bool
    detail: str


class Teacher:
    """Asks the teacher, never twice for the same answer, never above the budget."""

    def __init__(
        self,
        settings: TeacherSettings,
        budget: BudgetSettings,
        ledger: Ledger,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_call: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._settings = settings
        self._budget = budget
        self._ledger = ledger
        self._now = now
        self._on_call = on_call
        self._breaker = _Breaker(now)
        self.policy = settings.policy

    def why_not(self) -> str | None:
        """Why no label can be bought at all right now; None when one can."""
        if not self._settings.base_url or not self._settings.model:
            return "no teacher is set (teacher.base_url and teacher.model)"
        if not self._settings.terms or not self._settings.terms_allow_training:
            return (
                "the teacher's terms are not recorded as allowing training "
                "(teacher.terms and teacher.terms_allow_training)"
            )
        if (open_until := self._breaker.open_until()) is not None:
            seconds = (open_until - self._now()).total_seconds()
            return f"the teacher failed repeatedly; next try in {seconds:.0f} s"
        return None

    @property
    def breaker_open(self) -> bool:
        """Whether no call is made for a while, because so many failed."""
        return self._breaker.open_until() is not None

    def recover(self) -> int:
        """After a crash: calls in flight have an unknown outcome. Returns how many there were."""
        unfinished = self._ledger.unfinished()
        for call in unfinished:
            self._ledger.note(
                call.key, "unknown", detail="the learner stopped during the call", now=self._now()
            )
        return len(unfinished)

    def answer(self, questions: Sequence[Question]) -> list[Reply]:
        """Answers in the order of the questions; those known already cost nothing.

        Raises `DiskFull` when the ledger cannot be written; what was received until then is
        in the ledger.
        """
        return asyncio.run(self._answer_all(questions))

    async def _answer_all(self, questions: Sequence[Question]) -> list[Reply]:
        limit = asyncio.Semaphore(self._settings.max_concurrency)
        # Equal questions are asked once, whoever else asks them in the same batch.
        unique = {question.key: question for question in questions}
        try:
            async with self._client() as client, asyncio.TaskGroup() as group:
                tasks = {
                    key: group.create_task(self._answer_one(client, question, limit))
                    for key, question in unique.items()
                }
        except* FlywheelError as errors:  # a full disk, a damaged side store
            raise errors.exceptions[0] from None
        replies = {key: task.result() for key, task in tasks.items()}
        return [
            reply if reply.question.event_id == question.event_id else _for(question, reply)
            for question in questions
            for reply in [replies[question.key]]
        ]

    def _client(self) -> openai.AsyncOpenAI:
        seconds = self._settings.timeout.total_seconds()
        return openai.AsyncOpenAI(
            base_url=self._settings.base_url,
            api_key=self._settings.api_key.get_secret_value() or "none",
            max_retries=0,  # one retry layer, and it is ours: each call has its ledger line
            timeout=httpx2.Timeout(seconds, connect=min(5.0, seconds)),
            http_client=openai.DefaultAsyncHttpx2Client(follow_redirects=False),
        )

    async def _answer_one(
        self, client: openai.AsyncOpenAI, question: Question, limit: asyncio.Semaphore
    ) -> Reply:
        known = self.known(question)
        if known is not None:
            return known
        async with limit:
            for attempt in range(ATTEMPTS):
                if self._breaker.open_until() is not None:
                    return Reply(question=question, outcome="not_sent", detail="breaker open")
                if not self._affordable(question):
                    return Reply(question=question, outcome="over_budget")
                failure = await self._call(client, question)
                if isinstance(failure, Reply):
                    return failure
                if failure.outcome != "not_sent":
                    return Reply(question=question, outcome=failure.outcome, detail=failure.detail)
                wait = _wait(attempt, failure.retry_after)
                if wait > MAX_WAIT_SECONDS:
                    self._breaker.open_for(wait)
                    break
                await asyncio.sleep(wait)
            else:
                self._breaker.gave_up()
        return Reply(question=question, outcome="not_sent", detail="gave up for now")

    def known(self, question: Question) -> Reply | None:
        """What the ledger says to a question, so that it need not be asked; None: ask."""
        call = self._ledger.call(question.key)
        if call is None or call.step in ("not_sent", "released"):
            return None
        if call.step == "received":
            reply = self.read(question, self._ledger.reply(question.key), bought=False)
            # Whoever it was bought for has its cost; everybody else has it for nothing.
            return reply if call.event_id == question.event_id else _for(question, reply)
        if call.step == "dropped":
            return Reply(question=question, outcome="impossible", detail="dropped by an operator")
        return Reply(question=question, outcome="unknown", detail=call.detail)

    def _affordable(self, question: Question) -> bool:
        """Reserve-then-settle: what is in flight counts with its upper bound."""
        spent = self._ledger.spent_on(self._now())
        money = cost(question.tokens - self.policy.max_tokens, self.policy.max_tokens, self.policy)
        return (
            spent.calls + 1 <= self._budget.label_calls
            and spent.tokens + question.tokens <= self._budget.label_tokens
            and spent.money + money <= self._budget.label_money
        )

    async def _call(self, client: openai.AsyncOpenAI, question: Question) -> "Reply | _Failure":
        """One call with its two ledger lines. No await between the budget check and the first."""
        money = cost(question.tokens - self.policy.max_tokens, self.policy.max_tokens, self.policy)
        self._ledger.intend(
            question.key,
            event_id=question.event_id,
            request=question.body,
            reserve=Amounts(tokens=question.tokens, money=money),
            now=self._now(),
        )
        passing("teacher.intended")
        try:
            response = await client.chat.completions.with_raw_response.create(**question.parameters)
        except (openai.APIError, httpx2.HTTPError) as error:
            failure = _judge(error, self._now())
            step: Step = "unknown" if failure.outcome == "unknown" else "not_sent"
            self._ledger.note(question.key, step, detail=failure.detail, now=self._now())
            return self._failed(failure)
        except asyncio.CancelledError:
            self._ledger.note(
                question.key, "unknown", detail="cancelled during the call", now=self._now()
            )
            raise
        body = response.content
        try:
            reply = self.read(question, body, bought=True)
        except msgspec.MsgspecError:  # a proxy's page, with status 200
            detail = "the teacher's reply is no chat completion"
            self._ledger.note(question.key, "unknown", detail=detail, now=self._now())
            return self._failed(_Failure("unknown", None, False, detail))
        passing("teacher.answered")
        self._ledger.receive(
            question.key,
            reply=body,
            spent=Amounts(tokens=reply.prompt_tokens + reply.completion_tokens, money=reply.cost),
            now=self._now(),
        )
        passing("teacher.received")
        self._breaker.succeeded()
        self._on_call("received")
        return reply

    def _failed(self, failure: _Failure) -> _Failure:
        self._on_call("rate_limited" if failure.rate_limited else failure.outcome)
        log.warning("teacher_call_failed", outcome=failure.outcome, detail=failure.detail)
        return self._breaker.failed(failure)

    def read(self, question: Question, body: bytes, *, bought: bool = False) -> Reply:
        """The teacher's reply as ours. Raises `msgspec.MsgspecError` for what is none."""
        completion = msgspec.json.decode(body, type=_Completion)
        usage = completion.usage
        # A server that reports no usage is counted as if it had used what was reserved.
        prompt = usage.prompt_tokens if usage else question.tokens - self.policy.max_tokens
        completed = usage.completion_tokens if usage else self.policy.max_tokens
        choice = completion.choices[0] if completion.choices else None
        return Reply(
            question=question,
            outcome="received",
            text=choice.message.content if choice else None,
            model=completion.model or self.policy.model,
            prompt_tokens=prompt,
            completion_tokens=completed,
            cost=cost(prompt, completed, self.policy),
            bought=bought,
        )


class _Breaker:
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

    def failed(self, failure: _Failure) -> _Failure:
        """Count it, and return it as what it is in the light of those before it."""
        if failure.outcome == "impossible":
            self._impossible += 1
            if self._impossible < BREAKER_FAILURES:
                return failure
            # Not these prompts but all: samples must not fail by the thousand.
            detail = f"{failure.detail}, and so to {self._impossible} prompts in a row"
            self._impossible = 0
            failure = failure._replace(outcome="refused", detail=f"{detail}: {CHECK}")
        self._failures += 1
        if failure.outcome == "refused":
            self.open_for(BREAKER_MAX_SECONDS / 5)
        elif self._failures >= BREAKER_FAILURES and not failure.rate_limited:
            self.open_for(2.0 ** (self._failures - BREAKER_FAILURES + 2))
        return failure


def _judge(error: Exception, now: datetime) -> _Failure:
    """Sent or not is what decides: only what certainly was not answered may be sent again."""
    if isinstance(error, openai.APIStatusError):
        return _judge_status(error, now)
    if isinstance(error, openai.APITimeoutError) and not _connecting(error):
        return _Failure("unknown", None, False, "no answer within the time limit")
    if isinstance(error, openai.APIConnectionError) and _connecting(error):
        return _Failure("not_sent", None, False, "the teacher cannot be reached")
    return _Failure("unknown", None, False, f"the connection broke: {type(error).__name__}")


def _judge_status(error: openai.APIStatusError, now: datetime) -> _Failure:
    status = error.status_code
    detail = f"the teacher said {status}"
    if status == 402 or error.code == "insufficient_quota":
        return _Failure("refused", None, False, f"{detail}: there is no credit left")
    if status in (429, 503):
        return _Failure("not_sent", _retry_after(error, now), status == 429, detail)
    if status < 400 or status in (401, 403, 404):  # redirects are not followed
        return _Failure("refused", None, False, f"{detail}: {CHECK}")
    if status >= 500 or status == 408:
        return _Failure("unknown", None, False, detail)
    return _Failure("impossible", None, False, f"{detail} to this prompt")


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


def _wait(attempt: int, retry_after: float | None) -> float:
    """Full jitter (Brooker, Exponential Backoff And Jitter), never less than was asked for."""
    jitter = random.uniform(0, min(MAX_WAIT_SECONDS, 0.5 * 2.0**attempt))
    return jitter if retry_after is None else retry_after + jitter


def _for(question: Question, reply: Reply) -> Reply:
    """The reply to an equal question, as the reply to this one: paid once."""
    return Reply(
        question=question,
        outcome=reply.outcome,
        text=reply.text,
        model=reply.model,
        detail=reply.detail,
    )
