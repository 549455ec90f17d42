"""What a loaded student is to the gateway: what it is asked, and what it says."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pipelines.errors import FlywheelError
from pipelines.types import LabelledAnswer


class StudentReply(NamedTuple):
    """What a student says to a text, how much of the text was read, and how far it lies from the
    training data (`pipelines.types.LabelledAnswer`)."""

    label: str
    confidence: float
    tokens: int
    truncated: bool
    distance: float | None = None


class StudentFailed(FlywheelError):
    """The student gives no answer to this text. The teacher may."""


class Student(Protocol):
    """What reads a text and names a label."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    async def answer(self, text: str, *, patient: bool = False) -> StudentReply:
        """What it says to `text`. `patient`: behind everybody who is not."""

    def answer_now(self, texts: Sequence[str]) -> list[LabelledAnswer]:
        """The same, blocking, for a student that does not serve yet."""
