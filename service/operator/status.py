"""What an operator can see, as plain data. The console and the API show the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from pipelines.guard import Guard
from pipelines.statistics.ceiling import TeacherError
from pipelines.types import Estimate, Verdict
from storage.datasets import StoredDataset
from storage.reports import Report
from storage.runs import TrainingRun
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

# Why ingest reads nothing.
HoldReason = Literal["operator", "poison", "disk"]
SILENT = timedelta(seconds=30)  # a gateway reports every few seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPoint:
    """One moment of the charts. None where there was nothing to measure."""

    at: datetime
    coverage: float | None = None
    coverage_low: float | None = None
    coverage_high: float | None = None
    agreement: float | None = None
    low: float | None = None  # of the agreement
    high: float | None = None
    spend: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingAudits:
    """Audits of served answers without a label, and what the agreement could be at most."""

    count: int
    worst: float  # the interval's lower end, were all of them wrong
    best: float  # its upper end, were all of them right


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How one task does. Money in the currency of the settings' prices."""

    agreement: Estimate | None = None  # over all assessed traffic
    served_agreement: Estimate | None = None  # over what the student served as promised
    served_missing: MissingAudits | None = None
    forced_agreement: Estimate | None = None  # over what it answered unsure, with nobody to ask
    forced_share: float | None = None  # of the last day's events
    novel_share: float | None = None  # of the last day's assessed events: beyond its reach
    ceiling: Estimate | None = None  # how often the teacher says the same when asked again
    teacher_errors: tuple[TeacherError, ...] = ()
    parked: int = 0  # prompts on which it contradicts itself: they train nobody
    serves_nothing: bool = False  # the champion has no threshold
    guards: tuple[Guard, ...] = ()  # why less is trusted than was approved
    shifted: bool = False  # one of them says that the traffic is another, or the student worse
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
    trigger: str = ""  # why the next training is due, or why not
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
class IngestState:
    """What ingest is doing right now."""

    held: str | None = None  # why it reads nothing, in a sentence
    reason: HoldReason | None = None
    lag: int = 0  # records not read yet
    polled_at: float = 0.0  # of the monotonic clock


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySeen:
    """What one gateway last reported."""

    name: str
    heard_at: datetime
    serving: Mapping[str, str] = field(default_factory=dict)  # version name by task
    failed: Mapping[str, str] = field(default_factory=dict)  # why not what is published


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownOutcome:
    """A paid call of which nobody knows whether the teacher answered. Held until decided."""

    key: str
    event_id: str
    sent_at: datetime
    reserved: float  # money set aside for it
    detail: str
    task: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One student version with what was found and decided about it."""

    task: str
    number: int
    name: str
    student: str
    dataset: str
    base_kind: str  # encoder or chat_model
    base: str  # content hash of what it reads with
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
    serves_nothing: str = ""  # what its approval would mean, where no threshold was certified
    above_ceiling: str = ""  # or where more is promised than the teacher agrees with itself
    can_reject: bool = False
    can_roll_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionEvent:
    """One thing that became of a version."""

    at: datetime
    sentence: str
    by: str = ""  # the operator, where a person did it


@dataclass(frozen=True, slots=True, kw_only=True)
class Reign:
    """How long one version was the champion, and who made it so."""

    task: str
    number: int | None  # None: the database does not know the student any more
    name: str
    since: datetime
    until: datetime | None  # None: it still is
    rolled_back: bool  # it came back by a rollback, not by an approval
    operator: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDetail:
    """A version with its report, dataset and what it would save."""

    version: Version
    report: Report | None
    dataset: StoredDataset | None
    teacher_share: float | None  # of all prompts, still asked of the teacher
    saved_per_day: float | None
    ceiling: str  # a sentence: how far the teacher agrees with itself; empty where unknown
    training: Mapping[str, object]
    events: tuple[VersionEvent, ...] = ()  # oldest first


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """One scheduled job: what it did last, and when it fires next."""

    job: str
    paused: bool
    last: Tick | None
    last_success: datetime | None
    next_at: datetime | None
    paused_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Something that only a person can settle. The same name is the same need."""

    name: str
    kind: str
    title: str
    sentence: str  # the title with what only the console shows
    link: str  # of the console
    text: str = ""  # what it means and what to do
    over: str = ""  # what there is to say when nobody is needed any more
    task: str = ""
    urgent: bool = False
    told: bool = True  # outside too, where somebody wants to be told


ActivityKind = Literal["decision", "evaluation", "training", "swap", "trouble"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """One line of the feed."""

    at: datetime
    kind: ActivityKind
    sentence: str
    task: str | None = None
    link: str | None = None
    problem: bool = False


StepName = Literal[
    "ingest", "sample", "label", "dataset", "train", "evaluate", "gate", "approve", "swap", "watch"
]
StepState = Literal[
    "working",  # right now
    "done",  # the last run did something
    "idle",  # nothing to do: `why` says why
    "waiting",  # for an operator
    "refused",  # the gate said no
    "paused",
    "failed",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the loop, for one task: its last run, its next one, and why it does nothing."""

    name: StepName
    state: StepState
    did: str = ""  # what the last run did; '' when it never ran
    last_at: datetime | None = None
    why: str = ""  # why it does nothing now
    next_at: datetime | None = None
    next: str = ""  # what it waits for, where no clock decides
    link: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """What the teacher may cost today and does, all tasks together."""

    labels: float = 0.0  # reserved and unknown amounts included, as the budget counts
    label_budget: float = 0.0
    escalations: float = 0.0
    escalation_budget: float = 0.0


class Unusable(NamedTuple):
    """Paid answers to one task that were no label."""

    in_a_row: int
    last: str  # what the last one looked like; nothing of it is quoted
    rests_until: datetime | None  # until then nothing is bought for the task


class Labelling(NamedTuple):
    """What is heard of the teacher while labels are bought."""

    refuses: bool | None  # our key; None before the first call
    said: str  # when it refused last: its status, code, parameter and message
    unusable: Mapping[str, Unusable]  # by task


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
    ceiling: str  # a sentence; empty before the teacher was asked again
    figures: Figures
    last_run: TrainingRun | None
    requests: int = 0  # of the last day
    past: Mapping[str, int] = field(default_factory=dict)  # of these past the student, by reason
    unlike: str = ""  # why the app would not understand a student; empty: it would
    loop: tuple[Step, ...] = ()
    reigns: tuple[Reign, ...] = ()  # the champions over time, oldest first


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
    money: Money = Money()
    gateways: tuple[GatewaySeen, ...] = ()
