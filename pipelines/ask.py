"""What the teacher is asked, and under which key an answer is remembered."""

from dataclasses import dataclass
from typing import Any

from pipelines.identities import question_key
from pipelines.render import teacher_messages
from pipelines.types import Message, Task


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


def ask(
    event_id: str,
    messages: tuple[Message, ...],
    task: Task,
    policy: TeacherPolicy,
    repeat: int = 0,
) -> Question:
    """The question for one event, with its content-addressed key."""
    parameters: dict[str, Any] = {
        "model": policy.model,
        "messages": teacher_messages(messages, task),
        policy.max_tokens_field: policy.max_tokens,
    }
    if policy.temperature is not None:
        parameters["temperature"] = policy.temperature
    # A token has at least one byte in every tokenizer in use. Four are typical, but what the
    # budget reserves has to be a bound.
    content = sum(len(message["content"].encode()) for message in parameters["messages"])
    return Question(
        key=question_key(task, parameters, repeat),
        event_id=event_id,
        task=task.name,
        parameters=parameters,
        tokens=content + 16 * len(parameters["messages"]) + policy.max_tokens,
        repeat=repeat,
    )


def cost(prompt_tokens: int, completion_tokens: int, policy: TeacherPolicy) -> float:
    """Money of one call, in the currency of the prices."""
    return (
        prompt_tokens * policy.price_per_million_in
        + completion_tokens * policy.price_per_million_out
    ) / 1e6
