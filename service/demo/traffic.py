"""The customers of the demonstration: the same seed and index always give the same message."""

import bisect
import itertools
from dataclasses import dataclass
from random import Random

from service.demo.corpus import Corpus, Intent, load_corpus, normalised

REPEATED = 0.06
# Of each intent this many messages are sent again and again, word for word.
REPEATED_PER_INTENT = 3
# How often customers mention a matter that they do not write about: what keeps the traffic hard.
MENTIONS_ANOTHER_MATTER = 0.15
USERS = 900
# A typo may spoil four shingles: one per this many characters leaves a message recognisable.
CHARACTERS_PER_TYPO = 28
# The encoder reads about 128 tokens, so what customers add stops here.
LONG_ENOUGH = 330

NEIGHBOURS = {
    "a": "s", "b": "v", "c": "x", "d": "f", "e": "r", "f": "g", "g": "h", "h": "j", "i": "o",
    "k": "l", "l": "k", "m": "n", "n": "m", "o": "p", "r": "t", "s": "a", "t": "r", "u": "i",
    "v": "b", "w": "e", "y": "u",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoMessage:
    text: str
    intent: str
    user: str


class Traffic:
    """A stream of messages without end. It has no state: any index may be asked for at any time."""

    def __init__(self, seed: int, corpus: Corpus | None = None) -> None:
        self._seed = seed
        self._corpus = corpus or load_corpus()
        by_name = {intent.name: intent for intent in self._corpus.intents}
        self._new = by_name.pop(self._corpus.new_intent)
        self._known = list(by_name.values())
        # Zipf's law with its head flattened: the rarest intent still gets about 2 % of the traffic.
        weights = [1 / (rank + 4) for rank in range(len(self._known))]
        self._cumulative = list(itertools.accumulate(weights))

    def message(self, index: int, *, new_intent_share: float) -> DemoMessage:
        rng = Random(f"{self._seed}:{index}")
        is_new = rng.random() < new_intent_share
        intent = self._pick_known(rng.random())
        if is_new:
            intent = self._new
        user = f"user-{int(USERS * rng.random() ** 2):04d}"
        if rng.random() < REPEATED:
            rng = Random(f"{self._seed}:{intent.name}:{rng.randrange(REPEATED_PER_INTENT)}")
        return DemoMessage(text=self._compose(intent, rng), intent=intent.name, user=user)

    def _pick_known(self, at: float) -> Intent:
        total = self._cumulative[-1]
        return self._known[bisect.bisect(self._cumulative, at * total)]

    def _compose(self, intent: Intent, rng: Random) -> str:
        matter = self._matter(intent, rng)
        around = self._around(intent, rng, room=LONG_ENOUGH - len(" ".join(matter)))
        if around.context and rng.random() < 0.3:
            parts = [around.opener, around.context, *matter, around.closer]
        else:
            parts = [around.opener, *matter, around.context, around.closer]
        if rng.random() < 0.35:
            parts = [_with_typos(part, rng) for part in parts]
        return _in_hand(" ".join(part for part in parts if part), rng)

    def _matter(self, intent: Intent, rng: Random) -> list[str]:
        """One hand-written message; often a second one, since customers say it twice."""
        texts = self._corpus.messages[intent.name]
        first, second = rng.sample(texts, 2)
        if len(first) + len(second) > LONG_ENOUGH or rng.random() >= 0.55:
            return [first]
        return [_ended(first), second]

    def _around(self, intent: Intent, rng: Random, *, room: int) -> "_Around":
        phrases = self._corpus.phrases
        lists = [phrases.contexts[name] for name in intent.contexts]
        context = " ".join(
            self._filled(rng.choice(rng.choice(lists)), rng)
            for _ in range(rng.choices((0, 1, 2), (0.25, 0.5, 0.25))[0])
        )
        opener = self._filled(rng.choice(phrases.openers), rng) if rng.random() < 0.6 else ""
        closer = self._filled(rng.choice(phrases.closers), rng) if rng.random() < 0.6 else ""
        if len(context) > room:
            context = ""
        if rng.random() < MENTIONS_ANOTHER_MATTER:
            context = f"{context} {self._filled(rng.choice(phrases.asides), rng)}".strip()
        return _Around(opener=opener, context=context, closer=closer)

    def _filled(self, phrase: str, rng: Random) -> str:
        if "{" not in phrase:
            return phrase
        slots = {name: rng.choice(values) for name, values in self._corpus.phrases.slots.items()}
        slots["order"] = str(rng.randrange(10_000, 100_000))
        slots["number"] = str(rng.randrange(11, 60))
        slots["year"] = str(rng.randrange(2009, 2025))
        slots["price"] = f"{rng.randrange(12, 400)}.{rng.choice(('00', '50', '90', '95'))}"
        slots["date"] = f"{rng.randrange(1, 29)} {rng.choice(self._corpus.phrases.slots['month'])}"
        return phrase.format(**slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Around:
    opener: str
    context: str
    closer: str


def _ended(text: str) -> str:
    return text if text[-1] in ".!?)" else f"{text}."


def _with_typos(text: str, rng: Random) -> str:
    """At most one slip per so many characters, none in what is too short to survive one."""
    for _ in range(min(3, len(normalised(text)) // CHARACTERS_PER_TYPO)):
        if rng.random() < 0.5:
            text = _one_typo(text, rng)
    return text


def _one_typo(text: str, rng: Random) -> str:
    at = rng.randrange(1, len(text) - 1)
    here, after = text[at], text[at + 1]
    # Numbers stay as they are, and so do the spaces that part the words.
    if not (here.isalpha() and after.isalpha()):
        return text
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at] + after + here + text[at + 2 :]
    if kind == 1:
        return text[:at] + text[at + 1 :]
    if kind == 2:
        return text[:at] + here + text[at:]
    return text[:at] + NEIGHBOURS.get(here, here) + text[at + 1 :]


def _in_hand(text: str, rng: Random) -> str:
    """The way this customer types: as it should be, or without capitals, apostrophes or an end."""
    manner = rng.random()
    if manner < 0.25:
        text = text.lower()
    elif manner < 0.27:
        text = text.upper()
    if rng.random() < 0.12:
        text = text.replace("'", "").replace("’", "")
    if rng.random() < 0.15:
        text = text.rstrip(".!")
    return text
