"""What is handed to a child, typed: train, answer, measure, adopt.

Work names what it reads by content hash. Where that lies, how many threads there are and where
the results go is the host's affair: an executor says so in a `Host`, on whatever machine it runs.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec

from pipelines.recipes import FamilyName, Recipe
from pipelines.rows import HeldOutRow

# The kinds of artifacts, and a base model that is none: the files that the settings name.
InputKind = Literal["encoder", "chat_model", "dataset", "student", "report", "source"]

CHECKPOINT_FILE = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 20.0
ANSWERS_FILE = "answers.json"
GOLDEN_FILE = "golden.json"


class Input(msgspec.Struct, frozen=True):
    """Something that work reads, by the hash of its content."""

    kind: InputKind
    digest: str

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.digest}"


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Where things lie on the host that does the work."""

    scratch: str  # the results go here
    inputs: dict[str, str]  # path by an input's name
    threads: int
    vectors: str = ""  # folder of the cached vectors of the work's encoder
    precision: str = ""  # file with the precision that was the faster one here
    checkpoint: str = ""  # folder where an interrupted tuning stands

    def path(self, wanted: Input) -> Path:
        return Path(self.inputs[wanted.name])


class TrainWork(msgspec.Struct, frozen=True, kw_only=True):
    """Make a student of a dataset, by a recipe, from a base model."""

    program: ClassVar[str] = "pipelines.train"

    recipe: Recipe
    task: str
    labels: tuple[str, ...]
    instructions: str
    seed: int
    dataset: Input
    encoder: Input  # the settings': a head reads with it
    max_tokens: int  # that the encoder reads
    base: Input  # what is tuned
    base_name: str
    time_budget: float | None = None  # seconds
    checkpoint: str = ""  # its name, the same for the same order
    checkpoint_seconds: float = CHECKPOINT_SECONDS

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (self.dataset, self.encoder, self.base)


class AnsweringStudent(msgspec.Struct, frozen=True, kw_only=True):
    """A student that answers, with what it was trained on, whatever the settings name now."""

    family: FamilyName
    student: Input
    base: Input
    max_tokens: int | None = None  # that its encoder reads


class AnswerWork(msgspec.Struct, frozen=True, kw_only=True):
    """Let students and the cheap rivals answer held-out items, and two of them kept events."""

    program: ClassVar[str] = "pipelines.answer"

    students: dict[str, AnsweringStudent]  # candidate; champion and sibling where there are some
    dataset: Input  # of the candidate: what the rivals know
    items: tuple[HeldOutRow, ...]
    labels: tuple[str, ...]
    encoder: Input  # of the nearest rival, and of the base model used directly
    max_tokens: int
    kept: tuple[HeldOutRow, ...] = ()  # of the pool: for candidate and champion, behind the items

    @property
    def inputs(self) -> tuple[Input, ...]:
        students = self.students.values()
        read = (one for student in students for one in (student.student, student.base))
        return (self.dataset, self.encoder, *read)


class AnswerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What came of answering, beside the files. Median milliseconds of one answer."""

    items: int
    latency_ms: float


class MeasureWork(msgspec.Struct, frozen=True, kw_only=True):
    """Estimate how long a training with so many examples would take here."""

    program: ClassVar[str] = "pipelines.measure"

    training: TrainWork
    examples: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        """A dataset is not among them: its rows are made up."""
        return (self.training.encoder, self.training.base)


class MeasureFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of the whole training, what was timed, and what would be tuned."""

    seconds: float
    timed: str
    tuned: str = ""


class AdoptWork(msgspec.Struct, frozen=True, kw_only=True):
    """Bring a chat model into the form in which it is kept."""

    program: ClassVar[str] = "pipelines.students.adopt"

    source: Input

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (self.source,)


Work = TrainWork | AnswerWork | MeasureWork | AdoptWork


class Specification(msgspec.Struct, frozen=True, kw_only=True):
    """The file that a child is started with."""

    work: msgspec.Raw
    host: Host


def specification(work: Work, host: Host) -> bytes:
    return msgspec.json.encode({"work": work, "host": host})


def result(struct: msgspec.Struct) -> dict[str, Any]:
    """Facts as a child tells them."""
    told: dict[str, Any] = msgspec.to_builtins(struct)
    return told
