"""One finding: how bad it is, one sentence, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`todo` is empty where nothing has to be done."""

    part: str
    level: Level
    sentence: str
    todo: str = ""


def ok(part: str, sentence: str) -> Finding:
    return Finding(part=part, level="ok", sentence=sentence)


def warning(part: str, sentence: str, todo: str) -> Finding:
    return Finding(part=part, level="warning", sentence=sentence, todo=todo)


def problem(part: str, sentence: str, todo: str) -> Finding:
    return Finding(part=part, level="problem", sentence=sentence, todo=todo)
