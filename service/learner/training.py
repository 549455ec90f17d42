"""The train job: labels to a dataset, a dataset to a published student version."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import structlog

from pipelines.curate import Curated, CurationPolicy, content_digest, curate
from pipelines.errors import FlywheelError, TrainingFailed
from pipelines.students.classifier import load_head
from pipelines.types import StudentVersion, Task
from service.learner.relabel import JobResult
from service.learner.trainer import Trainer
from service.metrics import LearnerMetrics
from service.settings import Settings
from storage.artifacts import Artifact, Artifacts
from storage.database import Database
from storage.datasets import write_dataset
from storage.labels import count_labels, labelled_samples
from storage.students import (
    add_dataset,
    add_version,
    dataset_by_digest,
    end_run,
    fail_running_runs,
    latest_dataset,
    next_number,
    start_run,
    version_by_content,
)

log = structlog.get_logger()

MIN_EXAMPLES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What training and evaluation work with: shared by both jobs."""

    database: Database
    artifacts: Artifacts
    trainer: Trainer
    settings: Settings
    tasks: Mapping[str, Task]
    encoder: Artifact
    metrics: LearnerMetrics
    now: Callable[[], datetime]

    def scratch(self) -> Path:
        """A new folder for a child to write to; on the artifacts' disk, so that it can be moved."""
        path = self.settings.data_dir / "scratch" / uuid4().hex
        path.mkdir(parents=True)
        return path

    def child_spec(self, encoder: Artifact) -> dict[str, object]:
        """What every child is told about the encoder and its limits."""
        cache = self.settings.data_dir / "cache" / f"vectors-{encoder.digest[:16]}"
        return {
            "encoder": str(encoder.path.resolve()),
            "encoder_digest": encoder.digest,
            "cache": str(cache.resolve()),
            "threads": self.trainer.threads,
            "max_tokens": encoder.about["max_tokens"],
        }

    def curated(self, task: Task, cut_off: datetime) -> Curated:
        """Training examples and held-out items from everything labelled until the cut-off."""
        dataset = self.settings.dataset
        with self.database.snapshot() as tx:
            samples = labelled_samples(tx, task.name, task.labels, cut_off)
        return curate(
            samples,
            CurationPolicy(
                max_per_user=dataset.max_per_user,
                max_per_group=dataset.max_per_group,
                held_out_window=dataset.held_out_window,
            ),
        )


class Training:
    """Trains from the base model on the whole buffer, each time."""

    def __init__(self, workshop: Workshop) -> None:
        self._shop = workshop

    def recover(self) -> None:
        """After a crash: no trainer outlives its learner, and its scratch is rubbish."""
        with self._shop.database.transaction() as tx:
            failed = fail_running_runs(tx, self._shop.now())
        for run_id in failed:
            log.warning("training_run_failed", run_id=run_id, reason="the learner ended")
        shutil.rmtree(self._shop.settings.data_dir / "scratch", ignore_errors=True)

    def run(self, task_name: str, reason: str) -> tuple[JobResult, StudentVersion | None]:
        """One training of one task; the version that came of it, where one did."""
        task = self._shop.tasks[task_name]
        if why := self._why_not():
            return JobResult("nothing", why), None
        dataset = self._dataset(task)
        if isinstance(dataset, JobResult):
            return dataset, None
        run_id, started = uuid4().hex, time.monotonic()
        with self._shop.database.transaction() as tx:
            start_run(
                tx,
                run_id=run_id,
                task=task_name,
                dataset=dataset.digest,
                recipe=self._shop.settings.tasks[task_name].recipe,
                reason=reason,
                now=self._shop.now(),
            )
        log.info("training_started", task=task_name, reason=reason, run_id=run_id)
        try:
            version = self._train(task, dataset, started)
        except FlywheelError as error:
            self._failed(task_name, run_id, str(error))
            raise TrainingFailed(f"{task_name}: {error}") from error
        except BaseException as error:
            self._failed(task_name, run_id, f"{type(error).__name__}: {error}")
            raise
        with self._shop.database.transaction() as tx:
            version = add_version(tx, version)
            end_run(
                tx,
                run_id=run_id,
                status="succeeded",
                student=version.student,
                now=self._shop.now(),
            )
        self._shop.metrics.training_runs.labels(task=task_name, outcome="succeeded").inc()
        self._shop.metrics.training_seconds.labels(task=task_name).set(version.train_seconds)
        log.info(
            "training_succeeded",
            student_version=version.name,
            labels=version.labels_trained,
            seconds=round(version.train_seconds, 1),
        )
        return JobResult("done", f"{version.name} trained: {reason}"), version

    def _why_not(self) -> str | None:
        teacher = self._shop.settings.teacher
        if not teacher.terms or not teacher.terms_allow_training:
            return (
                "nothing was trained: the teacher's terms are not recorded as allowing it "
                "(teacher.terms and teacher.terms_allow_training)"
            )
        return None

    def _dataset(self, task: Task) -> Artifact | JobResult:
        with self._shop.database.snapshot() as tx:
            used = count_labels(tx, task.name).used
        cut_off = self._shop.now()
        curated = self._shop.curated(task, cut_off)
        if len({example.label for example in curated.training}) < MIN_EXAMPLES:
            return JobResult(
                "nothing",
                f"{task.name}: {len(curated.training)} training examples with fewer than two "
                "labels teach nothing",
            )
        with self._shop.database.snapshot() as tx:
            stored = latest_dataset(tx, task.name)
        content, parent = _content(curated), stored.digest if stored else None
        if parent is not None and self._shop.artifacts.exists("dataset", parent):
            dataset = self._shop.artifacts.open("dataset", parent)
            if dataset.about["content"] == content:
                return self._known(task, dataset)
        dataset = self._publish(task, curated, content, parent)
        with self._shop.database.transaction() as tx:
            add_dataset(
                tx,
                digest=dataset.digest,
                task=task.name,
                parent=parent,
                labels=used,
                examples=len(curated.training),
                held_out=len(curated.held_out),
                cut_off=cut_off,
                now=self._shop.now(),
            )
        return dataset

    def _known(self, task: Task, dataset: Artifact) -> Artifact | JobResult:
        """Nothing is trained twice on the same content, but what failed may be tried again."""
        recipe = self._shop.settings.tasks[task.name].recipe
        with self._shop.database.snapshot() as tx:
            trained = version_by_content(
                tx, task.name, dataset.digest, self._shop.encoder.digest, recipe
            )
        if trained is None:
            return dataset
        return JobResult("nothing", f"{task.name}: no new labels since {trained.name}")

    def _publish(self, task: Task, curated: Curated, content: str, parent: str | None) -> Artifact:
        about = {
            "task": task.name,
            "labels": list(task.labels),
            "content": content,
            "parent": parent,
            "training": len(curated.training),
            "held_out": len(curated.held_out),
            "training_by_label": dict(Counter(example.label for example in curated.training)),
            "dropped": dict(curated.dropped),
            "terms": self._shop.settings.teacher.terms,
        }
        scratch = self._shop.scratch()
        try:
            write_dataset(scratch, curated, task)
            return self._shop.artifacts.publish("dataset", scratch, about)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _train(self, task: Task, dataset: Artifact, started: float) -> StudentVersion:
        shop = self._shop
        scratch = shop.scratch()
        spec = {
            **shop.child_spec(shop.encoder),
            "dataset": str(dataset.path.resolve()),
            "scratch": str(scratch.resolve()),
            "labels": list(task.labels),
            "task": task.name,
            "seed": shop.settings.trainer.seed,
        }
        try:
            result = shop.trainer.run("pipelines.train", spec, scratch)
            load_head(scratch)  # what came out is looked at before it gets a name
            about = {
                "task": task.name,
                "dataset": dataset.digest,
                "encoder": shop.encoder.digest,
                "recipe": shop.settings.tasks[task.name].recipe,
                "training": result,
            }
            student = shop.artifacts.publish("student", scratch, about)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        with shop.database.snapshot() as tx:
            number = next_number(tx, task.name)
            made_of = dataset_by_digest(tx, dataset.digest)
        assert made_of is not None
        return StudentVersion(
            task=task.name,
            number=number,
            student=student.digest,
            dataset=dataset.digest,
            base=shop.encoder.digest,
            recipe=shop.settings.tasks[task.name].recipe,
            labels_trained=int(result["examples"]),
            labels_bought=made_of.labels,
            trained_at=shop.now(),
            train_seconds=time.monotonic() - started,
            training=result,
        )

    def _failed(self, task: str, run_id: str, reason: str) -> None:
        with self._shop.database.transaction() as tx:
            end_run(tx, run_id=run_id, status="failed", failure=reason, now=self._shop.now())
        self._shop.metrics.training_runs.labels(task=task, outcome="failed").inc()
        log.error("training_failed", task=task, run_id=run_id, reason=reason)


def _content(curated: Curated) -> str:
    """What a student would learn, as a hash: texts, labels and weights in their order."""
    parts = (
        part
        for example in curated.training
        for part in (example.text, example.label, repr(example.weight))
    )
    return content_digest(parts)
