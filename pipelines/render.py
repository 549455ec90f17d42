"""The one place that turns a prompt into model input: for training, evaluation and serving."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.types import Message, Task


def classifier_text(messages: Sequence[Message], task: Task) -> str:
    """What the classifier reads of a conversation: by default the last user message."""
    if task.reads == "conversation":
        return "\n".join(f"{message.role}: {message.content}" for message in messages)
    users = [message.content for message in messages if message.role == "user"]
    if task.reads == "all_user":
        return "\n".join(users)
    return users[-1] if users else ""


def teacher_messages(messages: Sequence[Message], task: Task) -> list[dict[str, Any]]:
    """What the teacher reads: the app's messages verbatim.

    The task's instructions are put first when the record came without a system prompt.
    """
    rendered = list(map(_as_said, messages))
    has_system = any(message.role in ("system", "developer") for message in messages)
    if task.instructions and not has_system:
        return [{"role": "system", "content": task.instructions}, *rendered]
    return rendered


def app_messages(asked: Sequence[Mapping[str, Any]], task: Task) -> tuple[Message, ...]:
    """The app's messages in what a teacher was asked: the other way round."""
    messages = tuple(
        Message(
            one["role"], one.get("content") or "", one.get("tool_calls"), one.get("tool_call_id")
        )
        for one in asked
    )
    first = messages[0] if messages else None
    ours = first == Message("system", task.instructions) and len(messages) > 1
    return messages[1:] if ours else messages


def _as_said(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        said |= {"content": message.content or None, "tool_calls": message.tool_calls}
    if message.tool_call_id is not None:
        said["tool_call_id"] = message.tool_call_id
    return said


def chat_messages(text: str, instructions: str) -> list[dict[str, str]]:
    """What a causal student reads: what it is to do, and the classifier's text."""
    task = "Answer with the label of the message and nothing else."
    system = f"{instructions}\n{task}" if instructions else task
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def label_text(label: str) -> str:
    """A label's name as a phrase, for the base model that knows nothing but names."""
    return " ".join(label.replace("_", " ").replace("-", " ").replace(".", " ").split())
