"""The student families: what a base model is while it is tuned."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.child import Channel

if TYPE_CHECKING:
    import torch

Batch = tuple[int, ...]  # numbers of rows


class Tuning(Protocol):
    """A base model while it is tuned."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each training row."""

    @property
    def description(self) -> str:
        """What is tuned, for people."""

    def parameters(self) -> "dict[str, torch.nn.Parameter]":
        """What is tuned, by name."""

    def loss(self, rows: Batch) -> "torch.Tensor":
        """The loss of some training rows, weighted by their labels' weights: a scalar."""

    def save(self, scratch: Path, channel: Channel) -> dict[str, Any]:
        """Calibrate, write the student's files and return what the manifest should say."""
