"""A learner's operator side on real storage, with students, reports and figures to decide on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from core_samples import make_event
from prometheus_client import CollectorRegistry

from pipelines.pairs import Flip, Pooled
from pipelines.reach import Shown
from pipelines.recipes import RecipeName
from pipelines.types import (
    Check,
    DeadLetter,
    Draws,
    Estimate,
    Evaluation,
    GateReport,
    Headers,
    Label,
    Message,
    Sample,
    SampleReason,
    Side,
    Slice,
    StudentVersion,
    Threshold,
    Verdict,
)
from service.keys import open_keys
from service.learner.gateways import Gateways
from service.metrics.learner import LearnerMetrics
from service.operator.board import Board
from service.operator.operations import Operations
from service.operator.status import (
    HistoryPoint,
)
from service.sections import TaskSettings, TeacherSettings
from service.settings import Settings
from storage.artifacts import Artifacts
from storage.database import Database
from storage.datasets import add_dataset
from storage.dead_letters import add_dead_letters
from storage.decisions import champion
from storage.evaluations import StoredEvaluation, add_evaluation, gate_turn
from storage.labels import add_labels
from storage.ledger import Amounts, Ledger
from storage.live import Live, read_live
from storage.migrate import migrate
from storage.reports import Golden, Report, write_card, write_report
from storage.runs import end_run, start_run
from storage.samples import add_samples
from storage.versions import add_version, next_number, version_by_digest
from storage.votes import SECOND, Vote, add_votes

TASK = "support"
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LABELS = ("refund", "delivery", "invoice", "cancel")
DATASET_ABOUT = {
    "task": TASK,
    "labels": list(LABELS),
    "parent": "4" * 64,
    "training": 2_600,
    "held_out": 412,
    "dropped": {"one user's share": 31, "near a held-out item": 0},
    "terms": "contract 2026-117, section 4",
}
# What `pipelines.train` says of a run.
TUNED = {
    "examples": 2_600,
    "calibration_examples": 260,
    "labels_without_example": ["cancel"],
    "seed": 0,
    "steps": 1_463,
    "epochs": 10.0,
    "weights_tuned": 1_327_876,
    "precision": "float32 on cpu (a batch takes 0.31 s in float32, 0.52 s in bfloat16)",
    "resumed_at_step": 410,
    "loss_curve": [[15 * at, round(1.38 * 0.96**at + 0.41, 4)] for at in range(1, 98)]
    + [[1_463, 0.4312]],
    "reproducible": "yes",
    "temperature": 1.31,
    "int8": True,
    "int8_parity": 0.9981,
}


# A teacher that agrees with itself less than any target here.
BELOW = Estimate(value=0.88, low=0.80, high=0.937, n=100)


@dataclass
class Clock:
    """A clock that moves when it is read, so that no two moments are the same."""

    at: datetime = START

    def __call__(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at


@dataclass
class RecordingWriter:
    """Stands where the topic's writer is; says what was made durable."""

    queued: list[tuple[bytes, Headers]] = field(default_factory=list)
    durable: list[tuple[bytes, Headers]] = field(default_factory=list)
    broken: Exception | None = None

    def send(self, value: bytes, *, key: bytes | None = None, headers: Headers = ()) -> None:
        self.queued.append((value, headers))

    def flush(self, timeout_seconds: float) -> None:
        if self.broken:
            raise self.broken
        self.durable += self.queued
        self.queued = []

    def failed(self) -> int:
        return 0

    def close(self) -> None: ...


def fill_with_a_number(scratch: Path, number: int) -> None:
    """The files of a student that nobody will load."""
    (scratch / "student.json").write_text(f'{{"number": {number}}}')


@dataclass
class Desk:
    """Everything that a test of operations looks at."""

    operations: Operations
    database: Database
    artifacts: Artifacts
    settings: Settings
    folder: Path
    clock: Clock
    writer: RecordingWriter
    ledger: Ledger
    board: Board
    encoder: str
    gateways: Gateways
    fill: Callable[[Path, int], None] = fill_with_a_number
    golden: Sequence[Golden] = (Golden(text="where is it", label="delivery", confidence=1),)

    @property
    def live_path(self) -> Path:
        return self.folder / "live.json"

    def hold(self, event_id: str, *, detail: str = "read timeout", money: float = 0.01) -> str:
        """A teacher call of which nobody knows whether it was answered; returns its key."""
        key = sha256(event_id.encode()).hexdigest()
        self.ledger.intend(
            key,
            event_id=event_id,
            request=b"{}",
            reserve=Amounts(tokens=100, money=money),
            now=self.clock(),
        )
        self.ledger.note(key, "unknown", detail=detail, now=self.clock())
        return key

    def live(self) -> Live:
        return read_live(self.live_path, open_keys(self.folder).live)

    def champion(self) -> str | None:
        with self.database.snapshot() as tx:
            return champion(tx, TASK)

    def train(self, **about: Any) -> StudentVersion:
        """A new student version, not evaluated yet."""
        with self.database.transaction() as tx:
            number = next_number(tx, TASK)
        scratch = self._scratch(f"student-{number}")
        self.fill(scratch, number)
        recipe = about.get("recipe", "head")
        said = {
            "task": TASK,
            "dataset": f"{number:064x}",
            "encoder": self.encoder,
            "recipe": {"name": recipe, "family": "head"},
            "training": about.get("training", {"examples": 520 * number, "seed": 0}),
        }
        student = self.artifacts.publish("student", scratch, said)
        now = self.clock()
        version = StudentVersion(
            task=TASK,
            number=number,
            student=student.digest,
            dataset=f"{number:064x}",
            family="head",
            base_kind="encoder",
            base=self.encoder,
            recipe=recipe,
            labels_trained=520 * number,
            labels_bought=650 * number,
            trained_at=now,
            train_seconds=8.4,
            training=about.get("training", {"examples": 520 * number, "seed": 0}),
        )
        with self.database.transaction() as tx:
            add_dataset(
                tx,
                digest=version.dataset,
                task=TASK,
                parent=None if number == 1 else f"{number - 1:064x}",
                labels=650 * number,
                examples=520 * number,
                held_out=160 * number,
                cut_off=now,
                now=now,
            )
            start_run(
                tx,
                run_id=f"run-{number}",
                task=TASK,
                dataset=version.dataset,
                recipe=recipe,
                reason=about.get("reason", "the labels have doubled"),
                now=now,
            )
            end_run(
                tx,
                run_id=f"run-{number}",
                status="succeeded",
                student=student.digest,
                now=self.clock(),
            )
            return add_version(tx, version)

    def evaluate(
        self,
        version: StudentVersion,
        *,
        verdict: Verdict = "better",
        passed: bool = True,
        threshold: float | None = 0.62,
        shown: Shown | None = None,
        ceiling: Estimate | None = None,
    ) -> str:
        """Evaluate against the present champion; returns the report's digest."""
        now = self.clock()
        with self.database.transaction() as tx:
            before = champion(tx, TASK)
            attempt = gate_turn(tx, TASK, version.student, before, now).attempt
            known = version_by_digest(tx, TASK, before) if before else None
        report = make_report(
            version,
            champion=known,
            verdict=verdict,
            passed=passed,
            threshold=threshold,
            attempt=attempt,
            at=now,
            shown=shown,
        )
        report = replace(report, ceiling=ceiling)
        scratch = self._scratch(f"report-{version.number}-{now:%H%M%S}")
        write_report(scratch, report, self.golden)
        write_card(
            scratch,
            report,
            version,
            recipe=self.settings.recipe(cast("RecipeName", version.recipe)),
            dataset=DATASET_ABOUT,
            base={"name": "all-MiniLM-L6-v2", "max_tokens": 128},
            teacher=self.settings.teacher.model,
        )
        digest = self.artifacts.publish("report", scratch, {"task": TASK}).digest
        with self.database.transaction() as tx:
            add_evaluation(
                tx,
                StoredEvaluation(
                    task=TASK,
                    digest=version.student,
                    attempt=attempt,
                    champion=before,
                    snapshot=report.evaluation.snapshot,
                    items=report.evaluation.items,
                    report=digest,
                    verdict=verdict,
                    promotable=report.gate.promotable,
                    compared=True,
                    threshold=threshold,
                    coverage=report.evaluation.threshold.coverage,
                    evaluated_at=now,
                ),
            )
        return digest

    def candidate(self) -> tuple[StudentVersion, str]:
        """A version that waits for approval, and its report."""
        version = self.train()
        return version, self.evaluate(version)

    def approved(self) -> StudentVersion:
        """A version that was approved just now."""
        version, report = self.candidate()
        self.operations.approve(TASK, version.number, report=report, operator="ada")
        return version

    def dead_letter(self, offset: int, payload: bytes | None, reason: str) -> None:
        letter = DeadLetter(
            topic="flywheel.prompts",
            partition=0,
            offset=offset,
            payload=payload,
            headers=(("producer", b"app"),),
            reason=reason,
        )
        with self.database.transaction() as tx:
            add_dead_letters(tx, [letter], self.clock())

    def park(self, event_id: str, text: str, first: str, second: str) -> None:
        """Training data on which the teacher contradicted itself."""
        now = self.clock()
        sample = Sample(
            event=make_event(event_id, occurred_at=now, messages=(Message("user", text),)),
            text=text,
            reason=SampleReason.UNCERTAIN,
            draws=Draws(),
            group_id=event_id,
            side=Side.TRAINING,
            assessment=None,
            policy_version="p",
        )
        label = Label(
            event_id=event_id,
            label=first,
            source="bought",
            teacher_model="scripted-teacher",
            prompt_version="1",
            terms="scripted",
        )
        vote = Vote(
            event_id=event_id,
            repeat=SECOND,
            first=first,
            label=second,
            prompt_version="1",
            tokens=1,
            cost=0.0,
            ledger_key="k",
        )
        with self.database.transaction() as tx:
            add_samples(tx, [sample], now)
            add_labels(tx, TASK, [label], now)
            add_votes(tx, TASK, [vote], now)

    def _scratch(self, name: str) -> Path:
        folder = self.folder / "scratch" / name
        folder.mkdir(parents=True)
        return folder


@contextmanager
def open_desk(folder: Path, **settings: Any) -> Iterator[Desk]:
    """An operator's desk in `folder`."""
    teacher = TeacherSettings(
        base_url="http://127.0.0.1:9/v1",
        model="scripted-teacher",
        terms="scripted",
        terms_allow_training=True,
    )
    support = TaskSettings(models=["gpt-support"], labels=list(LABELS))
    options = {"data_dir": folder, "teacher": teacher, "tasks": {TASK: support}, **settings}
    loaded = Settings(**options)
    database = Database(folder / "flywheel.duckdb")
    migrate(database)
    artifacts = Artifacts(folder / "artifacts")
    encoder = folder / "scratch" / "encoder"
    encoder.mkdir(parents=True, exist_ok=True)
    (encoder / "tokenizer.json").write_text("{}")
    clock, writer, board = Clock(), RecordingWriter(), Board()
    ledger = Ledger(folder / "ledger")
    jobs = ("relabel", "train", "evaluate", "watch", "retention")
    soon = clock.at + timedelta(seconds=20)
    board.next_ticks = {"ingest": None, **dict.fromkeys(jobs, soon)}
    operations = Operations(
        database=database,
        ledger=ledger,
        artifacts=artifacts,
        settings=loaded,
        keys=open_keys(folder),
        board=board,
        metrics=LearnerMetrics(CollectorRegistry()),
        now=clock,
        open_writer=lambda: writer,
    )
    desk = Desk(
        operations=operations,
        database=database,
        artifacts=artifacts,
        settings=loaded,
        folder=folder,
        clock=clock,
        writer=writer,
        ledger=ledger,
        board=board,
        encoder=artifacts.publish("encoder", encoder, {}).digest,
        gateways=Gateways(database, board, clock),
    )
    try:
        operations.recover()
        yield desk
    finally:
        ledger.close()
        database.close()


def make_report(
    version: StudentVersion,
    *,
    champion: StudentVersion | None,
    verdict: Verdict,
    passed: bool,
    threshold: float | None,
    attempt: int,
    at: datetime,
    shown: Shown | None = None,
) -> Report:
    """A whole report, as an evaluation writes it."""
    agreement = {
        "candidate": Estimate(value=0.941, low=0.914, high=0.961, n=412),
        "base": Estimate(value=0.612, low=0.566, high=0.657, n=412),
        "majority": Estimate(value=0.118, low=0.09, high=0.151, n=412),
        "nearest": Estimate(value=0.871, low=0.837, high=0.9, n=412),
    }
    difference = {
        "base": Estimate(value=0.329, low=0.281, high=0.377, n=412),
        "majority": Estimate(value=0.823, low=0.782, high=0.86, n=412),
        "nearest": Estimate(value=0.07, low=0.042, high=0.1, n=412),
    }
    if champion:
        agreement["champion"] = Estimate(value=0.903, low=0.871, high=0.929, n=412)
        difference["champion"] = Estimate(value=0.038, low=0.012, high=0.064, n=412)
    evaluation = Evaluation(
        snapshot="5" * 64,
        items=412,
        agreement=agreement,
        difference=difference,
        slices=_slices(champion is not None),
        flips=_flips() if champion else (),
        negative_flip_rate=Estimate(value=0.012, low=0.005, high=0.028, n=412)
        if champion
        else None,
        calibration_error=Estimate(value=0.031, low=0.019, high=0.052, n=412),
        threshold=Threshold(
            value=threshold,
            target=0.97,
            confidence_level=0.95,
            agreement_above=Estimate(value=0.989, low=0.972, high=1.0, n=341),
            coverage=0.0 if threshold is None else 0.828,
            reason="341 of 412 held-out items lie above 0.62; 337 of them agree",
        ),
        champion_threshold=None,
        shown=shown,
        items_until_certified=1_512 if threshold is None else None,
        pooled=Pooled(items=2_600, agreed=2_470, bought=128, missing=2) if champion else None,
    )
    checks = (
        Check(
            name="held-out groups",
            passed=True,
            value=412,
            threshold=150,
            sentence="412 distinct held-out groups were judged; at least 150 are needed.",
        ),
        Check(
            name="beats the base model",
            passed=True,
            value=0.281,
            threshold=0.0,
            sentence="It agrees with the teacher 28.1 points more often than the base model.",
        ),
        Check(
            name="negative flips",
            passed=passed,
            value=0.012 if passed else 0.047,
            threshold=0.03,
            sentence="1.2 % of the items were right before and are wrong now; 3 % are allowed."
            if passed
            else "4.7 % of the items were right before and are wrong now; 3 % are allowed.",
        ),
        Check(
            name="calibration",
            passed=True,
            value=0.019,
            threshold=0.1,
            sentence="The confidence is off by 3.1 points on average; 10 are allowed.",
        ),
    )
    return Report(
        task=version.task,
        student=version.student,
        name=version.name,
        number=version.number,
        champion=champion.student if champion else None,
        champion_name=champion.name if champion else None,
        dataset=version.dataset,
        labels_trained=version.labels_trained,
        labels_bought=version.labels_bought,
        evaluation=evaluation,
        gate=GateReport(verdict=verdict, checks=checks, attempt=attempt, alpha=0.0304),
        evaluated_at=at,
        train_seconds=version.train_seconds,
        size_bytes=412_733,
        latency_ms=2.7,
    )


def _slices(compared: bool) -> tuple[Slice, ...]:
    figures = [
        ("gift_card", 0.78, 0.62, 0.89, 41),
        ("cancel", 0.88, 0.76, 0.95, 52),
        ("invoice", 0.93, 0.85, 0.97, 88),
        ("delivery", 0.96, 0.91, 0.99, 121),
        ("refund", 0.98, 0.94, 1.0, 110),
    ]
    return tuple(
        Slice(
            segment=name,
            agreement=Estimate(value=value, low=low, high=high, n=n),
            difference=Estimate(value=0.02, low=-0.03, high=0.07, n=n) if compared else None,
        )
        for name, value, low, high, n in figures
    )


def _flips() -> tuple[Flip, ...]:
    return (
        Flip(
            event_id="e-1",
            text="I gave the voucher to my sister & it says <used> – can she still swap it?",
            label="gift_card",
            before="gift_card",
            after="refund",
            negative=True,
        ),
        Flip(
            event_id="e-2",
            text="pls stop the parcel, i dont want it any more",
            label="cancel",
            before="delivery",
            after="cancel",
            negative=False,
        ),
    )


def make_history(end: datetime, points: int = 60) -> tuple[HistoryPoint, ...]:
    """Coverage that falls when something new appears, and comes back once it is learned."""
    found = []
    for index in range(points):
        share = index / (points - 1)
        coverage = 0.55 + 0.35 * min(1.0, share * 2.2)
        if 0.55 < share < 0.8:
            coverage -= 0.18
        agreement = 0.965 + 0.012 * share
        band = 0.05 / (1 + 2 * share)
        found.append(
            HistoryPoint(
                at=end - timedelta(minutes=points - index),
                coverage=None if share < 0.12 else coverage,
                agreement=None if share < 0.2 else agreement,
                low=None if share < 0.2 else max(0.0, agreement - band),
                high=None if share < 0.2 else min(1.0, agreement + band),
                spend=0.02 * index,
            )
        )
    return tuple(found)
