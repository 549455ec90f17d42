"""What the scripted teacher knows, and when it is wrong: the same text always gets one answer."""

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from pipelines.errors import SettingsError
from service.demo.corpus import intent_of, load_corpus

REFUSAL = (
    "I am a scripted teacher: I only know the messages that I was given, "
    "and this is not one of them."
)
NONSENSE = (
    "I'd be happy to help! Could you tell me a little more about it?",
    "This could be one of several categories.",
    "label: unclear",
    "As requested, here is the category: miscellaneous",
    "{}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerKey:
    """The closed label set, and the true label of a text (None: unknown)."""

    labels: tuple[str, ...]
    truth: Callable[[str], str | None]


def demo_key() -> AnswerKey:
    return AnswerKey(labels=load_corpus().labels, truth=intent_of)


def read_key(path: Path, *, text_column: str = "text", label_column: str = "label") -> AnswerKey:
    """Answers from a CSV or JSONL file. A text given twice must have one label."""
    truth: dict[str, str] = {}
    for number, row in enumerate(_rows(path), start=1):
        text, label = row.get(text_column), row.get(label_column)
        if not isinstance(text, str) or not isinstance(label, str) or not label:
            raise SettingsError(
                f"{path.name}, row {number}: needs the text columns "
                f"'{text_column}' and '{label_column}'"
            )
        if truth.setdefault(text, label) != label:
            raise SettingsError(f"{path.name}, row {number}: this text has two different labels")
    if not truth:
        raise SettingsError(f"{path.name} has no answers")
    return AnswerKey(labels=tuple(dict.fromkeys(truth.values())), truth=truth.get)


def _rows(path: Path) -> Iterable[dict[str, object]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from csv.DictReader(file)
            else:
                yield from (json.loads(line) for line in file if line.strip())
    except (OSError, ValueError) as error:
        raise SettingsError(f"the answers in {path.name} cannot be read: {error}") from error


def answer_to(
    text: str, key: AnswerKey, *, error_rate: float, nonsense_rate: float, seed: int
) -> str:
    """The label of a text; by the given rates another valid one, or something that is no label."""
    label = key.truth(text)
    if label is None:
        return REFUSAL
    if _fraction("nonsense", text, seed) < nonsense_rate:
        return _pick(NONSENSE, "which nonsense", text, seed)
    others = [other for other in key.labels if other != label]
    if others and _fraction("error", text, seed) < error_rate:
        return _pick(others, "which error", text, seed)
    return label


def _pick(choices: tuple[str, ...] | list[str], purpose: str, text: str, seed: int) -> str:
    return choices[int(_fraction(purpose, text, seed) * len(choices))]


def _fraction(purpose: str, text: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = blake2b(f"{seed}\0{purpose}\0{text}".encode(), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48
