"""The hand-written messages of the demonstration's support desk, and what each is truly about."""

import json
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

# A typo spoils as many shingles as a shingle is long, so short ones leave more of a message intact.
SHINGLE = 4
# The traffic's typos leave at least two thirds of a message's shingles standing; a chance likeness
# reaches far fewer.
SHARE_RECOGNISED = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One label, and which lists of context sentences go with it."""

    name: str
    about: str
    contexts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrases:
    """What customers write around the matter itself."""

    openers: tuple[str, ...]
    closers: tuple[str, ...]
    # Other matters, mentioned in passing: they mislead a student, not a reader.
    asides: tuple[str, ...]
    contexts: dict[str, tuple[str, ...]]
    slots: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The support desk: its task, its intents (most frequent first) and their messages."""

    company: str
    task: str
    instructions: str
    new_intent: str
    intents: tuple[Intent, ...]
    messages: dict[str, tuple[str, ...]]
    phrases: Phrases

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(intent.name for intent in self.intents)


@cache
def load_corpus() -> Corpus:
    desk = tomllib.loads((FOLDER / "desk.toml").read_text(encoding="utf-8"))
    intents = tuple(
        Intent(name=name, about=row["about"], contexts=tuple(row["contexts"]))
        for name, row in desk["intents"].items()
    )
    labels = "\n".join(f"{intent.name}: {intent.about}" for intent in intents)
    return Corpus(
        company=desk["company"],
        task=desk["task"],
        instructions=desk["instructions"].strip().format(labels=labels),
        new_intent=desk["new_intent"],
        intents=intents,
        messages=_read_messages(FOLDER / "messages.jsonl"),
        phrases=_phrases(tomllib.loads((FOLDER / "phrases.toml").read_text(encoding="utf-8"))),
    )


def _read_messages(path: Path) -> dict[str, tuple[str, ...]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["intent"]].append(row["text"])
    return {intent: tuple(texts) for intent, texts in found.items()}


def _phrases(raw: dict[str, Any]) -> Phrases:
    return Phrases(
        openers=tuple(raw["openers"]),
        closers=tuple(raw["closers"]),
        asides=tuple(raw["asides"]),
        contexts={name: tuple(lines) for name, lines in raw["contexts"].items()},
        slots={name: tuple(values) for name, values in raw["slots"].items()},
    )


def normalised(text: str) -> str:
    """Lower-case letters and digits with single spaces between and around the words.

    Apostrophes vanish instead of parting a word: customers leave them out.
    """
    kept = "".join(char if char.isalnum() else "" if char in "'’" else " " for char in text.lower())
    return f" {' '.join(kept.split())} "


def shingles(text: str) -> frozenset[str]:
    padded = normalised(text)
    return frozenset(padded[at : at + SHINGLE] for at in range(len(padded) - SHINGLE + 1))


class IntentBook:
    """Recognises the hand-written messages inside a text, typos and surroundings included."""

    def __init__(self, messages: Iterable[tuple[str, str]]) -> None:
        self._intents: list[str] = []
        self._sizes: list[int] = []
        self._holders: defaultdict[str, list[int]] = defaultdict(list)
        for number, (intent, text) in enumerate(messages):
            found = shingles(text)
            self._intents.append(intent)
            self._sizes.append(len(found))
            for shingle in found:
                self._holders[shingle].append(number)

    def intent_of(self, text: str) -> str | None:
        """The intent of the message that explains most of the text; none if none is in it."""
        shared: Counter[int] = Counter()
        for shingle in shingles(text):
            shared.update(self._holders.get(shingle, ()))
        best, best_score = None, 0.0
        for number, count in shared.items():
            share = count / self._sizes[number]
            # A long message found with typos says more than a short one found by chance.
            score = count * share * share
            if share >= SHARE_RECOGNISED and score > best_score:
                best, best_score = self._intents[number], score
        return best


@cache
def _book() -> IntentBook:
    messages = load_corpus().messages
    return IntentBook((intent, text) for intent, texts in messages.items() for text in texts)


def intent_of(text: str) -> str | None:
    """The true label of a text of the demonstration's traffic; None for any other text."""
    return _book().intent_of(text)
