"""The recipes: the ways in which a student is made. Values only; `pipelines.train` follows them."""

from dataclasses import dataclass
from typing import Literal, get_args

RecipeName = Literal["head", "encoder-lora", "encoder-full", "causal-lora"]
# What serves the student: a head on an ONNX encoder, or adapters on a chat model. The table is in
# `pipelines.students.families`.
FamilyName = Literal["head", "causal"]

RECIPE_NAMES: tuple[RecipeName, ...] = get_args(RecipeName)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one student is made. A `rank` of 0 tunes every weight; `epochs` may be a fraction."""

    name: RecipeName
    family: FamilyName
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
