"""The hashes that decide what is bought, trained or judged again.

Each is taken over fields that are listed here, one by one. A new field of a task, a recipe or an
item changes nothing until it is added to a list, and adding it has a price: every label is bought
again, every student trained or judged again once. `tests/core/test_identities.py` holds their
values.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import Any

import msgspec

from pipelines.recipes import Recipe
from pipelines.types import Example, HeldOutItem, SourceOffset, Task

IMPORTED = "import-"  # what the ids begin with that an import gives
SHOWN_OF_GIVEN = 60  # characters of a producer's own id, so that it can be found again
# What of a recipe decides the weights that come out of it, and what was taken for it once.
OF_A_RECIPE = (
    "name",
    "family",
    "summary",
    "epochs",
    "learning_rate",
    "batch_size",
    "accumulate",
    "rank",
    "label_smoothing",
    "max_tokens",
    "int8",
    "memory_mb",
    "bytes_per_weight",
)


def event_identity(
    given: str, content: bytes, *, task: str | None, producer: str | None, source: SourceOffset
) -> str:
    """The one id of an event in this program: two different prompts never share one.

    What producers give (`given`; empty: nothing) is unique only as far as they care: servers have
    said "", "0", or the id of a cached answer. So it counts together with the task, who signed
    (None: nobody), the topic's incarnation and the content. Told again with all of them the same,
    it is the same event. Without a given id the place on the topic is the id. What is imported
    again is the same also on a topic that was made anew.
    """
    incarnation = "" if given.startswith(IMPORTED) else _short(source.incarnation)
    if not given:
        place = f"{source.topic}/{source.partition}/{source.offset}"
        return f"{place}~{incarnation}" if incarnation else place
    digest = blake2b(content, digest_size=12)
    for part in (task or "", producer or "unsigned", incarnation, given):
        digest.update(b"\0" + part.encode())
    return f"{given[:SHOWN_OF_GIVEN]}~{digest.hexdigest()}"


@lru_cache(maxsize=16)  # one for all events of a topic
def _short(incarnation: str) -> str:
    return content_digest([incarnation])[:8] if incarnation else ""


def prompt_version(task: Task) -> str:
    """Changes whenever what the teacher reads, or how its answer is read, changes."""
    parts = [task.instructions, list(task.labels), task.answer_pointer]
    return sha256(canonical(parts)).hexdigest()[:12]


def question_key(task: Task, parameters: dict[str, Any], repeat: int = 0) -> str:
    """Under which an answer of the teacher is remembered: the same key is never paid twice.

    `parameters` are those of the call, of `chat.completions.create`. `repeat`: which of
    the times it is that the same question is asked again on purpose; 0: the first.
    """
    identity: dict[str, Any] = {"prompt_version": prompt_version(task), "parameters": parameters}
    if repeat:
        identity["repeat"] = repeat
    return sha256(canonical(identity)).hexdigest()


def dataset_content(training: Iterable[Example]) -> str:
    """What a student would learn: texts, labels and weights in their order."""
    return content_digest(
        part for example in training for part in (example.text, example.label, repr(example.weight))
    )


def settings_digest(recipe: Recipe, *, base_model: str, encoder: str, seed: int) -> str:
    """Of all in the settings that decides what a recipe makes of a dataset.

    `base_model` is the path of the settings ("None" without one), `encoder` the content hash of
    the settings' encoder, where the recipe's student reads with it or is tuned from it.
    """
    return content_digest((*_of(recipe), base_model, encoder, str(seed)))


def training_fingerprint(
    recipe: Recipe, task: Task, *, base: str, seed: int, time_budget: float | None
) -> str:
    """Of all that decides the weights, beside the dataset: a checkpoint belongs to one of them."""
    return content_digest(
        (*_of(recipe), base, str(seed), str(time_budget), *task.labels, task.instructions)
    )


def snapshot_hash(items: Sequence[HeldOutItem]) -> str:
    """Content hash of a held-out snapshot, whatever the order of its items.

    A weight counts where it is not 1: snapshots from before there were any keep their hash.
    """
    rows = sorted(
        (
            item.event_id,
            item.group_id,
            item.text,
            item.label,
            item.segment,
            item.inclusion_probability.hex(),
            *((item.weight.hex(),) if item.weight != 1.0 else ()),
        )
        for item in items
    )
    return blake2b(msgspec.json.encode(rows), digest_size=16).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON bytes that are equal for equal values."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def content_digest(parts: Iterable[str]) -> str:
    """A hash of a sequence of texts, each with its end marked."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _of(recipe: Recipe) -> list[str]:
    return [repr((name, getattr(recipe, name))) for name in OF_A_RECIPE]
