"""Datasets: everything that was labelled until now, curated, published and noted."""

import shutil
from collections import Counter

from pipelines.curate import Curated
from pipelines.identities import dataset_content
from pipelines.types import Task
from service.learner.workshop import Workshop
from storage.artifacts import Artifact
from storage.datasets import add_dataset, latest_dataset, write_dataset
from storage.labels import count_labels
from storage.ticks import JobResult

MIN_LABELS = 2  # different ones, among the examples


class Datasets:
    """Makes the dataset of a training; one that says nothing new is not made again."""

    def __init__(self, workshop: Workshop) -> None:
        self._shop = workshop

    def make(self, task: Task) -> Artifact | JobResult:
        """The dataset of now, or why there is none."""
        with self._shop.database.snapshot() as tx:
            used = count_labels(tx, task.name).used
        cut_off = self._shop.now()
        curated = self._shop.curated(task, cut_off)
        if len({example.label for example in curated.training}) < MIN_LABELS:
            return JobResult(
                "nothing",
                f"{task.name}: {len(curated.training)} training examples with fewer than two "
                "labels teach nothing",
            )
        with self._shop.database.snapshot() as tx:
            stored = latest_dataset(tx, task.name)
        content, parent = dataset_content(curated.training), stored.digest if stored else None
        if parent is not None and self._shop.artifacts.exists("dataset", parent):
            dataset = self._shop.artifacts.open("dataset", parent)
            if dataset.about["content"] == content:
                return dataset
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
