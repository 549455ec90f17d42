"""Labels to a dataset: near-duplicate groups, their sides, caps, decontamination, the split."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from rensa import RMinHash, RMinHashLSH

from pipelines.sample import side_of
from pipelines.traffic import Draw
from pipelines.types import Example, HeldOutItem, Side

# Near-duplicates are found in the letters, not in an encoder's space: a group keeps its side
# for ever, also when the encoder is replaced.
SIMILARITY = 0.7
PERMUTATIONS = 128
BANDS = 32
SHINGLE = 5
SEED = 20

_SPACE = re.compile(r"\s+")


class Group(NamedTuple):
    """A near-duplicate group with the text of its first member."""

    group_id: str
    task: str
    side: Side
    text: str


class Placement(NamedTuple):
    """The group of a text, and whether this text founded it."""

    group_id: str
    side: Side
    founded: bool


class NearDuplicates:
    """The groups of one task: an index over the first member of each. Not thread-safe."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._index = RMinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS, num_bands=BANDS)
        self._founders: list[tuple[str, Side, Any]] = []
        self._exact: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._founders)

    def restore(self, group_id: str, side: Side, text: str) -> None:
        """Put back a group that was founded before a restart."""
        normal = normalise(text)
        self._found(group_id, side, normal, _signature(normal))

    def place(self, text: str, event_id: str) -> Placement:
        """The group that the text belongs to; a new one, founded by it, if it is like no other."""
        normal = normalise(text)
        known = self._exact.get(normal)
        if known is None:
            signature = _signature(normal)
            known = self._most_similar(signature)
        if known is not None:
            group_id, side, _ = self._founders[known]
            return Placement(group_id, side, founded=False)
        side = side_of(event_id, self._salt)
        self._found(event_id, side, normal, signature)
        return Placement(event_id, side, founded=True)

    def resembles(self, text: str) -> bool:
        """Whether the text belongs to a group that is here already."""
        normal = normalise(text)
        return normal in self._exact or self._most_similar(_signature(normal)) is not None

    def _most_similar(self, signature: Any) -> int | None:
        """Between equals the name decides, so that a restart changes nothing."""
        found = []
        for key in self._index.query(signature):
            group_id, _, founder = self._founders[key]
            similarity = signature.jaccard(founder)
            if similarity >= SIMILARITY:
                found.append((similarity, group_id, key))
        return max(found)[2] if found else None

    def _found(self, group_id: str, side: Side, normal: str, signature: Any) -> None:
        key = len(self._founders)
        self._founders.append((group_id, side, signature))
        self._exact[normal] = key
        self._index.insert(key, signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurationPolicy:
    """Absolute caps: what one user or one cluster may contribute does not grow with traffic."""

    max_per_user: int
    max_per_group: int
    held_out_window: int
    # Held-out items from before judge only where there are fewer than `fewest` others.
    held_out_since: datetime | None = None
    fewest: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curated:
    """What a dataset is made of. `dropped` counts examples by the reason they were left out.

    `draws` say what the traffic is (`pipelines.traffic`), oldest first; they are no part of it.
    """

    training: tuple[Example, ...]
    held_out: tuple[HeldOutItem, ...]
    dropped: Mapping[str, int]
    draws: tuple[Draw, ...] = ()


class LabelledSample(NamedTuple):
    """A labelled sample as curation sees it. Newest last in every sequence."""

    example: Example
    segment: str
    held_out_pi: float | None
    occurred_at: datetime | None = None
    audit_pi: float | None = None


def curate(samples: Sequence[LabelledSample], policy: CurationPolicy) -> Curated:
    """Split, decontaminate, deduplicate and cap. Deterministic in the order of `samples`."""
    held_out = held_out_of(samples, policy)
    dropped: Counter[str] = Counter()
    training = [item.example for item in samples if item.example.side is Side.TRAINING]
    training = _without_contamination(training, [item.text for item in held_out], dropped)
    training = _without_repeats(training, dropped)
    training = _capped(training, policy, dropped)
    return Curated(
        training=tuple(training),
        held_out=tuple(held_out),
        dropped=dict(dropped),
        draws=draws_of(samples),
    )


def uncontaminated(
    items: Sequence[HeldOutItem], training_texts: Iterable[str]
) -> list[HeldOutItem]:
    """Held-out items that no text of a training set is a near-duplicate of.

    Curation drops training examples near the held-out items of its time; this drops the items
    that came later.
    """
    index = NearDuplicates(b"contamination")
    for at, text in enumerate(training_texts):
        index.restore(str(at), Side.TRAINING, text)
    return [item for item in items if not index.resembles(item.text)]


def draws_of(samples: Sequence[LabelledSample]) -> tuple[Draw, ...]:
    """Those that were drawn evenly from what came: held-out draws, and audits of the other side."""
    texts = [normalise(sample.example.text) for sample in samples]
    first: dict[str, LabelledSample] = {}
    for sample, text in zip(samples, texts, strict=True):
        first.setdefault(text, sample)
    found = []
    for sample, text in zip(samples, texts, strict=True):
        side = sample.example.side
        pi = sample.held_out_pi if side is Side.HELD_OUT else sample.audit_pi
        if pi is not None:
            earlier = first[text] if first[text] is not sample else None
            found.append(Draw(_item(sample, pi), side, text, earlier and earlier.occurred_at))
    return tuple(found)


def held_out_of(samples: Sequence[LabelledSample], policy: CurationPolicy) -> list[HeldOutItem]:
    """The groups that the held-out draw chose last: one item each, its newest.

    A group that the traffic goes on bringing stays, one that it does not bring any more leaves.
    """
    newest: dict[str, HeldOutItem] = {}
    for sample in samples:
        group, pi = sample.example.group_id, sample.held_out_pi
        if sample.example.side is Side.HELD_OUT and pi is not None:
            newest.pop(group, None)  # so that it comes behind those before it
            newest[group] = _item(sample, pi)
    items = list(newest.values())[-policy.held_out_window :]
    return items[-max(_since(items, policy.held_out_since), policy.fewest, 1) :]


def _item(sample: LabelledSample, pi: float) -> HeldOutItem:
    return HeldOutItem(
        event_id=sample.example.event_id,
        group_id=sample.example.group_id,
        text=sample.example.text,
        label=sample.example.label,
        segment=sample.segment,
        inclusion_probability=pi,
        occurred_at=sample.occurred_at,
    )


def _since(items: Sequence[HeldOutItem], moment: datetime | None) -> int:
    """How many are not from before."""
    return sum(
        moment is None or item.occurred_at is None or item.occurred_at >= moment for item in items
    )


def of_now(
    items: Sequence[HeldOutItem], shift: datetime | None, fewest: int
) -> Sequence[HeldOutItem]:
    """Those since the traffic last changed; at least the newest `fewest`.

    What the traffic was before says nothing about what a student will be asked from now on. The
    few older ones that may have to fill up are a mixture of periods whatever their rates were, and
    none is thinned out for it: each period's items were drawn evenly.
    """
    if shift is None:
        return items
    since = _since(items, shift)
    chosen = items[-max(since, fewest) :]
    if since >= fewest:
        return chosen
    return [replace(item, inclusion_probability=1.0) for item in chosen]


def _without_contamination(
    training: Iterable[Example], held_out: Sequence[str], dropped: Counter[str]
) -> list[Example]:
    """Drop training examples that are near a held-out text (near-duplication is not transitive,
    so two groups on different sides can touch)."""
    index = NearDuplicates(b"contamination")
    for at, text in enumerate(held_out):
        index.restore(str(at), Side.HELD_OUT, text)
    kept = []
    for example in training:
        if index.resembles(example.text):
            dropped["near a held-out item"] += 1
        else:
            kept.append(example)
    return kept


def _without_repeats(training: Iterable[Example], dropped: Counter[str]) -> list[Example]:
    """One example per text and label."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for example in training:
        key = (normalise(example.text), example.label)
        if key in seen:
            dropped["repeated"] += 1
        else:
            seen.add(key)
            kept.append(example)
    return kept


def _capped(
    training: Iterable[Example], policy: CurationPolicy, dropped: Counter[str]
) -> list[Example]:
    """At most so many examples of one user and of one group; the oldest stay."""
    by_user: defaultdict[str, int] = defaultdict(int)
    by_group: defaultdict[str, int] = defaultdict(int)
    kept = []
    for example in training:
        if example.user_key is not None and by_user[example.user_key] >= policy.max_per_user:
            dropped["over the cap of its user"] += 1
            continue
        if by_group[example.group_id] >= policy.max_per_group:
            dropped["over the cap of its group"] += 1
            continue
        if example.user_key is not None:
            by_user[example.user_key] += 1
        by_group[example.group_id] += 1
        kept.append(example)
    return kept


def normalise(text: str) -> str:
    """Case and spacing do not make a text another one."""
    return _SPACE.sub(" ", text).strip().casefold()


def _signature(normal: str) -> Any:
    signature = RMinHash(num_perm=PERMUTATIONS, seed=SEED)
    padded = f" {normal} "
    signature.update([padded[at : at + SHINGLE] for at in range(max(1, len(padded) - SHINGLE + 1))])
    return signature
