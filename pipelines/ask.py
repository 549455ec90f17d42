"""What the teacher is asked, and under which key an answer is remembered."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pipelines.chat_request import ASKED, LIMIT
from pipelines.identities import canonical, question_key
from pipelines.render import teacher_messages
from pipelines.types import Message, Task

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherPolicy:
    """Everything that makes one teacher answer differ from another, and what it may cost."""

    model: str
    temperature: float | None
    max_tokens: int
    max_tokens_field: str
    price_per_million_in: float
    price_per_million_out: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call to the teacher. Questions with the same key have one answer."""

    key: str
    event_id: str
    task: str
    parameters: dict[str, Any]  # of chat.completions.create
    tokens: int  # upper bound of what the call can use
    repeat: int = 0  # 0: asked for its label; else asked again, to see whether the answer stays
    theirs: frozenset[str] = frozenset()  # parameters that the app asked for: never left out


def ask(
    event_id: str,
    messages: tuple[Message, ...],
    task: Task,
    policy: TeacherPolicy,
    repeat: int = 0,
    *,
    asked: Mapping[str, Any] = NOTHING,
) -> Question:
    """The question for one event, with its content-addressed key.

    `asked`: what the app asked for beside its messages (`ChatRequest.asked`); what it says goes
    before what the policy says, but its limit only where it is the lower one.
    """
    theirs = {name: said for name, said in asked.items() if name != LIMIT}
    parameters: dict[str, Any] = {
        "model": policy.model,
        "messages": teacher_messages(messages, task),
        policy.max_tokens_field: min(policy.max_tokens, asked.get(LIMIT) or policy.max_tokens),
    }
    if policy.temperature is not None:
        parameters["temperature"] = policy.temperature
    # What says the same as we do must make no other key: 0 and 0.0 are two in JSON.
    parameters |= {name: said for name, said in theirs.items() if parameters.get(name) != said}
    # A token has at least one byte in every tokenizer in use. Four are typical, but what the
    # budget reserves has to be a bound.
    beside = len(canonical(theirs)) if theirs else 0
    content = beside + sum(map(_bytes, parameters["messages"]))
    return Question(
        key=question_key(task, parameters, repeat),
        event_id=event_id,
        task=task.name,
        parameters=parameters,
        tokens=content + 16 * len(parameters["messages"]) + policy.max_tokens,
        repeat=repeat,
        theirs=frozenset(theirs),
    )


def asked_in(parameters: Mapping[str, Any], policy: TeacherPolicy) -> dict[str, Any]:
    """What the app asked for in a call as it was sent: asked with it, a question has its key."""
    found = {name: parameters[name] for name in ASKED if name in parameters}
    if found.get("temperature") == policy.temperature:
        found.pop("temperature", None)
    limits = {parameters.get(name) for name in ("max_tokens", "max_completion_tokens")} - {None}
    limits -= {policy.max_tokens}
    return found | ({LIMIT: limits.pop()} if limits else {})


def _bytes(message: Mapping[str, Any]) -> int:
    calls = message.get("tool_calls")
    return len((message["content"] or "").encode()) + (len(canonical(calls)) if calls else 0)


def cost(prompt_tokens: int, completion_tokens: int, policy: TeacherPolicy) -> float:
    """Money of one call, in the currency of the prices."""
    return (
        prompt_tokens * policy.price_per_million_in
        + completion_tokens * policy.price_per_million_out
    ) / 1e6
