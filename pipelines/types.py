"""The nouns of the flywheel: frozen, plain, free of any database or network type."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple

import msgspec

from pipelines.pairs import Flip, Pooled
from pipelines.reach import Reach, Shown
from pipelines.recipes import FamilyName

# Ingest makes structs by the hundred thousand: none can hold itself, so none is collected.
Headers = tuple[tuple[str, bytes], ...]


class Record(NamedTuple):
    """One record as the topic keeps it. `value` is None for a tombstone."""

    partition: int
    offset: int
    value: bytes | None
    headers: Headers
    timestamp_ms: int


class Message(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One chat message; a tool's turn has its ids, so that the teacher can be asked with it."""

    role: str
    content: str
    tool_calls: Any = None
    tool_call_id: str | None = None


class SourceOffset(msgspec.Struct, frozen=True, gc=False):
    """Where the topic keeps a record."""

    topic: str
    partition: int
    offset: int
    incarnation: str = ""  # of the topic: one that was made anew begins its offsets again


class StudentAnswer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a student says to one prompt. `confidence` is calibrated, in [0, 1]."""

    version: str
    label: str
    confidence: float
    reach: Reach | None = None  # None: of a student without prototypes
    unsure: str = ""  # why its answer is not promised; empty: it is


class Feedback(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a person said about an answer; `correction` is the right label, if they gave it."""

    verdict: Literal["good", "bad"]
    correction: str | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of one teacher call."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


ServedBy = Literal["student", "teacher", "app"]


class PromptEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One production prompt and what became of it. Produced by `pipelines.decode` only."""

    event_id: str
    task: str | None  # None: no task claims the model
    model: str
    occurred_at: datetime
    messages: tuple[Message, ...]
    answer: str | None = None  # what the app received
    served_by: ServedBy = "app"
    student: StudentAnswer | None = None  # set also when the teacher served in the end
    teacher_answer: str | None = None  # only from a source whose word counts
    teacher_model: str | None = None
    usage: Usage | None = None
    feedback: Feedback | None = None
    user_key: str | None = None  # keyed hash, never the user's own name
    attributes: Mapping[str, str] = {}
    asked: Mapping[str, Any] = {}  # what decides about the answer beside the messages
    past: str = ""  # why no student may answer it; empty: one may
    source: SourceOffset


class Side(StrEnum):
    """Where a near-duplicate group belongs, for ever."""

    TRAINING = "training"
    HELD_OUT = "held_out"


class SampleReason(StrEnum):
    """Why an event was chosen. One event has one reason: the first that applies."""

    HELD_OUT = "held_out"  # uniform over held-out groups: the gate's evidence
    AUDIT = "audit"  # uniform over everything: the live estimates
    INVALID = "invalid"  # the answer was empty or outside the label set
    FEEDBACK = "feedback"  # a person said it was wrong
    NOVEL = "novel"  # further from the training data than the evidence reaches
    UNCERTAIN = "uncertain"  # the learning draw
    COLD_START = "cold_start"  # too few labels to be choosy
    GIVEN = "given"  # a teacher had answered already
    POOL = "pool"  # of the held-out side, kept without asking for its label
    DISAGREEMENT = "disagreement"  # of the pool: candidate and champion differ, so it was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the student of one task does. See architecture.md, "What a task is"."""

    name: str
    models: tuple[str, ...]
    labels: tuple[str, ...]
    answer_pointer: str | None = None  # JSON pointer to the label; None: the answer is the label
    reads: Literal["last_user", "all_user", "conversation"] = "last_user"
    instructions: str = ""
    segment_by: str = "label"  # "label" or the name of an attribute


class Assessment(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How likely the answer of one event is wrong, and why we think so."""

    failure_probability: float
    segment: str
    triggers: tuple[SampleReason, ...] = ()


class Draws(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which draws chose an event, each with its inclusion probability (None: not chosen)."""

    audit: float | None = None
    held_out: float | None = None
    learning: float | None = None
    pool: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An event chosen for the teacher or for the training set."""

    event: PromptEvent
    text: str  # what the classifier reads
    reason: SampleReason
    draws: Draws
    group_id: str
    side: Side
    assessment: Assessment | None
    policy_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A record that could not be decoded, kept so that it can be looked at and replayed."""

    topic: str
    partition: int
    offset: int
    payload: bytes | None
    headers: Headers
    reason: str
    received_at: datetime | None = None
    replayed_at: datetime | None = None


LabelSource = Literal["bought", "given", "correction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One answer that counts. Money in the currency of the settings' prices."""

    event_id: str
    label: str
    source: LabelSource
    teacher_model: str
    prompt_version: str
    terms: str
    weight: float = 1.0
    votes: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    ledger_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A labelled text on one side of the split."""

    event_id: str
    text: str
    label: str
    group_id: str
    side: Side
    weight: float = 1.0
    user_key: str | None = None
    reason: SampleReason = SampleReason.GIVEN
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its interval. `n` counts the items that it rests on."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutItem:
    """One item that judges. Of those that compare students, one per near-duplicate group."""

    event_id: str
    group_id: str
    text: str
    label: str  # the teacher's; empty: of an event of the pool that has none
    segment: str
    inclusion_probability: float = 1.0
    occurred_at: datetime | None = None
    weight: float = 1.0  # so many draws of the traffic it counts for (`pipelines.traffic`)


class LabelledAnswer(NamedTuple):
    """A label and how probable it is that the teacher would say the same."""

    label: str
    confidence: float
    distance: float | None = None  # of the text from the label's nearest prototype (cosine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one student (or rival) says to a held-out snapshot, in the snapshot's order."""

    name: str
    labels: tuple[str, ...]
    confidences: tuple[float, ...]
    distances: tuple[float | None, ...] = ()  # empty: of a rival without prototypes


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCounts:
    """Two students on the same items: how often only one of them was right."""

    wins: int = 0  # the candidate is right, the other wrong
    losses: int = 0  # the candidate is wrong, the other right
    ties: int = 0  # both right or both wrong

    @property
    def total(self) -> int:
        return self.wins + self.losses + self.ties


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One segment's agreement, and against the champion where there is one."""

    segment: str
    agreement: Estimate
    difference: Estimate | None = None
    pairs: PairCounts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The cascade threshold and what is promised above it.

    `value` is None when nothing can be certified: then every request is unsure.
    `agreement_above` has its exact one-sided bound as `low`; `coverage` is the share of
    held-out items above the threshold. `near` and `radius` are cosine distances: half of the
    evidence lies within `near`, and nothing beyond `radius` is trusted (None: no prototypes).
    """

    value: float | None
    target: float
    confidence_level: float
    agreement_above: Estimate | None
    coverage: float
    reason: str
    near: float | None = None
    radius: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Candidate, champion and rivals on one held-out snapshot.

    `pairs`, `difference`, `flips` and `negative_flip_rate` against the champion rest on the pairs
    of `pooled` too; everything else on the items alone, of which every label is known.
    """

    snapshot: str  # content hash of the items
    items: int
    agreement: Mapping[str, Estimate]  # by name: candidate, champion, base, majority, nearest
    difference: Mapping[str, Estimate]  # candidate minus each other, paired
    slices: tuple[Slice, ...]  # worst first
    flips: tuple[Flip, ...]  # candidate against champion, negative first
    negative_flip_rate: Estimate | None
    calibration_error: Estimate
    threshold: Threshold
    champion_threshold: Threshold | None
    pairs: Mapping[str, PairCounts] = field(default_factory=dict)  # by name, as difference
    by_label: Mapping[str, PairCounts] = field(default_factory=dict)  # against the champion
    # How likely a gain in trusted coverage this big is between two equally good students.
    coverage_gain_p: float | None = None
    shown: Shown | None = None  # by the candidate, within its radius
    period: tuple[datetime, datetime] | None = None  # of the items' events: oldest, newest
    unusable_answers: int = 0  # of the candidate: no label, or a confidence outside [0, 1]
    # Without a threshold: about how many items it would take; 0: more would not help.
    items_until_certified: int | None = None
    pooled: Pooled | None = None


Verdict = Literal["better", "non_inferior", "worse", "insufficient_evidence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question of the gate, with its number and its threshold."""

    name: str
    passed: bool
    value: float | None
    threshold: float | None
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """The gate's answer. Only `promotable` reports can be approved."""

    verdict: Verdict
    checks: tuple[Check, ...]
    attempt: int  # the how-manieth candidate that was compared in its calendar year
    alpha: float  # what this look at it may spend of the year's alpha

    @property
    def promotable(self) -> bool:
        """Fail closed: every check passed and the evidence suffices."""
        return (
            bool(self.checks)
            and all(check.passed for check in self.checks)
            and self.verdict in ("better", "non_inferior")
        )


BY_ITSELF = "flywheel"  # who decided or paused, when nobody did
DecisionAction = Literal["approve", "reject", "rollback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an operator (or an automatic rollback) decided. A link of a hash chain."""

    sequence: int
    task: str
    action: DecisionAction
    student: str  # content hash
    report: str | None  # content hash of the report that was looked at
    operator: str
    reason: str
    decided_at: datetime
    previous_digest: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentVersion:
    """A published student. `name` is what answers carry, for example `support-v3-1f2e3d4c`."""

    task: str
    number: int
    student: str  # content hash of the artifact
    dataset: str
    family: FamilyName
    base_kind: Literal["encoder", "chat_model"]
    base: str  # content hash of what it reads with
    recipe: str
    labels_trained: int
    labels_bought: int
    trained_at: datetime
    train_seconds: float
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.task}-v{self.number}-{self.student[:8]}"
