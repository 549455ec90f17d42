"""In which precision a model is tuned on this machine: timed once, then remembered."""

import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from pipelines.recipes import Recipe
from pipelines.students.causal import best_device
from pipelines.students.families import Tuning

Name = Literal["float32", "bfloat16"]
NAMES: tuple[Name, ...] = get_args(Name)

TIMED_STEPS = 2
# Half the bits cost accuracy; they have to earn it.
WORTH_IT = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The faster of fp32 and bf16 autocast, with the seconds that a batch took in each.

    It is remembered, because a second timing could fall out otherwise and the same dataset
    would no longer give the same weights.
    """

    name: Name
    device: str
    float32_seconds: float
    bfloat16_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.name} on {self.device} (a batch takes {self.float32_seconds:.2f} s in float32, "
            f"{self.bfloat16_seconds:.2f} s in bfloat16)"
        )

    @property
    def seconds(self) -> float:
        """Of one batch, forward and backward."""
        return self.float32_seconds if self.name == "float32" else self.bfloat16_seconds

    def autocast(self) -> AbstractContextManager[None]:
        return _autocast(self.device, self.name)

    @classmethod
    def choose(cls, tuning: Tuning, recipe: Recipe, file: Path) -> "Precision":
        """As remembered in `file`, or by timing a batch of usual length."""
        import torch

        device = best_device()
        key = f"{recipe.name} {tuning.description} {recipe.batch_size} {device} {torch.__version__}"
        known = json.loads(file.read_text()) if file.exists() else {}
        if key not in known:
            seconds = _time(tuning, recipe, device)
            faster = seconds["bfloat16"] < WORTH_IT * seconds["float32"]
            chosen = cls(
                name="bfloat16" if faster else "float32",
                device=device,
                float32_seconds=round(seconds["float32"], 4),
                bfloat16_seconds=round(seconds["bfloat16"], 4),
            )
            known[key] = asdict(chosen)
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(known, indent=1))
            os.replace(temporary, file)
        return cls(**known[key])


def _time(tuning: Tuning, recipe: Recipe, device: str) -> dict[Name, float]:
    """Seconds of one batch in each, taken by turns: other work on the host slows both alike."""
    import torch

    middle = len(tuning.lengths) // 2
    order = sorted(range(len(tuning.lengths)), key=lambda row: tuning.lengths[row])
    start = max(0, middle - recipe.batch_size // 2)
    batch = tuple(order[start : start + recipe.batch_size])

    def step(name: Name) -> float:
        started = time.perf_counter()
        with _autocast(device, name):
            loss = tuning.loss(batch)
        torch.autograd.backward(loss)
        _wait_for(device)()
        return time.perf_counter() - started

    try:
        rounds = [{name: step(name) for name in NAMES} for _ in range(1 + TIMED_STEPS)]
    finally:
        for parameter in tuning.parameters().values():
            parameter.grad = None
    # The first round sets up.
    return {name: min(found[name] for found in rounds[1:]) for name in NAMES}


def _autocast(device: str, name: Name) -> AbstractContextManager[None]:
    import torch

    on = name == "bfloat16"
    context: AbstractContextManager[None] = torch.autocast(device, torch.bfloat16, enabled=on)
    return context


def _wait_for(device: str) -> Callable[[], None]:
    import torch

    return torch.cuda.synchronize if device == "cuda" else lambda: None
