"""The tables of the settings file: what can be set, within which limits, and what it means."""

import re
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from pipelines.ask import TeacherPolicy
from pipelines.recipes import RecipeName
from service.host.durations import Duration, Schedule

Rate = Annotated[float, Field(ge=0, le=1)]
OrNone = Annotated[float | None, BeforeValidator(lambda value: None if _is_none(value) else value)]


def _is_none(value: object) -> bool:
    """TOML has no null, and the environment nothing but text."""
    return isinstance(value, str) and value.strip().casefold() in ("none", "null", "")


class Section(BaseModel):
    """A table of the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(Section):
    """The broker. Without `bootstrap_servers` the embedded topic is used."""

    bootstrap_servers: str = ""  # HOST:PORT, several with commas; none: embedded
    topic: str = "flywheel.prompts"  # where prompts arrive
    group: str = "flywheel"  # only names the gauge that lag tools read
    create_topic: bool = True  # when it is missing
    partitions: int = Field(default=3, gt=0)  # of a topic that is created
    options: dict[str, Any] = {}  # passed to kafka-python as they are: SASL, TLS, ...


class IngestSettings(Section):
    """How records are read and what is refused."""

    max_records: int = Field(default=5000, gt=0)  # in one transaction
    poll_timeout: Duration = timedelta(seconds=0.5)  # how long a poll waits
    linger: Duration = timedelta(seconds=0.25)  # between transactions when traffic is thin
    max_record_bytes: int = Field(default=262_144, gt=0)  # larger ones are dead letters
    max_dead_letter_rate: Rate = 0.9  # above it, over a whole window, the topic is paused
    dead_letter_window: int = Field(default=500, gt=0)  # records
    min_free_disk_mb: int = Field(default=200, ge=0)  # with less, reading pauses
    trusted_producers: dict[str, SecretStr] = {}  # producers whose answers are labels


class TeacherSettings(Section):
    """The teacher: any server that speaks the OpenAI chat protocol."""

    base_url: str = ""  # up to and with /v1
    model: str = ""  # what it is called there
    api_key: SecretStr = SecretStr("")  # the flywheel's own; an app's key is never forwarded
    headers: dict[str, SecretStr] = {}  # beside it: a subscription key, Azure's api-key
    query: dict[str, str] = {}  # at the end of every address: Azure's api-version
    terms: str = ""  # which terms the labels are under, for example a licence or a contract
    terms_allow_training: bool = False  # without it nothing is labelled or trained
    max_concurrency: int = Field(default=8, gt=0)  # calls at a time
    timeout: Duration = timedelta(seconds=60)  # of one call: a label or an escalation
    # what the server calls it
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    max_tokens: int = Field(default=256, gt=0)  # of one answer
    temperature: OrNone = Field(default=0.0, ge=0)  # left out when "none"
    price_per_million_in: float = Field(default=0.0, ge=0)  # tokens; in the currency of the budget
    price_per_million_out: float = Field(default=0.0, ge=0)  # tokens

    @property
    def http_headers(self) -> dict[str, str]:
        """What every call carries, in clear: our key, and the headers of one's own."""
        key = self.api_key.get_secret_value()
        bearer = {"authorization": f"Bearer {key}"} if key else {}
        own = {name.lower(): value.get_secret_value() for name, value in self.headers.items()}
        return bearer | own

    @property
    def policy(self) -> TeacherPolicy:
        """What makes one answer differ from another, and what it costs."""
        return TeacherPolicy(
            model=self.model,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            max_tokens_field=self.max_tokens_field,
            price_per_million_in=self.price_per_million_in,
            price_per_million_out=self.price_per_million_out,
        )

    @property
    def label_terms(self) -> str | None:
        """The terms that labels are under; None: no answer of this teacher may be a label."""
        return self.terms if self.terms and self.terms_allow_training else None

    @field_validator("base_url")
    @classmethod
    def _http_only(cls, value: str) -> str:
        if value and not re.match(r"https?://[^/\s@]+(/[^\s?#]*)?$", value):
            raise ValueError(
                "must look like https://host/v1, without user, query or fragment; "
                "a query is what teacher.query is for"
            )
        return value.rstrip("/")

    @field_validator("headers")
    @classmethod
    def _header_names(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, said in value.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
                raise ValueError(f"'{name[:40]}' is no name of a header")
            if not re.fullmatch(r"[\t\x20-\x7e]*", said.get_secret_value()):
                raise ValueError(f"the value of '{name[:40]}' is not what a header can carry")
        return value


class BudgetSettings(Section):
    """Hard ceilings a day (UTC). Labels and escalations have their own."""

    label_calls: int = Field(default=2_000, ge=0)  # labels: a fifth audits, a fifth held-out items
    label_tokens: int = Field(default=5_000_000, ge=0)  # in and out, of bought labels
    label_money: float = Field(default=20.0, ge=0)  # for bought labels
    escalation_calls: int = Field(default=10_000, ge=0)  # unsure requests that the teacher answers
    escalation_money: float = Field(default=20.0, ge=0)  # for them
    lease: Duration = timedelta(seconds=30)  # how long a gateway may spend without asking again
    lease_calls: int = Field(default=500, gt=0)  # at most this many in one lease


class SamplingSettings(Section):
    """The draws. Rates are shares of events; see docs on statistics."""

    # measures live agreement; to begin with, then what a fifth of the label budget pays for
    audit_rate: Rate = 0.01
    # judges candidates, never trains; to begin with, then what a fifth of the budget pays for
    held_out_rate: Rate = 1.0
    given_rate: Rate = 1.0  # share of answers that were there anyway which are kept
    learning_rate: Rate = 0.05  # share of events the learning draw aims at
    learning_pi_min: float = Field(default=0.02, gt=0, le=1)  # at least, where the budget pays
    cold_start_rate: Rate = 1.0  # share of events taken while labels are few
    cold_start_labels: int = Field(default=0, ge=0)  # 0: max(3 x labels of the task, 200)
    max_pending: int = Field(default=5_000, gt=0)  # samples waiting for the teacher


class DatasetSettings(Section):
    """What goes into a training set."""

    max_per_user: int = Field(default=250, gt=0)  # examples, so that no user steers the student
    max_per_group: int = Field(default=20, gt=0)  # examples of one near-duplicate group
    held_out_window: int = Field(default=3_000, gt=0)  # newest held-out groups that judge
    held_out_days: int = Field(default=60, gt=0)  # older ones judge only where others are too few


class GateSettings(Section):
    """What a candidate has to show."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)  # a year's false promotions, chance or share
    delta: float = Field(default=0.01, ge=0, lt=0.5)  # how much worse still counts as not worse
    min_groups: int = Field(default=150, ge=30)  # held-out groups; more where the target needs more
    min_segment_pairs: int = Field(default=200, gt=0)  # smaller segments are judged together only
    max_negative_flips: Rate = 0.03  # right before; now wrong, and so sure that it would be served
    max_calibration_error: Rate = 0.1  # by its lower bound


class RollbackSettings(Section):
    """When the version approved before serves again by itself."""

    automatic: bool = True  # false: a regression is shown and alerted only
    margin: float = Field(default=0.01, ge=0, lt=0.5)  # how much better the one before has to be
    alpha: float = Field(default=0.01, gt=0, lt=0.5)  # chance of a false alarm, for each approval


class TriggerSettings(Section):
    """When a retrain starts without waiting for its schedule."""

    min_labels: int = Field(default=200, gt=0)  # for a first student
    growth: float = Field(default=2.0, gt=1)  # labels now / labels at the last training
    coverage_drop: Rate = 0.05  # trusted coverage below the certified one by this much
    min_new_labels: int = Field(default=150, gt=0)  # for a drop of coverage or a shift to count
    min_interval: Duration = timedelta(minutes=5)  # between two trainings


class TrainerSettings(Section):
    """The limits of the trainer process."""

    time_limit: Duration = timedelta(hours=1)  # of one training
    memory_limit_mb: int = Field(default=4_096, gt=0)  # resident; above it the trainer is ended
    heartbeat_timeout: Duration = timedelta(seconds=60)  # a silent trainer is ended
    threads: int = Field(default=0, ge=0)  # 0: all cores
    seed: int = 0  # of training


class ScheduleSettings(Section):
    """When the jobs run: `every 30s`, or the five fields of a cron line (UTC)."""

    relabel: Schedule = "every 5s"  # asks the teacher
    train: Schedule = "every 24h"  # trains if there is anything new
    evaluate: Schedule = "every 1m"  # judges what was trained
    watch: Schedule = "every 10s"  # estimates, triggers
    retention: Schedule = "every 1h"  # deletes what is older than [retention] says


class RetentionSettings(Section):
    """How long things are kept."""

    unlabelled_samples: Duration = timedelta(days=14)  # texts that no label was bought for
    labelled_samples: Duration = timedelta(days=365)  # texts with their labels
    traffic: Duration = timedelta(days=400)  # sums, which hold no text
    dead_letters: Duration = timedelta(days=30)  # records that could not be read
    embedded_topic: Duration = timedelta(days=7)  # records that were read
    students: int = Field(default=10, gt=1)  # newest versions kept beside those ever approved


class GatewaySettings(Section):
    """The data plane."""

    host: str = "127.0.0.1"  # beyond loopback only with keys
    port: int = Field(default=8700, ge=0, le=65535)  # 0 takes a free one
    keys: list[SecretStr] = []  # what apps present as their bearer token, or in api-key
    # other names under which apps reach it; none: any, but on loopback this machine's own alone
    hosts: list[str] = []
    cors_origins: list[str] = []  # whose web pages may ask: https://app.example; "*" only with keys
    learner_url: str = ""  # "": the learner on this host
    learner_token: SecretStr = SecretStr("")  # "": read from the shared data folder
    poll_interval: Duration = timedelta(seconds=0.5)  # how often it looks for what is published
    max_body_bytes: int = Field(default=32 << 20, gt=0)  # of a request: images are in it
    timeout: Duration = timedelta(minutes=10)  # of a call that passes through; see teacher.timeout
    # what passes to the teacher beside chat, under /v1: all that keeps nothing in the account
    pass_through: list[str] = [
        "responses",
        "completions",
        "embeddings",
        "moderations",
        "audio/*",
        "images/*",
    ]
    pass_models: list[str] = []  # of no task, that pass as well; none: any that the teacher has
    pass_requests_per_minute: int = Field(default=0, ge=0)  # of no task, a gateway; 0: any number
    capture_buffer: int = Field(default=10_000, gt=0)  # events that wait for the topic
    threads: int = Field(default=0, ge=0)  # of the model; 0: all cores
    drain_timeout: Duration = timedelta(seconds=20)  # for requests under way, at the end

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s@?#*A-Z]+", origin):
                raise ValueError(f"'{origin[:80]}' does not look like https://app.example, or '*'")
        return value

    @model_validator(mode="after")
    def _all_pages_only_with_keys(self) -> Self:
        if "*" in self.cors_origins and not self.keys:
            raise ValueError("cors_origins = ['*'] lets every web page use the teacher: set keys")
        return self


class LearnerSettings(Section):
    """The control plane: operator console and API."""

    host: str = "127.0.0.1"  # the console always wants its token
    port: int = Field(default=8701, ge=0, le=65535)  # 0 takes a free one
    public_url: str = ""  # how operators reach the console, for links
    allowed_hosts: list[str] = []  # other names under which the console is reached
    gateway_url: str = ""  # "": the gateway on this host
    drain_timeout: Duration = timedelta(seconds=25)  # for work under way, at the end
    database_memory_mb: int = Field(default=128, gt=31)  # what DuckDB may use


NotifyKind = Literal[
    "approval",
    "training_failed",
    "rollback",
    "agreement",
    "threshold_raised",
    "forced_answers",
    "budget",
    "ingest_held",
    "teacher_refused",
    "unusable_answers",
    "requests_past",
    "answer_shape",
    "unknown_outcomes",
]


class NotifySettings(Section):
    """Where the learner says that an operator is needed. Without `url` it only shows it."""

    url: SecretStr = SecretStr("")  # a webhook; https, or http on this host
    format: Literal["slack", "json"] = "json"  # `slack`: what Slack, Mattermost and others read
    kinds: list[NotifyKind] = list(get_args(NotifyKind))  # what is told
    budget_share: Rate = 0.9  # of a day's budget: from here on it is nearly spent
    when_over: bool = True  # also say, once, that nobody is needed any more

    @field_validator("url")
    @classmethod
    def _https_or_this_host(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        sound = re.match(r"(https?)://([^/\s@?#]+)(/[^\s#]*)?$", url)
        if url and (
            not sound or (sound[1] == "http" and not is_loopback(urlsplit(url).hostname or ""))
        ):
            raise ValueError("must look like https://host/path; http is only for this host")
        return value


class EncoderSettings(Section):
    """The frozen encoder: a folder with `model.onnx` and `tokenizer.json`."""

    path: Path | None = None  # None: the all-MiniLM-L6-v2 that is installed with the program
    name: str = "all-MiniLM-L6-v2"  # under which versions record it
    max_tokens: int = Field(default=128, gt=2, le=512)  # longer texts are cut, and counted


class RecipeSettings(Section):
    """What a recipe does otherwise than by itself; none: as `flywheel recipes` says."""

    # a Hugging Face folder with safetensors, or a GGUF file; none: what is installed
    base_model: Path | None = None
    epochs: float | None = Field(default=None, gt=0)  # how often it sees each example
    learning_rate: float | None = Field(default=None, gt=0, lt=1)  # at its peak
    batch_size: int | None = Field(default=None, gt=0)  # examples in one pass
    accumulate: int | None = Field(default=None, gt=0)  # passes in one step
    rank: int | None = Field(default=None, gt=0)  # of LoRA's matrices
    max_tokens: int | None = Field(default=None, gt=2)  # of a text; longer ones are cut
    int8: bool | None = None  # of an exported encoder, where its labels stay the same


class TaskSettings(Section):
    """One task: which requests it takes, its labels, and what is promised."""

    kind: Literal["classify", "generate"] = "classify"  # only `classify` is there yet
    models: list[str] = Field(min_length=1)  # the names that apps send in the field `model`
    labels: list[str] = Field(min_length=2)  # all that may be answered
    answer_pointer: str | None = None  # where the label is in a JSON answer; none: plain text
    # which messages the student reads
    reads: Literal["last_user", "all_user", "conversation"] = "last_user"
    instructions: str = ""  # the system prompt of records that come without one
    segment_by: str = "label"  # by what figures are broken down: `label`, or an attribute
    recipe: RecipeName = "head"  # how its students are made: see `flywheel recipes`
    challenger: RecipeName | None = None  # a second recipe on the same labels; the gate compares
    challenger_time: Duration = timedelta(minutes=30)  # what it may take
    target: float = Field(default=0.97, gt=0.5, lt=1)  # promised agreement where the student serves
    when_unsure: Literal["student", "refuse"] = "student"  # and the teacher cannot be asked
    # nobody looks up a stored response again, so that a student may answer although `store` is set
    stateless: bool = False

    @field_validator("kind")
    @classmethod
    def _only_classification(cls, value: str) -> str:
        if value == "generate":
            raise ValueError(
                "open-ended tasks are not there yet; only kind = 'classify' with a closed label set"
            )
        return value

    @field_validator("labels")
    @classmethod
    def _sound_labels(cls, value: list[str]) -> list[str]:
        if any(not label.strip() or label != label.strip() for label in value):
            raise ValueError("a label is empty or has spaces around it")
        if len(set(map(str.casefold, value))) != len(value):
            raise ValueError("two labels differ only in case, or a label is given twice")
        return value

    @field_validator("answer_pointer")
    @classmethod
    def _json_pointer(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise ValueError("a JSON pointer starts with '/', for example /intent")
        return value


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine can reach `host`."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
