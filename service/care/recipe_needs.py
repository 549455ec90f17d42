"""What each recipe needs on this host: packages, a base model, memory, and minutes by a timed step.

Without the timing nothing heavy is imported.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import psutil

from pipelines.errors import FlywheelError
from pipelines.recipes import RECIPE_NAMES, RECIPES, Recipe, RecipeName
from pipelines.students.bases import (
    GGUF,
    count_weights,
    memory_needed_mb,
    over_free_memory,
    over_memory_limit,
    require_training_stack,
)
from pipelines.students.encoder import installed_encoder_files
from pipelines.students.families import family_of
from pipelines.work import AdoptWork, Input, MeasureFacts, MeasureWork, TrainWork
from service.host.logs import quiet
from service.learner.executor import Executor, LocalExecutor, Places
from service.settings import Settings
from service.terminal import duration, table

# Where no task says otherwise.
USUAL_LABELS = tuple(f"label_{number}" for number in range(20))


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """One recipe on this host. `problem` says in a sentence why it cannot be used, or is empty."""

    recipe: RecipeName
    summary: str
    tasks: tuple[str, ...]  # that use it; a challenger says so
    training_stack: bool  # whether it is needed
    base: Path | None
    weights: int | None  # of the base model
    weights_estimated: bool
    memory_mb: int  # without the base model's part where that is not known
    problem: str
    warning: str
    seconds: float | None = None  # of a training, timed
    timed: str = ""


def recipe_needs(settings: Settings) -> list[Needs]:
    """All recipes, without timing anything."""
    return [needs_of(settings, name) for name in RECIPE_NAMES]


def needs_of(settings: Settings, name: RecipeName) -> Needs:
    """One recipe, without timing anything."""
    recipe = settings.recipe(name)
    base, problem = _base(settings, recipe)
    memory, warning = recipe.memory_mb, ""
    if base is not None:
        memory = memory_needed_mb(recipe, base)
        problem = over_memory_limit(recipe, base, settings.trainer.memory_limit_mb) or ""
        warning = over_free_memory(recipe, base, free_mb()) or ""
    return Needs(
        recipe=name,
        summary=recipe.summary,
        tasks=tuple(_used_by(settings, name)),
        training_stack=recipe.tunes,
        base=base,
        weights=count_weights(base) if base is not None else None,
        weights_estimated=base is not None and base.suffix == GGUF,
        memory_mb=memory,
        problem=problem,
        warning="" if problem else warning,
    )


def free_mb() -> int:
    return int(psutil.virtual_memory().available // 2**20)


def _base(settings: Settings, recipe: Recipe) -> tuple[Path | None, str]:
    if not recipe.tunes:
        return None, ""
    try:
        require_training_stack()
        return settings.base_model(recipe.name), ""
    except FlywheelError as error:
        return None, str(error)


def _used_by(settings: Settings, name: RecipeName) -> Iterator[str]:
    for task, chosen in settings.tasks.items():
        if chosen.recipe == name:
            yield task
        elif chosen.challenger == name:
            yield f"{task} (challenger)"


def timed_needs(settings: Settings, examples: int, tell: Callable[[str], None]) -> Iterator[Needs]:
    """All recipes, each after a batch was timed where it can be used.

    The timing runs under the trainer's limits; `tell` hears how far it is.
    """
    for needs in recipe_needs(settings):
        if needs.problem:
            yield needs
            continue
        tell(f"{needs.recipe}: timing a step")
        scratch = tempfile.TemporaryDirectory(prefix="flywheel-recipes-")
        with quiet(logging.WARNING), scratch as folder:
            try:
                found = _measure(settings, needs, examples, Path(folder), tell)
            except FlywheelError as error:
                yield replace(needs, problem=f"{needs.recipe} cannot be timed: {error}")
                continue
        yield replace(needs, seconds=found.seconds, timed=found.timed)


def _measure(
    settings: Settings, needs: Needs, examples: int, folder: Path, tell: Callable[[str], None]
) -> MeasureFacts:
    def note(progress: Mapping[str, Any]) -> None:
        tell(f"{needs.recipe}: {progress['phase']} {progress['step']} of {progress['total']}")

    places = Places(
        find=_nothing_else,
        vectors=lambda encoder: folder,
        checkpoint=lambda task, name: folder,
        precision=folder / "precision.json",
    )
    executor = LocalExecutor(settings.trainer, places, note)
    users = (one for one in settings.tasks.values() if needs.recipe in (one.recipe, one.challenger))
    task = next(users, None)
    encoder, base = Input("source", "encoder"), Input("source", "base")
    executor.offer(encoder, _encoder_folder(settings, folder))
    executor.offer(base, _adopted(needs.base, executor, folder) if needs.base else folder)
    training = TrainWork(
        recipe=settings.recipe(needs.recipe),
        task="measure",
        labels=tuple(task.labels) if task else USUAL_LABELS,
        instructions=task.instructions if task else "",
        seed=settings.trainer.seed,
        dataset=Input("dataset", ""),
        encoder=encoder,
        max_tokens=settings.encoder.max_tokens,
        base=base,
        base_name=needs.base.name if needs.base else "",
    )
    told = executor.run(MeasureWork(training=training, examples=examples), folder / "run")
    return msgspec.convert(told, MeasureFacts)


def _nothing_else(wanted: Input) -> Path:
    raise AssertionError(f"a measurement reads no {wanted.kind}")


def _adopted(base: Path, executor: Executor, folder: Path) -> Path:
    """A GGUF file is converted first, as it would be for a training."""
    if base.suffix != GGUF:
        return base
    scratch, source = folder / "adopted", Input("source", "gguf")
    scratch.mkdir()
    executor.offer(source, base)
    executor.run(AdoptWork(source=source), scratch)
    return scratch


def _encoder_folder(settings: Settings, folder: Path) -> Path:
    if settings.encoder.path is not None:
        return settings.encoder.path
    gathered = folder / "encoder"
    gathered.mkdir()
    for name, (path, _) in installed_encoder_files().items():
        (gathered / name).symlink_to(path.resolve())
    return gathered


# As lines of text.


def needs_lines(found: Sequence[Needs], examples: int, limit_mb: int) -> Iterator[str]:
    """The table, then what each recipe is, then what stands in the way."""
    timed = any(one.seconds is not None for one in found)
    rows = [
        (
            one.recipe,
            "core and training stack" if one.training_stack else "core",
            _base_name(one),
            _weights(one),
            f"{one.memory_mb:,} MB",
            *((duration(one.seconds) if one.seconds is not None else "-",) if timed else ()),
            ", ".join(one.tasks) or "-",
            "cannot be used" if one.problem else "ready",
        )
        for one in found
    ]
    heads = ["recipe", "packages", "base model", "weights", "memory"]
    heads += [f"{examples:,} labels"] if timed else []
    yield from table([*heads, "used by", ""], rows)
    yield ""
    for one in found:
        yield f"{one.recipe}: {one.summary}"
        if one.timed:
            yield f"    timed: {one.timed}"
    yield ""
    yield (
        f"A trainer may use {limit_mb:,} MB (trainer.memory_limit_mb); {free_mb():,} MB are free."
    )
    if any(one.weights_estimated for one in found):
        yield "~ estimated from the size of a GGUF file, at 5 bits a weight."
    for sentence in dict.fromkeys(one.problem or one.warning for one in found):
        if sentence:
            yield f"! {sentence}"


def _base_name(needs: Needs) -> str:
    if needs.base is None:
        return "-" if needs.training_stack else "the encoder"
    # The files of an installed encoder lie in a folder whose name says nothing.
    usual = needs.base.name == family_of(RECIPES[needs.recipe]).installed_base[1]
    return "installed" if usual and needs.base.is_dir() else needs.base.name


def _weights(needs: Needs) -> str:
    if needs.weights is None:
        return "-"
    about = "~" if needs.weights_estimated else ""
    return f"{about}{needs.weights / 1e6:,.0f} M"
