"""What a causal student needs of an engine, wherever that runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from pipelines.errors import FlywheelError
from pipelines.students.causal import CausalReply

FailureReason = Literal["ended", "hung"]


class EngineFailed(FlywheelError):
    """The engine gives no answer: it has ended, hangs, or is being started again."""

    def __init__(self, message: str, reason: FailureReason = "ended") -> None:
        super().__init__(message)
        self.reason = reason


class EngineBusy(Exception):
    """Too many texts wait already."""


class Engine(Protocol):
    """One chat model, and the adapters that students have on it, by names."""

    def load(self, name: str, folder: Callable[[], Path]) -> None:
        """Add the adapters that `folder` opens, now and whenever the engine starts again.

        Blocks. Raises `ArtifactDamaged` for what is no adapter, `EngineFailed` otherwise.
        """

    def unload(self, name: str) -> None:
        """Forget the adapters, as soon as there is time. Safe in a finalizer."""

    def read(self, name: str, texts: Sequence[str]) -> list[CausalReply]:
        """The answers of `name`. Blocks; each text goes before those that wait, but only one."""

    async def answer(self, text: str, name: str, *, patient: bool = False) -> CausalReply:
        """What `name` says to `text`. `patient`: behind everybody who is not.

        Raises `EngineBusy` or `EngineFailed`, and soon: an app waits.
        """

    def close(self) -> None:
        """Let go of the chat model. What waits fails."""
