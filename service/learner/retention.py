"""The retention job: forgets what has been kept long enough."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from shutil import rmtree

from service.settings import Settings
from storage.artifacts import Artifacts
from storage.database import Cursor, Database
from storage.datasets import latest_dataset
from storage.dead_letters import delete_dead_letters
from storage.decisions import chain
from storage.estimates import delete_estimates_before
from storage.evaluations import evaluations_of
from storage.imported import forget_imported_before
from storage.leases import delete_leases_before
from storage.past import delete_past_before
from storage.pool import leave_pool
from storage.runs import runs
from storage.samples import delete_labelled, expire_unlabelled
from storage.shapes import delete_shapes_before
from storage.swaps import delete_swaps_before
from storage.ticks import JobResult, delete_ticks
from storage.traffic import delete_traffic_before, stored_offsets
from storage.versions import tasks_with_versions, versions

TICKS_KEPT = timedelta(days=3)
# What is younger may be in the hands of a job that has not noted it yet.
ARTIFACTS_KEPT = timedelta(hours=3)
LEASES_KEPT = timedelta(days=7)
# Since they were last used. Making them again costs a minute for ten thousand texts.
VECTORS_KEPT = timedelta(days=30)


class Retention:
    """Deletes old rows, records and artifacts. What was ever approved is kept."""

    def __init__(
        self,
        database: Database,
        artifacts: Artifacts,
        settings: Settings,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._settings = settings
        self._now = now

    def run(self) -> JobResult:
        """One tick. Rows first, so that a crash leaves an artifact too many, never too few."""
        now, kept = self._now(), self._settings.retention
        with self._database.transaction() as tx:
            unlabelled = now - kept.unlabelled_samples
            leave_pool(tx, unlabelled, self._settings.dataset.held_out_window)
            expire_unlabelled(tx, unlabelled)
            delete_labelled(tx, now - kept.labelled_samples)
            delete_traffic_before(tx, now - kept.traffic)
            forget_imported_before(tx, now - kept.traffic)
            delete_past_before(tx, now - kept.traffic)
            delete_shapes_before(tx, now - kept.traffic)
            delete_estimates_before(tx, now - kept.traffic)
            delete_swaps_before(tx, now - kept.traffic)
            delete_dead_letters(tx, now - kept.dead_letters)
            delete_ticks(tx, now - TICKS_KEPT)
            delete_leases_before(tx, (now - LEASES_KEPT).date())
        pruned = self._prune_topic(now)
        artifacts = self._prune_artifacts(now - ARTIFACTS_KEPT)
        self._prune_vectors(now - VECTORS_KEPT)
        self._database.checkpoint()
        if not pruned and not artifacts:
            return JobResult("nothing", "nothing was old enough to be forgotten")
        return JobResult("done", f"{pruned} topic records and {artifacts} artifacts removed")

    def _prune_topic(self, now: datetime) -> int:
        """Of the embedded topic only what was read: a broker has its own retention."""
        if self._settings.kafka.bootstrap_servers:
            return 0
        from service.topics.topic_file import prune

        with self._database.snapshot() as tx:
            offsets, _ = stored_offsets(tx, self._settings.kafka.topic)
        oldest = now - self._settings.retention.embedded_topic
        return prune(
            self._settings.folder.topic,
            before_offset=min(offsets.values(), default=0),
            older_than_ms=int(oldest.timestamp() * 1000),
        )

    def _prune_vectors(self, before: datetime) -> None:
        """Cached vectors of texts that no training has read for long: those may be forgotten."""
        for file in self._settings.folder.vector_files():
            with suppress(FileNotFoundError):
                if file.stat().st_mtime < before.timestamp():
                    file.unlink()

    def _prune_artifacts(self, before: datetime) -> int:
        with self._database.snapshot() as tx:
            students, datasets, reports, bases = self._kept(tx)
        oldest = before.timestamp()
        return (
            len(self._artifacts.prune("student", students, oldest))
            + len(self._artifacts.prune("dataset", datasets, oldest))
            + len(self._artifacts.prune("report", reports, oldest))
            + self._prune_tuned_encoders(bases, oldest)
        )

    def _prune_tuned_encoders(self, bases: set[str], oldest: float) -> int:
        """Those of pruned versions, with their cached vectors. The frozen ones are shared."""
        encoders = self._artifacts.digests("encoder")
        shared = {one for one in encoders if "recipe" not in self._artifacts.about("encoder", one)}
        gone = self._artifacts.prune("encoder", bases | shared, oldest)
        for digest in gone:
            rmtree(self._settings.folder.vectors(digest), ignore_errors=True)
        return len(gone)

    def _kept(self, tx: Cursor) -> tuple[set[str], set[str], set[str], set[str]]:
        """Of all tasks: one that left the settings may come back."""
        students, datasets, reports, bases = set(), set(), set(), set()
        for task in {*self._settings.tasks, *tasks_with_versions(tx)}:
            latest = latest_dataset(tx, task)  # the next one is compared with it
            datasets |= {latest.digest} if latest else set()
            datasets |= {run.dataset for run in runs(tx, task, 1) if run.status == "running"}
            decided = chain(tx, task)
            served = {link.student for link in decided.reigns}
            reports |= {link.report for link in decided.links if link.report}
            found = versions(tx, task)
            newest = {one.student for one in found[: self._settings.retention.students]}
            kept = [one for one in found if one.student in newest | served]
            students |= {one.student for one in kept}
            datasets |= {one.dataset for one in kept}
            bases |= {one.base for one in kept}
            # The earlier ones too: a later look at a version counts the items that they judged.
            reports |= {one.report for it in kept for one in evaluations_of(tx, task, it.student)}
        return students, datasets, reports, bases
