"""The train job: labels to a dataset, a dataset to a published student version."""

import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import structlog

from pipelines.errors import (
    FlywheelError,
    TrainingFailed,
    TrainingInterrupted,
    TrainingRunFailed,
)
from pipelines.identities import training_fingerprint
from pipelines.recipes import Recipe
from pipelines.students.families import family_of
from pipelines.types import StudentVersion, Task
from pipelines.work import CHECKPOINT_FILE, Input, TrainWork
from service.learner.base_models import BaseModel
from service.learner.datasets import Datasets
from service.learner.workshop import Workshop
from storage.artifacts import Artifact
from storage.datasets import dataset_by_digest
from storage.doubts import replace_doubts
from storage.failpoints import passing
from storage.runs import end_run, fail_running_runs, start_run
from storage.ticks import JobResult
from storage.versions import add_version, next_number, versions_by_content

log = structlog.get_logger()

MAX_RESUMES = 2  # of a training whose trainer was killed
DATASET_FILE = "dataset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one training makes of what."""

    task: Task
    recipe: Recipe
    dataset: Artifact
    base: BaseModel
    seed: int
    time_budget: float | None  # seconds

    @property
    def fingerprint(self) -> str:
        """Content hash of all that decides the weights, beside the dataset."""
        return training_fingerprint(
            self.recipe,
            self.task,
            base=self.base.input.digest,
            seed=self.seed,
            time_budget=self.time_budget,
        )

    def work(self, encoder: Artifact, checkpoint: str) -> TrainWork:
        return TrainWork(
            recipe=self.recipe,
            task=self.task.name,
            labels=self.task.labels,
            instructions=self.task.instructions,
            seed=self.seed,
            dataset=Input("dataset", self.dataset.digest),
            encoder=Input("encoder", encoder.digest),
            max_tokens=int(encoder.about["max_tokens"]),
            base=self.base.input,
            base_name=self.base.name,
            time_budget=self.time_budget,
            checkpoint=checkpoint,
        )


class Training:
    """Trains from the base model on the whole buffer, each time."""

    def __init__(self, workshop: Workshop) -> None:
        self._shop = workshop
        self._datasets = Datasets(workshop)

    def recover(self) -> list[str]:
        """After a crash: no trainer outlives its learner, and its scratch is rubbish.

        Returns the tasks of which a training stands at a checkpoint and can go on.
        """
        with self._shop.database.transaction() as tx:
            failed = fail_running_runs(tx, self._shop.now())
        for run_id in failed:
            log.warning("training_run_failed", run_id=run_id, reason="the learner ended")
        shutil.rmtree(self._shop.settings.folder.scratch, ignore_errors=True)
        return [task for task in self._shop.tasks if self._interrupted(task)]

    def run(self, task_name: str, reason: str) -> tuple[JobResult, StudentVersion | None]:
        """One training of one task by its recipe; the version that came of it, where one did."""
        task = self._shop.tasks[task_name]
        if why := self._why_not():
            return JobResult("nothing", why), None
        name = self._shop.settings.tasks[task_name].recipe
        dataset = self._interrupted(task_name) or self._datasets.make(task)
        if isinstance(dataset, JobResult):
            return dataset, None
        return self._one(task, self._shop.settings.recipe(name), dataset, reason)

    def challenge(self, version: StudentVersion) -> tuple[JobResult, StudentVersion | None]:
        """Train the task's challenger, within its time, on what `version` was trained on."""
        settings = self._shop.settings.tasks[version.task]
        if settings.challenger is None or settings.challenger == version.recipe:
            return JobResult("nothing", f"{version.task} has no challenger"), None
        return self._one(
            self._shop.tasks[version.task],
            self._shop.settings.recipe(settings.challenger),
            self._shop.artifacts.open("dataset", version.dataset),
            f"challenges {version.name}",
            time_budget=settings.challenger_time.total_seconds(),
        )

    def _one(
        self,
        task: Task,
        recipe: Recipe,
        dataset: Artifact,
        reason: str,
        time_budget: float | None = None,
    ) -> tuple[JobResult, StudentVersion | None]:
        if trained := self._known(task, recipe, dataset):
            return JobResult("nothing", f"{task.name}: no new labels since {trained.name}"), None
        started = time.monotonic()
        run_id = self._start(task, recipe, dataset, reason)
        try:
            order = Order(
                task=task,
                recipe=recipe,
                dataset=dataset,
                base=self._shop.bases.find(recipe),
                seed=self._shop.settings.trainer.seed,
                time_budget=time_budget,
            )
            version = self._train(order, started)
        except FlywheelError as error:
            self._failed(task.name, run_id, str(error))
            raise TrainingRunFailed(f"{task.name}: {error}") from error
        except BaseException as error:
            self._failed(task.name, run_id, f"{type(error).__name__}: {error}")
            raise
        version = self._succeeded(run_id, version)
        return JobResult("done", f"{version.name} trained: {reason}"), version

    def _start(self, task: Task, recipe: Recipe, dataset: Artifact, reason: str) -> str:
        run_id = uuid4().hex
        with self._shop.database.transaction() as tx:
            start_run(
                tx,
                run_id=run_id,
                task=task.name,
                dataset=dataset.digest,
                recipe=recipe.name,
                reason=reason,
                now=self._shop.now(),
            )
        passing("training.started")
        log.info(
            "training_started", task=task.name, recipe=recipe.name, reason=reason, run_id=run_id
        )
        return run_id

    def _succeeded(self, run_id: str, version: StudentVersion) -> StudentVersion:
        """The version as it is stored: one that was there already keeps its number."""
        shop = self._shop
        with shop.database.transaction() as tx:
            version = add_version(tx, version)
            end_run(tx, run_id=run_id, status="succeeded", student=version.student, now=shop.now())
        passing("training.recorded")
        shop.metrics.training_runs.labels(task=version.task, outcome="succeeded").inc()
        shop.metrics.training_seconds.labels(task=version.task).set(version.train_seconds)
        log.info(
            "training_succeeded",
            student_version=version.name,
            recipe=version.recipe,
            labels=version.labels_trained,
            seconds=round(version.train_seconds, 1),
        )
        return version

    def _why_not(self) -> str | None:
        teacher = self._shop.settings.teacher
        if not teacher.terms or not teacher.terms_allow_training:
            return (
                "nothing was trained: the teacher's terms are not recorded as allowing it "
                "(teacher.terms and teacher.terms_allow_training)"
            )
        return None

    def _known(self, task: Task, recipe: Recipe, dataset: Artifact) -> StudentVersion | None:
        """Nothing is trained twice in the same way, but what failed may be tried again."""
        with self._shop.database.snapshot() as tx:
            trained = versions_by_content(tx, task.name, dataset.digest, recipe.name)
        wanted = self._shop.settings_digest(recipe)
        return next((one for one in trained if one.training.get("settings") == wanted), None)

    def _train(self, order: Order, started: float) -> StudentVersion:
        shop, task, recipe = self._shop, order.task, order.recipe
        family = family_of(recipe)
        checkpoint, scratch = self._checkpoint(order), shop.scratch()
        try:
            result = self._run(order.work(shop.encoder, checkpoint.name), scratch, checkpoint)
            passing("training.trained")
            with shop.database.transaction() as tx:  # of the data, whatever becomes of the student
                replace_doubts(tx, task.name, result.pop("doubts", ()), shop.now())
            result["settings"] = shop.settings_digest(recipe)
            base = shop.bases.take_in(recipe, order.base, scratch)
            family.check(scratch)
            about = {
                "task": task.name,
                "dataset": order.dataset.digest,
                "family": family.name,
                "base_kind": family.base_kind,
                family.base_kind: base,
                "recipe": asdict(recipe),
                "training": result,
            }
            student = shop.artifacts.publish("student", scratch, about)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        passing("training.published")
        shutil.rmtree(checkpoint, ignore_errors=True)
        with shop.database.snapshot() as tx:
            number = next_number(tx, task.name)
            made_of = dataset_by_digest(tx, order.dataset.digest)
        assert made_of is not None
        return StudentVersion(
            task=task.name,
            number=number,
            student=student.digest,
            dataset=order.dataset.digest,
            family=family.name,
            base_kind=family.base_kind,
            base=base,
            recipe=recipe.name,
            labels_trained=int(result["examples"]),
            labels_bought=made_of.labels,
            trained_at=shop.now(),
            train_seconds=time.monotonic() - started,
            training=result,
        )

    def _run(self, work: TrainWork, scratch: Path, checkpoint: Path) -> dict[str, Any]:
        """Train, and go on from the checkpoint where the trainer was killed."""
        for left in reversed(range(MAX_RESUMES + 1)):
            try:
                return self._shop.executor.run(work, scratch)
            except TrainingInterrupted as error:
                stopping = self._shop.executor.stopping
                if stopping or not left or not (checkpoint / CHECKPOINT_FILE).exists():
                    raise
                log.warning("training_resumed", reason=str(error), resumes_left=left)
                for leftover in scratch.iterdir():
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            except TrainingFailed:
                shutil.rmtree(checkpoint, ignore_errors=True)  # it would only fail again
                raise
        raise AssertionError("unreachable")

    def _checkpoint(self, order: Order) -> Path:
        """The folder of this order's checkpoint; those of other orders of the task go."""
        folder = self._shop.settings.folder.checkpoints(order.task.name)
        name = f"{order.recipe.name}-{order.dataset.digest[:24]}-{order.fingerprint[:24]}"
        if folder.is_dir():
            for other in folder.iterdir():
                if other.name != name:
                    shutil.rmtree(other, ignore_errors=True)
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / DATASET_FILE).write_text(order.dataset.digest)
        return folder / name

    def _interrupted(self, task: str) -> Artifact | None:
        """The dataset of a training of this task that stands at a checkpoint."""
        recipe = self._shop.settings.tasks[task].recipe
        folder = self._shop.settings.folder.checkpoints(task)
        for found in sorted(folder.glob(f"{recipe}-*/{CHECKPOINT_FILE}")):
            digest = (found.parent / DATASET_FILE).read_text()
            if self._shop.artifacts.exists("dataset", digest):
                return self._shop.artifacts.open("dataset", digest)
        return None

    def _failed(self, task: str, run_id: str, reason: str) -> None:
        stopping = self._shop.executor.stopping
        with self._shop.database.transaction() as tx:
            end_run(tx, run_id=run_id, status="failed", failure=reason, now=self._shop.now())
        if stopping:
            log.info("training_stopped", task=task, run_id=run_id)
            return
        self._shop.metrics.training_runs.labels(task=task, outcome="failed").inc()
        log.error("training_failed", task=task, run_id=run_id, reason=reason)
