"""Where a tuning stands, on disk: weights and moments as safetensors, so that it can resume."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pipelines.work import CHECKPOINT_FILE

if TYPE_CHECKING:
    import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoint:
    """The checkpoint of one run in a folder of its own. A torn one cannot be: it is renamed in."""

    def __init__(
        self,
        folder: Path,
        parameters: "dict[str, torch.nn.Parameter]",
        optimizer: "torch.optim.Optimizer",
    ) -> None:
        self._path = folder / CHECKPOINT_FILE
        self._parameters = parameters
        self._optimizer = optimizer

    def save(self, losses: list[float], precision: str) -> None:
        """After as many steps as there are losses."""
        tensors = {f"weight.{name}": value.detach() for name, value in self._parameters.items()}
        for name, parameter in self._parameters.items():
            state = self._optimizer.state[parameter]
            tensors |= {f"{moment}.{name}": state[moment] for moment in MOMENTS if state}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        save_file(tensors, str(temporary), {"losses": json.dumps(losses), "precision": precision})
        os.replace(temporary, self._path)

    def restore(self, precision: str) -> list[float]:
        """The losses of the steps that are done; none where there is nothing to resume.

        A checkpoint that does not fit, for example of another precision, is not used.
        """
        try:
            with safe_open(str(self._path), framework="pt") as file:
                told = file.metadata()
                losses: list[float] = json.loads(told["losses"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, LookupError, ValueError):
            return []
        if told.get("precision") != precision or not self._fits(tensors):
            return []
        self._take(tensors, len(losses))
        return losses

    def _fits(self, tensors: dict[str, Any]) -> bool:
        return all(
            f"{part}.{name}" in tensors and tensors[f"{part}.{name}"].shape == parameter.shape
            for name, parameter in self._parameters.items()
            if parameter.requires_grad
            for part in ("weight",)
        )

    def _take(self, tensors: dict[str, Any], steps: int) -> None:
        import torch

        for name, parameter in self._parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            if f"{MOMENTS[0]}.{name}" in tensors:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(steps), device=parameter.device),
                    **{
                        moment: tensors[f"{moment}.{name}"].to(parameter.device)
                        for moment in MOMENTS
                    },
                }
