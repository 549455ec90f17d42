"""The states of student versions, worked out from evaluations and decisions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.decide import (
    DECIDED,
    VERDICTS,
    Chain,
    above_ceiling,
    newest_approved,
    verdict_in_words,
    would_serve_nothing,
)
from pipelines.errors import Refused
from pipelines.types import StudentVersion
from service.operator.status import Reign, Version, VersionEvent, VersionState
from service.operator.words import sentence
from storage.database import Cursor
from storage.decisions import chain
from storage.evaluations import StoredEvaluation, latest_evaluations
from storage.reports import Report
from storage.versions import versions

ReadReport = Callable[[str], Report | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All that was found and decided about one task's versions."""

    versions: Sequence[StudentVersion]  # newest first
    evaluations: Mapping[str, StoredEvaluation]  # the latest, by student
    chain: Chain

    def name_of(self, student: str) -> str:
        found = [version.name for version in self.versions if version.student == student]
        return found[0] if found else student[:8]

    def is_stale(self, student: str) -> bool:
        """Whether it was evaluated against a champion that serves no more."""
        evaluation = self.evaluations.get(student)
        return evaluation is not None and evaluation.champion != self.chain.champion


def load_history(tx: Cursor, task: str) -> History:
    return History(
        versions=versions(tx, task),
        evaluations=latest_evaluations(tx, task),
        chain=chain(tx, task),
    )


def describe(history: History, read: ReadReport) -> list[Version]:
    """Every version with its state, newest first."""
    described: list[Version] = []
    waits = False
    for version in history.versions:
        state = _state(history, version, newer_waits=waits, newest=not described)
        waits = waits or state == "waiting"
        described.append(_describe(history, version, state, read))
    return described


def reigns(history: History) -> tuple[Reign, ...]:
    """Who was the champion when, oldest first."""
    served = history.chain.reigns
    known = {version.student: version for version in history.versions}
    found = []
    for at, link in enumerate(served):
        version = known.get(link.student)
        number = version.number if version else None
        found.append(
            Reign(
                task=link.task,
                number=number,
                name=link.student[:8] if number is None else f"{link.task}-v{number}",
                since=link.decided_at,
                until=served[at + 1].decided_at if at + 1 < len(served) else None,
                rolled_back=link.action == "rollback",
                operator=link.operator,
                reason=link.reason,
            )
        )
    return tuple(found)


def became(
    history: History, version: Version, evaluations: Sequence[StoredEvaluation]
) -> tuple[VersionEvent, ...]:
    """All that became of one version, oldest first."""
    events = [
        VersionEvent(
            at=version.trained_at,
            sentence=f"Trained on {version.labels_trained:,} labels by the recipe "
            f"{version.recipe}.",
        )
    ]
    events += [
        VersionEvent(at=found.evaluated_at, sentence=_evaluated(history, found))
        for found in evaluations
    ]
    events += [
        VersionEvent(
            at=link.decided_at,
            sentence=DECIDED[link.action].capitalize()
            + (f": {link.reason}" if link.reason else ""),
            by=link.operator,
        )
        for link in history.chain.links
        if link.student == version.student
    ]
    events += [
        VersionEvent(at=reign.until, sentence="No longer the champion.")
        for reign in reigns(history)
        if reign.number == version.number and reign.until is not None
    ]
    return tuple(sorted(events, key=lambda event: event.at))


def _evaluated(history: History, found: StoredEvaluation) -> str:
    against = f"against {short_name(history, found.champion)}" if found.champion else "alone"
    verdict = verdict_in_words(found.verdict, champion=found.champion)
    ending = "the gate let it through" if found.promotable else "the gate said no"
    return f"Evaluated {against} on {found.items:,} held-out items: {verdict}; {ending}."


def short_name(history: History, student: str) -> str:
    """`support-v3`; of a student that is not known any more the begin of its hash."""
    for version in history.versions:
        if version.student == student:
            return f"{version.task}-v{version.number}"
    return student[:8]


def promises_too_much(report: Report) -> str:
    """What an approval has to know where the target is above the teacher's own agreement."""
    return above_ceiling(report.evaluation.threshold.target, report.ceiling)


def refuse_too_much(version: StudentVersion, report: Report) -> None:
    """Raise `Refused` where an operator has to say first that it promises too much."""
    if told := promises_too_much(report):
        raise Refused(f"{version.name}: {told} Say that you know it (`above_ceiling`)")


def _state(
    history: History, version: StudentVersion, *, newer_waits: bool, newest: bool
) -> VersionState:
    student = version.student
    evaluation = history.evaluations.get(student)
    if student == history.chain.champion:
        return "champion"
    if student in history.chain.approved:
        return "approved"
    if history.chain.last(student) is not None:
        return "rejected"
    overtaken = version.number < newest_approved(history.chain, history.versions)
    if evaluation is None:
        return "trained" if newest and not overtaken else "superseded"
    if evaluation.promotable or (history.is_stale(student) and not overtaken):
        if overtaken or newer_waits:
            return "superseded"
        return "trained" if history.is_stale(student) else "waiting"
    if evaluation.verdict == "insufficient_evidence":
        return "insufficient_evidence"
    return "gate_failed"


def _describe(
    history: History, version: StudentVersion, state: VersionState, read: ReadReport
) -> Version:
    evaluation = history.evaluations.get(version.student)
    report = read(evaluation.report) if evaluation else None
    decision = history.chain.last(version.student)
    return Version(
        task=version.task,
        number=version.number,
        name=version.name,
        student=version.student,
        dataset=version.dataset,
        base_kind=version.base_kind,
        base=version.base,
        recipe=version.recipe,
        labels_trained=version.labels_trained,
        labels_bought=version.labels_bought,
        trained_at=version.trained_at,
        train_seconds=version.train_seconds,
        state=state,
        sentence=_sentence(history, version, state, report),
        verdict=evaluation.verdict if evaluation else None,
        agreement=report.evaluation.agreement.get("candidate") if report else None,
        threshold=evaluation.threshold if evaluation else None,
        coverage=evaluation.coverage if evaluation else None,
        report=evaluation.report if evaluation else None,
        evaluated_at=evaluation.evaluated_at if evaluation else None,
        decided_by=decision.operator if decision else None,
        decided_at=decision.decided_at if decision else None,
        decision_reason=decision.reason if decision else None,
        can_approve=state == "waiting" and report is not None,
        serves_nothing=would_serve_nothing(report.evaluation) if report else "",
        above_ceiling=promises_too_much(report) if report else "",
        can_reject=state in ("trained", "waiting", "insufficient_evidence", "gate_failed"),
        can_roll_back=state == "approved",
    )


def _sentence(
    history: History, version: StudentVersion, state: VersionState, report: Report | None
) -> str:
    decision = history.chain.last(version.student)
    if state == "champion" and decision:
        verb = "Rolled back to" if decision.action == "rollback" else "Approved"
        return f"Serves. {verb} by {decision.operator}."
    if state == "approved":
        return "Served before. You can roll back to it."
    if state == "rejected" and decision:
        return f"Rejected by {decision.operator}: {decision.reason}"
    if state == "superseded":
        return "A newer version was approved or waits."
    if state == "trained":
        return _trained_sentence(history, version)
    if state == "waiting":
        return _waiting_sentence(report)
    if (
        failed := [check.sentence for check in report.gate.checks if not check.passed]
        if report
        else []
    ):
        return failed[0]
    if state == "insufficient_evidence":
        return f"{sentence(VERDICTS['insufficient_evidence'])} More held-out labels are needed."
    return "The gate says no."


def _trained_sentence(history: History, version: StudentVersion) -> str:
    evaluation = history.evaluations.get(version.student)
    if evaluation is None:
        return "Not evaluated yet."
    before = history.name_of(evaluation.champion) if evaluation.champion else "no champion"
    return f"Was compared with {before}, which is out of date. It will be evaluated again."


def _waiting_sentence(report: Report | None) -> str:
    if report is None:
        return "Its report cannot be read, so it cannot be approved. Evaluate it again."
    found = verdict_in_words(report.gate.verdict, champion=report.champion)
    told = " ".join(
        filter(None, (would_serve_nothing(report.evaluation), promises_too_much(report)))
    )
    return f"The gate says it is {found}. It waits for your approval. {told}".rstrip()
