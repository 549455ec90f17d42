"""Our own parameters of a call: one that the teacher refuses by name is not sent to it again."""

import re
from collections.abc import Mapping, Set
from typing import Any

import openai
import structlog

from pipelines.ask import Question, TeacherPolicy

log = structlog.get_logger()

PROMPTS = 2  # different ones, of which a parameter was refused, before it is left out
LIMITS = ("max_completion_tokens", "max_tokens")  # two names of one parameter
MOST_SAID = 300  # characters of what the teacher says


class OwnParameters:
    """What of ours is sent. Without a limit an answer could cost anything: that is only renamed."""

    def __init__(self, policy: TeacherPolicy) -> None:
        self._limit = policy.max_tokens_field
        self._limit_sent_as: str = self._limit
        self._left_out: set[str] = set()
        self._refused: dict[str, set[str]] = {}  # keys of the questions, by name

    def of(self, question: Question) -> dict[str, Any]:
        """The question's parameters as they are sent; its key does not change."""
        return {
            self._limit_sent_as if name == self._limit else name: value
            for name, value in question.parameters.items()
            if name not in self._left_out or name in question.theirs
        }

    def refuses(self, question: Question, sent: Mapping[str, Any], error: Exception) -> bool:
        """Whether the teacher refuses a parameter of ours that it may do without.

        From the second prompt on it is left out, or called by its other name, with one line.
        """
        name = _named(error, {"temperature", *LIMITS} & {*sent} - question.theirs)
        if name is None or (name in LIMITS and name != self._limit):
            return False  # of the limit the other name was tried already
        self._refused.setdefault(name, set()).add(question.key)
        if len(self._refused[name]) == PROMPTS:
            if name in LIMITS:
                (self._limit_sent_as,) = {*LIMITS} - {name}
                log.warning("teacher_parameter_renamed", parameter=name, to=self._limit_sent_as)
            else:
                self._left_out.add(name)
                log.warning("teacher_parameter_left_out", parameter=name)
        return True


def _named(error: Exception, sent: Set[str]) -> str | None:
    """The sent parameter that a refusal names: as its `param`, or first in its text."""
    if not isinstance(error, openai.APIStatusError) or error.status_code not in (400, 422):
        return None
    if error.param in sent:
        return error.param
    text = str(error.body if error.body is not None else error.message)
    found = re.search(rf"(?<!\w)({'|'.join(sorted(sent))})(?!\w)", text) if sent else None
    return found[1] if found else None


def said_in(error: openai.APIStatusError, question: Question) -> str:
    """Code, parameter and message of a refusal, as far as it quotes nothing of the prompt."""
    body = error.body if isinstance(error.body, dict) else {}
    message = body.get("message") or body.get("detail") or ""
    facts = [str(error.code or body.get("type") or "")]
    if error.param:
        facts.append(f"parameter {error.param}")
    text = " ".join(str(message).split())[:MOST_SAID]
    if text and not _quotes(text, question):
        facts.append(text)
    return ", ".join(fact for fact in facts if fact)


def _quotes(text: str, question: Question, window: int = 16) -> bool:
    prompt = " ".join(str(one.get("content")) for one in question.parameters["messages"])
    prompt = " ".join(prompt.split()).casefold()
    text = text.casefold()
    pieces = {text[at : at + window] for at in range(max(1, len(text) - window + 1))}
    short = prompt if len(prompt) < window else ""
    return any(piece in prompt for piece in pieces) or bool(short and short in text)
