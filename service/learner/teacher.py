"""The teacher: every paid call goes through here, with its ledger lines, budget and retries."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import httpx2
import openai
import structlog

from pipelines.ask import Question, cost
from pipelines.errors import FlywheelError, NoCompletion
from pipelines.identities import canonical
from pipelines.replies import read_reply
from pipelines.types import Label
from service.learner.teacher_failures import MAX_WAIT_SECONDS, Breaker, Failure, judge, wait_before
from service.learner.teacher_parameters import OwnParameters
from service.sections import BudgetSettings, TeacherSettings
from storage.failpoints import passing
from storage.ledger import Amounts, Ledger, Step
from storage.votes import Vote

log = structlog.get_logger()

ATTEMPTS = 4

# `impossible`: not this prompt, ever; `refused`: no prompt at all, until somebody does something.
Outcome = Literal["received", "not_sent", "unknown", "impossible", "refused", "over_budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of one question. `text` only when received whole; else `detail` says why not."""

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

    def as_vote(self, first: str, label: str | None, prompt_version: str) -> Vote:
        """One more answer to the question, beside the first one; None: it was no label."""
        return Vote(
            event_id=self.question.event_id,
            repeat=self.question.repeat,
            first=first,
            label=label,
            prompt_version=prompt_version,
            tokens=self.prompt_tokens + self.completion_tokens,
            cost=self.cost,
            ledger_key=self.question.key,
        )


class Teacher:
    """Asks the teacher, never twice for the same answer, never above the budget."""

    def __init__(
        self,
        settings: TeacherSettings,
        budget: BudgetSettings,
        ledger: Ledger,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_call: Callable[[str, str], None] = lambda outcome, said: None,
    ) -> None:
        self._settings = settings
        self._budget = budget
        self._ledger = ledger
        self._now = now
        self._on_call = on_call
        self._breaker = Breaker(now)
        self.policy = settings.policy
        self._own = OwnParameters(self.policy)
        self._last_failure = ""

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
            said = f" ({self._last_failure})" if self._last_failure else ""
            return f"the teacher failed repeatedly; next try in {seconds:.0f} s{said}"
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
        headers = self._settings.http_headers

        async def with_our_headers(request: httpx2.Request) -> None:
            del request.headers["authorization"]  # the client sends one also where there is no key
            request.headers.update(headers)

        return openai.AsyncOpenAI(
            base_url=self._settings.base_url,
            api_key="none",
            default_query=dict(self._settings.query),
            max_retries=0,  # one retry layer, and it is ours: each call has its ledger line
            timeout=httpx2.Timeout(seconds, connect=min(5.0, seconds)),
            http_client=openai.DefaultAsyncHttpx2Client(
                follow_redirects=False, event_hooks={"request": [with_our_headers]}
            ),
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
                wait = wait_before(attempt, failure.retry_after)
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

    async def _call(self, client: openai.AsyncOpenAI, question: Question) -> "Reply | Failure":
        """One call with its two ledger lines. No await between the budget check and the first."""
        money = cost(question.tokens - self.policy.max_tokens, self.policy.max_tokens, self.policy)
        parameters = self._own.of(question)
        self._ledger.intend(
            question.key,
            event_id=question.event_id,
            request=canonical(parameters),
            repeat=question.repeat,
            reserve=Amounts(tokens=question.tokens, money=money),
            now=self._now(),
        )
        passing("teacher.intended")
        try:
            response = await client.chat.completions.with_raw_response.create(**parameters)
        except (openai.APIError, httpx2.HTTPError) as error:
            failure = judge(error, self._now(), question)
            ours = self._own.refuses(question, parameters, error)
            if ours:  # no prompt is to blame, nor the server: it is asked again at once
                failure = failure._replace(outcome="not_sent")
            step: Step = "unknown" if failure.outcome == "unknown" else "not_sent"
            self._ledger.note(question.key, step, detail=failure.detail, now=self._now())
            return self._told(failure if ours else self._breaker.failed(failure))
        except asyncio.CancelledError:
            self._ledger.note(
                question.key, "unknown", detail="cancelled during the call", now=self._now()
            )
            raise
        body = response.content
        try:
            reply = self.read(question, body, bought=True)
        except NoCompletion as error:  # a proxy's page, with status 200
            self._ledger.note(question.key, "unknown", detail=str(error), now=self._now())
            failure = Failure("unknown", None, False, str(error))
            return self._told(self._breaker.failed(failure))
        passing("teacher.answered")
        self._ledger.receive(
            question.key,
            reply=body,
            spent=Amounts(tokens=reply.prompt_tokens + reply.completion_tokens, money=reply.cost),
            now=self._now(),
        )
        passing("teacher.received")
        self._breaker.succeeded()
        self._on_call("received", "")
        return reply

    def _told(self, failure: Failure) -> Failure:
        outcome = "rate_limited" if failure.rate_limited else failure.outcome
        self._on_call(outcome, failure.detail)
        self._last_failure = failure.detail
        log.warning("teacher_call_failed", outcome=failure.outcome, detail=failure.detail)
        return failure

    def read(self, question: Question, body: bytes, *, bought: bool = False) -> Reply:
        """The teacher's reply as ours. Raises `NoCompletion` for what is none."""
        said = read_reply(body)
        if said is None:
            raise NoCompletion("the teacher's reply is no chat completion")
        usage = said.usage
        # A server that reports no usage is counted as if it had used what was reserved.
        prompt = usage.prompt_tokens if usage else question.tokens - self.policy.max_tokens
        completed = usage.completion_tokens if usage else self.policy.max_tokens
        return Reply(
            question=question,
            outcome="received",
            text=said.whole,
            model=said.model or self.policy.model,
            prompt_tokens=prompt,
            completion_tokens=completed,
            cost=cost(prompt, completed, self.policy),
            bought=bought,
            detail=said.unusable,
        )


def _for(question: Question, reply: Reply) -> Reply:
    """The reply to an equal question, as the reply to this one: paid once."""
    return Reply(
        question=question,
        outcome=reply.outcome,
        text=reply.text,
        model=reply.model,
        detail=reply.detail,
    )
