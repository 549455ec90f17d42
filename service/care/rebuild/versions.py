"""Datasets, training runs, student versions and evaluations, as the artifacts tell of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.errors import ArtifactDamaged
from pipelines.gate import compared
from pipelines.students.families import FAMILIES
from pipelines.types import Decision, StudentVersion
from storage.artifacts import MANIFEST, Artifact, Artifacts, Kind
from storage.database import Cursor
from storage.datasets import add_dataset
from storage.evaluations import StoredEvaluation, add_evaluation
from storage.reports import Report, parse_report
from storage.runs import end_run, start_run
from storage.versions import add_version

REASON = "found among the artifacts"


@dataclass(slots=True, kw_only=True)
class Found:
    """What the artifacts hold. Mutable: it is collected."""

    datasets: list[Artifact] = field(default_factory=list)
    students: list[Artifact] = field(default_factory=list)
    reports: dict[str, Report] = field(default_factory=dict)  # by digest
    problems: list[str] = field(default_factory=list)

    @property
    def tasks(self) -> set[str]:
        return {str(one.about["task"]) for one in [*self.datasets, *self.students]}


def look_at(artifacts: Artifacts) -> Found:
    """Every dataset, student and report that is what its name says, oldest first."""
    found = Found()
    found.datasets += sorted(_whole(artifacts, "dataset", found.problems), key=written_at)
    found.students += sorted(_whole(artifacts, "student", found.problems), key=written_at)
    for artifact in _whole(artifacts, "report", found.problems):
        try:
            found.reports[artifact.digest] = parse_report(artifact)
        except ArtifactDamaged as error:
            found.problems.append(str(error))
    return found


def add_versions(tx: Cursor, found: Found, decided: list[Decision]) -> Mapping[str, int]:
    """Store them. Returns counts: what was stored, and which numbers nobody knows any more."""
    reports = _by_student(found.reports)
    bought = {
        one.digest: int(one.about["training"]) + int(one.about["held_out"])
        for one in found.datasets
    }
    for report in found.reports.values():
        bought[report.dataset] = report.labels_bought
    for dataset in found.datasets:
        _add_dataset(tx, dataset, bought)
    versions = [
        version
        if version.student in reports
        else replace(version, labels_bought=bought.get(version.dataset, version.labels_bought))
        for version in _numbered(found, reports)
    ]
    for version in versions:
        add_version(tx, version)
        _add_run(tx, version)
    for digest, report in sorted(found.reports.items(), key=lambda one: one[1].evaluated_at):
        _add_evaluation(tx, digest, report)
    students = {one.digest for one in found.students}
    return {
        "datasets": len(found.datasets),
        "versions": len(versions),
        "versions_of_unknown_number": sum(one.student not in reports for one in versions),
        "evaluations": len(found.reports),
        "decided_versions_without_artifact": len({one.student for one in decided} - students),
        "versions_missing": _missing(versions),
    }


def written_at(artifact: Artifact) -> datetime:
    """When the artifact was published: its manifest is written last, and never again."""
    return datetime.fromtimestamp((artifact.path / MANIFEST).stat().st_mtime, UTC)


def _whole(artifacts: Artifacts, kind: Kind, problems: list[str]) -> Iterator[Artifact]:
    for digest in artifacts.digests(kind):
        try:
            yield artifacts.open(kind, digest)
        except ArtifactDamaged as error:
            problems.append(str(error))


def _by_student(reports: Mapping[str, Report]) -> dict[str, Report]:
    """The latest report about each student."""
    ordered = sorted(reports.values(), key=lambda report: report.evaluated_at)
    return {report.student: report for report in ordered}


def _numbered(found: Found, reports: Mapping[str, Report]) -> Iterator[StudentVersion]:
    """A report knows its version's number; one that was never judged gets the next free one."""
    highest: dict[str, int] = {}
    for report in reports.values():
        highest[report.task] = max(highest.get(report.task, 0), report.number)
    for student in found.students:
        known = reports.get(student.digest)
        task = str(student.about["task"])
        if known is None:
            highest[task] = highest.get(task, 0) + 1
        yield version_of(student, known, highest[task])


def version_of(student: Artifact, report: Report | None, free: int = 0) -> StudentVersion:
    """A version as its artifacts tell of it; `free` is the number of one that was never judged."""
    about: Mapping[str, Any] = student.about
    # Before there were recipes every student was a head on an encoder; later ones say themselves.
    made_by = about.get("recipe")
    recipe: dict[str, Any] = {"name": "head", "family": "head"}
    recipe |= made_by if isinstance(made_by, dict) else {}
    family = FAMILIES[about.get("family", recipe["family"])]
    training = about.get("training", {})
    examples = int(training.get("examples", 0))
    return StudentVersion(
        task=str(about["task"]),
        number=report.number if report else free,
        student=student.digest,
        dataset=str(about.get("dataset", "")),
        family=family.name,
        base_kind=family.base_kind,
        base=str(about.get(family.base_kind, "")),
        recipe=str(recipe["name"]),
        labels_trained=report.labels_trained if report else examples,
        labels_bought=report.labels_bought if report else examples,
        trained_at=written_at(student),
        train_seconds=report.train_seconds if report else 0.0,
        training=training,
    )


def _add_dataset(tx: Cursor, dataset: Artifact, bought: Mapping[str, int]) -> None:
    about, at = dataset.about, written_at(dataset)
    examples, held_out = int(about["training"]), int(about["held_out"])
    add_dataset(
        tx,
        digest=dataset.digest,
        task=str(about["task"]),
        parent=about.get("parent"),
        labels=bought[dataset.digest],
        examples=examples,
        held_out=held_out,
        cut_off=at,
        now=at,
    )


def _add_run(tx: Cursor, version: StudentVersion) -> None:
    run_id = f"rebuilt-{version.student[:24]}"
    start_run(
        tx,
        run_id=run_id,
        task=version.task,
        dataset=version.dataset,
        recipe=version.recipe,
        reason=REASON,
        now=version.trained_at - timedelta(seconds=version.train_seconds),
    )
    end_run(tx, run_id=run_id, status="succeeded", student=version.student, now=version.trained_at)


def _add_evaluation(tx: Cursor, digest: str, report: Report) -> None:
    threshold = report.evaluation.threshold
    stored = StoredEvaluation(
        task=report.task,
        digest=report.student,
        attempt=report.gate.attempt,
        champion=report.champion,
        snapshot=report.evaluation.snapshot,
        items=report.evaluation.items,
        report=digest,
        verdict=report.gate.verdict,
        promotable=report.gate.promotable,
        compared=compared(report.gate),
        threshold=threshold.value,
        coverage=threshold.coverage,
        evaluated_at=report.evaluated_at,
    )
    add_evaluation(tx, stored)


def _missing(versions: list[StudentVersion]) -> int:
    """Numbers that were given and belong to nothing any more."""
    present: dict[str, set[int]] = {}
    for version in versions:
        present.setdefault(version.task, set()).add(version.number)
    return sum(max(numbers) - len(numbers) for numbers in present.values())
