"""What training and evaluation work with: stores, the trainer, base models, scratch folders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pipelines.checks import groups_needed
from pipelines.curate import Curated, CurationPolicy, curate
from pipelines.identities import settings_digest
from pipelines.recipes import Recipe
from pipelines.students.families import family_of
from pipelines.types import Task
from service.learner.base_models import BaseModels
from service.learner.executor import Executor
from service.metrics.learner import LearnerMetrics
from service.settings import Settings
from storage.artifacts import Artifact, Artifacts
from storage.database import Database
from storage.labels import labelled_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What training and evaluation work with: shared by both jobs."""

    database: Database
    artifacts: Artifacts
    executor: Executor
    settings: Settings
    tasks: Mapping[str, Task]
    encoder: Artifact
    bases: BaseModels
    metrics: LearnerMetrics
    now: Callable[[], datetime]

    def scratch(self) -> Path:
        """A new folder for a child to write to; on the artifacts' disk, so that it can be moved."""
        path = self.settings.folder.new_scratch()
        path.mkdir(parents=True)
        return path

    def settings_digest(self, recipe: Recipe) -> str:
        """Of all in the settings that decides what a recipe makes of a dataset."""
        base = self.settings.recipes.get(recipe.name)
        return settings_digest(
            recipe,
            base_model=str(base and base.base_model),
            encoder=self.encoder.digest if family_of(recipe).base_kind == "encoder" else "",
            seed=self.settings.trainer.seed,
        )

    def curated(self, task: Task, cut_off: datetime) -> Curated:
        """Training examples and held-out items from everything labelled until the cut-off."""
        dataset, target = self.settings.dataset, self.settings.tasks[task.name].target
        with self.database.snapshot() as tx:
            samples = labelled_samples(tx, task.name, task.labels, cut_off)
        return curate(
            samples,
            CurationPolicy(
                max_per_user=dataset.max_per_user,
                max_per_group=dataset.max_per_group,
                held_out_window=dataset.held_out_window,
                held_out_since=cut_off - timedelta(days=dataset.held_out_days),
                fewest=groups_needed(self.settings.gate.min_groups, target),
            ),
        )
