"""The one place that turns a prompt into model input: for training, evaluation and serving."""

from collections.abc import Sequence

from pipelines.types import Message, Task


def classifier_text(messages: Sequence[Message], task: Task) -> str:
    """What the classifier reads of a conversation: by default the last user message."""
    if task.reads == "conversation":
        return "\n".join(f"{message.role}: {message.content}" for message in messages)
    users = [message.content for message in messages if message.role == "user"]
    if task.reads == "all_user":
        return "\n".join(users)
    return users[-1] if users else ""


def teacher_messages(messages: Sequence[Message], task: Task) -> list[dict[str, str]]:
    """What the teacher reads: the app's messages verbatim.

    The task's instructions are put first when the record came without a system prompt.
    """
    rendered = [{"role": message.role, "content": message.content} for message in messages]
    has_system = any(message.role in ("system", "developer") for message in messages)
    if task.instructions and not has_system:
        return [{"role": "system", "content": task.instructions}, *rendered]
    return rendered


def chat_messages(text: str, instructions: str) -> list[dict[str, str]]:
    """What a causal student reads: what it is to do, and the classifier's text."""
    task = "Answer with the label of the message and nothing else."
    system = f"{instructions}\n{task}" if instructions else task
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def label_text(label: str) -> str:
    """A label's name as a phrase, for the base model that knows nothing but names."""
    return " ".join(label.replace("_", " ").replace("-", " ").replace(".", " ").split())
