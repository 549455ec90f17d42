"""What an operator can see, as plain data. The console and the API show the same."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from pipelines.types import Decision, Estimate, Verdict
from service.topics import TopicWriter
from storage.live import Live
from storage.reports import Report
from storage.students import StoredDataset, TrainingRun
from storage.ticks import Tick

VersionState = Literal[
    "trained",  # not evaluated yet, or against a champion that serves no more
    "waiting",  # for an operator: the gate says yes
    "insufficient_evidence",
    "gate_failed",
    "approved",  # served once: may be rolled back to
    "champion",
    "rejected",
    "superseded",  # a newer version was approved or waits
]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPoint:
    """One moment of the charts. None where there was nothing to measure."""

    at: datetime
    coverage: float | None = None
    agreement: float | None = None
    low: float | None = None
    high: float | None = None
    spend: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How one task does. Money in the currency of the settings' prices."""

    agreement: Estimate | None = None  # over all assessed traffic
    served_agreement: Estimate | None = None  # over what the student served
    trusted_coverage: Estimate | None = None
    certified_coverage: float | None = None
    labels_bought: int = 0
    labels_given: int = 0
    labels_by_side: Mapping[str, int] = field(default_factory=dict)
    pending_samples: int = 0
    spend_today: float = 0.0
    budget_today: float = 0.0
    saved_total: float = 0.0
    events_total: int = 0
    served_by_student_share: float | None = None
    events_per_day: float | None = None
    cost_per_call: float | None = None  # mean price of one teacher answer
    history: tuple[HistoryPoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the running training is."""

    step: int
    total: int
    examples_per_second: float | None = None
    seconds_left: float | None = None
    phase: str = "training"
    task: str = ""
    loss: float | None = None  # of the last step, where something is tuned


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownOutcome:
    """A paid call of which nobody knows whether the teacher answered. Held until decided."""

    key: str
    event_id: str
    sent_at: datetime
    reserved: float  # money set aside for it
    detail: str
    task: str = ""


class UnknownOutcomes(Protocol):
    """The held calls: `release` asks the teacher again, `drop` never does."""

    def list(self) -> Sequence[UnknownOutcome]: ...

    def release(self, key: str) -> None: ...

    def drop(self, key: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """What operations need from the rest of the learner."""

    figures: Callable[[str], Figures]
    progress: Callable[[], Progress | None]
    next_ticks: Callable[[], Mapping[str, datetime | None]]  # also names all jobs
    request_train: Callable[[str], None]
    published: Callable[[Live], None]
    decided: Callable[[Decision], None]
    topic_writer: Callable[[], TopicWriter]
    unknown_outcomes: UnknownOutcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One student version with what was found and decided about it."""

    task: str
    number: int
    name: str
    student: str
    dataset: str
    base: str  # content hash of the encoder or chat model that it reads with
    recipe: str
    labels_trained: int
    labels_bought: int
    trained_at: datetime
    train_seconds: float
    state: VersionState
    sentence: str  # what the state means for this version
    verdict: Verdict | None = None
    agreement: Estimate | None = None  # with the teacher, on the held-out items
    threshold: float | None = None
    coverage: float | None = None
    report: str | None = None  # of the latest evaluation: what an approval is bound to
    evaluated_at: datetime | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    decision_reason: str | None = None
    can_approve: bool = False
    can_reject: bool = False
    can_roll_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDetail:
    """A version with its report, dataset and what it would save."""

    version: Version
    report: Report | None
    dataset: StoredDataset | None
    teacher_share: float | None  # of all prompts, still asked of the teacher
    saved_per_day: float | None
    training: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """One scheduled job: what it did last, and when it fires next."""

    job: str
    paused: bool
    last: Tick | None
    last_success: datetime | None
    next_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Something that only a person can settle."""

    kind: Literal["approval", "unknown_outcomes", "dead_letters", "terms", "paused", "failed"]
    sentence: str
    link: str
    urgent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """One line of the feed."""

    at: datetime
    kind: Literal["decision", "evaluation", "training", "tick"]
    sentence: str
    task: str | None = None
    link: str | None = None
    problem: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherStatus:
    """Who labels. A scripted teacher is named as such wherever it shows."""

    model: str
    scripted: bool
    terms: str
    terms_allow_training: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """One task at a glance."""

    task: str
    labels: int  # size of the label set
    target: float
    champion: Version | None
    waiting: Version | None
    newest: Version | None
    versions: int
    serving: str  # a sentence
    quality: str  # a sentence
    figures: Figures
    last_run: TrainingRun | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Everything on the overview."""

    at: datetime
    tasks: tuple[TaskStatus, ...]
    needs: tuple[Need, ...]
    jobs: tuple[JobStatus, ...]
    all_paused: bool
    progress: Progress | None
    teacher: TeacherStatus
    dead_letters: int
    unknown_outcomes: int
    activity: tuple[Activity, ...]
