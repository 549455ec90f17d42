"""Base models: where they lie, whether one can be loaded, and how heavy it is."""

from importlib.util import find_spec
from math import prod
from pathlib import Path

from safetensors import safe_open

from pipelines.errors import SettingsError, TrainingStackMissing
from pipelines.recipes import Recipe
from pipelines.students.families import family_of

TRAINING_STACK = ("torch", "transformers", "peft")
GGUF = ".gguf"
GGUF_BITS = 5  # to the weight, in the usual quantizations


def memory_needed_mb(recipe: Recipe, base: Path) -> int:
    """About what a trainer needs, resident, to tune this base model."""
    return recipe.memory_mb + int(count_weights(base) * recipe.bytes_per_weight / 2**20)


def count_weights(base: Path) -> int:
    """Weights of a Hugging Face folder, from its headers; of a GGUF file an estimate."""
    if base.suffix == GGUF:
        return base.stat().st_size * 8 // GGUF_BITS
    total = 0
    for path in base.glob("*.safetensors"):
        with safe_open(str(path), framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                total += prod(file.get_slice(name).get_shape())
    return total


def over_memory_limit(recipe: Recipe, base: Path, limit_mb: int) -> str | None:
    """Why a trainer would be ended for its size; None where it would not."""
    needed = memory_needed_mb(recipe, base)
    if needed <= limit_mb:
        return None
    return (
        f"{recipe.name} on {base.name} needs about {needed} MB, and trainer.memory_limit_mb is "
        f"{limit_mb}: raise it, or name a smaller base model"
    )


def over_free_memory(recipe: Recipe, base: Path, free_mb: int) -> str | None:
    """Why this host has no room for a trainer now; None where it has."""
    needed = memory_needed_mb(recipe, base)
    if needed <= free_mb:
        return None
    return f"{recipe.name} on {base.name} needs about {needed} MB, and {free_mb} MB are free"


def require_training_stack() -> None:
    """Raise `TrainingStackMissing`, with what to do, where torch and its companions are absent."""
    missing = [name for name in TRAINING_STACK if find_spec(name) is None]
    if missing:
        raise TrainingStackMissing(
            f"the training stack is not installed ({', '.join(missing)}); run `make setup` "
            "(several GB), or use the recipe `head`, which needs none of it"
        )


def installed_base(recipe: Recipe) -> Path:
    """The base model that is installed with the training stack: a folder, or a GGUF file."""
    package, name = family_of(recipe).installed_base
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(
            f"recipes.{recipe.name}.base_model names no model, and the package {package} is not "
            "installed; run `make setup`, or name a folder"
        )
    return Path(spec.submodule_search_locations[0]) / name


def check_base(recipe: Recipe, base: Path) -> None:
    """Raise `SettingsError` for a base model that nothing can be loaded from."""
    setting = f"recipes.{recipe.name}.base_model"
    if base.suffix == GGUF:
        if not family_of(recipe).reads_gguf:
            raise SettingsError(f"{setting}: an encoder is a folder, not the GGUF file {base}")
        if not base.is_file():
            raise SettingsError(f"{setting}: there is no file {base}")
        return
    if not (base / "config.json").is_file():
        raise SettingsError(
            f"{setting}: {base} is no Hugging Face model folder (it has no config.json)"
        )
    if not list(base.glob("*.safetensors")):
        raise SettingsError(
            f"{setting}: {base} has no *.safetensors; other weights are never loaded, because "
            "a pickle can run code"
        )
