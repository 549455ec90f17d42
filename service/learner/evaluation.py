"""The evaluate job: candidate, champion and rivals on the held-out items, then the gate."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import cast

import structlog

from pipelines.checks import groups_needed
from pipelines.curate import normalise, of_now, uncontaminated
from pipelines.evaluate import CHAMPION, evaluate, thin
from pipelines.gate import GateFacts, GatePolicy, Turn, compared, judge
from pipelines.label import write_answer
from pipelines.marks import NO_COURSE, Course, asked_of
from pipelines.pool import PoolPart
from pipelines.recipes import RECIPES, Recipe, RecipeName
from pipelines.rows import read_training
from pipelines.shape import shape
from pipelines.traffic import course_of, weighted
from pipelines.types import (
    Answers,
    Evaluation,
    GateReport,
    HeldOutItem,
    PairCounts,
    StudentVersion,
)
from pipelines.work import AnswerFacts
from service.learner.answering import answer_items
from service.learner.ceiling import ceiling_of
from service.learner.looks import departed, new_items
from service.learner.pooling import (
    Comparison,
    after_asking,
    compare,
    kept_for,
    may_ask,
    remembered,
)
from service.learner.workshop import Workshop
from storage.database import Cursor
from storage.decisions import chain
from storage.decisions import champion as champion_of
from storage.evaluations import (
    StoredEvaluation,
    add_evaluation,
    evaluations_of,
    gate_turn,
    latest_evaluation,
)
from storage.failpoints import passing
from storage.guards import last_shift
from storage.pool import ask_for
from storage.reports import (
    Golden,
    Report,
    write_card,
    write_items,
    write_pool,
    write_report,
)
from storage.shapes import newest_shapes
from storage.ticks import JobResult
from storage.versions import version_by_digest, versions, versions_by_content

log = structlog.get_logger()

# A candidate that is not promotable and not worse is judged again when so many items, of those
# that judged it last, are new: what is not shown to be better yet may be shown later.
LOOK_AGAIN_SHARE = 0.2
CHAMPION_CHANGED = "the champion has changed"
MORE_EVIDENCE = "there are new held-out items"
LABELS_CAME = "the labels where it and the champion differ have come"
LABELS_LATE = "the labels where it and the champion differ are late"
LABELS_AWAITED = "it waits for the labels where it and the champion differ"
FOR_LABELS = {"came": LABELS_CAME, "late": LABELS_LATE, "waits": LABELS_AWAITED}


class Evaluating:
    """Judges versions and publishes the reports that approvals are bound to."""

    def __init__(self, workshop: Workshop) -> None:
        self._shop = workshop
        # A version that is judged twice at once would spend its evidence twice.
        self._judging = Lock()

    def run(self, task_name: str) -> JobResult:
        """One tick: judge the newest version, and its challenger, if there is a reason to."""
        with self._judging:
            with self._shop.database.snapshot() as tx:
                found = versions(tx, task_name)
            if not found:
                return JobResult("nothing", f"{task_name}: no student was trained yet")
            # A challenger was trained on the very labels of the version that it challenges.
            newest = {one.recipe: one for one in reversed(found) if one.dataset == found[0].dataset}
            ordered = sorted(newest.values(), key=lambda version: -version.number)
            results = [self._run(version) for version in ordered]
        judged = [result for result in results if result.outcome == "done"] or results[:1]
        return JobResult(judged[0].outcome, "; ".join(result.detail for result in judged))

    def _run(self, newest: StudentVersion) -> JobResult:
        with self._shop.database.snapshot() as tx:
            last = latest_evaluation(tx, newest.task, newest.student)
            reason = self._why_judge(tx, newest, last)
        if reason is None:
            return JobResult("nothing", f"{newest.name} was judged, and nothing has changed since")
        if reason == LABELS_AWAITED:
            return JobResult("nothing", f"{newest.name}: {reason}")
        items, traffic, course = self._items(newest)
        # As the evaluation will thin them: what it leaves out is no more evidence.
        usable = thin(items)
        again = last if reason == MORE_EVIDENCE else None
        new = new_items(self._shop.artifacts, again, usable) if again else len(usable)
        enough = math.ceil(LOOK_AGAIN_SHARE * again.items) if again else 1
        if new < enough:
            return JobResult(
                "nothing",
                f"{newest.name}: {new} new held-out items to judge it on; {enough} are needed",
            )
        # Once, and only before the first look: later ones may be taken at any time.
        wait = last is None or reason == CHAMPION_CHANGED
        # Not each time that labels have come: the pool grows, and there would be no end of looks.
        go_on = reason not in (LABELS_CAME, LABELS_LATE)
        report = self.judge(newest, items, traffic, course, wait=wait, go_on=go_on)
        return JobResult("done", f"{newest.name} ({reason}): {report.verdict}")

    def _why_judge(
        self, tx: Cursor, version: StudentVersion, last: StoredEvaluation | None
    ) -> str | None:
        decided = chain(tx, version.task)
        if decided.last(version.student) is not None:
            return None
        if last is None:
            return "not judged yet"
        if last.champion != decided.champion:
            return CHAMPION_CHANGED
        if last.promotable or last.verdict == "worse":
            return None
        asked = after_asking(self._shop, tx, last)
        return FOR_LABELS[asked] if asked else MORE_EVIDENCE

    def judge(
        self,
        version: StudentVersion,
        items: Sequence[HeldOutItem],
        traffic: Sequence[HeldOutItem] = (),
        course: Course = NO_COURSE,
        *,
        wait: bool = False,
        go_on: bool = True,
    ) -> GateReport:
        """Evaluate one version, publish its report and record the verdict.

        `wait`: ask for what kept events lack before a first look. `go_on`: read more of them.
        """
        shop = self._shop
        with shop.database.snapshot() as tx:
            digest = champion_of(tx, version.task)
            champion = version_by_digest(tx, version.task, digest) if digest else None
            turn = gate_turn(tx, version.task, version.student, digest, shop.now())
            past = evaluations_of(tx, version.task, version.student)
            sibling = self._challenged(tx, version)
        dataset = shop.artifacts.path("dataset", version.dataset)
        pool = kept_for(shop, version.task, items, _training_texts(dataset)) if champion else ()
        students = {"candidate": version, "champion": champion, "sibling": sibling}
        scratch = shop.scratch()
        try:
            asked = asked_of(items, traffic)
            answers, golden, facts = answer_items(
                shop, students, asked, [one.item for one in pool], scratch
            )
            go_on, before = go_on and may_ask(shop.settings), remembered(shop, past, digest)
            kept = compare(pool, answers, len(asked), before, go_on=go_on)
            lacking = kept.lacking if wait and turn.look == 1 else 0
            evaluation = self._evaluate(version, (items, traffic, course), answers, kept.part)
            gate = self._gate(
                evaluation,
                turn,
                replace(self._facts(version, champion, items, facts), labels_awaited=lacking),
                departed(shop.artifacts, past, digest, items, kept.counted),
            )
            with shop.database.snapshot() as tx:
                ceiling = ceiling_of(tx, shop.tasks[version.task])
            report = self._report(version, champion, evaluation, gate, facts, kept)
            refused = sum(not item.label for item in thin(items))
            report = replace(report, refused=refused, ceiling=ceiling)
            self._publish(version, report, golden, items, kept, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        shop.metrics.gate_verdicts.labels(task=version.task, verdict=gate.verdict).inc()
        log.info(
            "version_judged",
            student_version=version.name,
            verdict=gate.verdict,
            promotable=gate.promotable,
            items=evaluation.items,
            failed_checks=[check.name for check in gate.checks if not check.passed],
        )
        return gate

    def _items(
        self, version: StudentVersion
    ) -> tuple[Sequence[HeldOutItem], Sequence[HeldOutItem], Course]:
        """The present held-out window without what the version's training set resembles, the
        traffic of that time, and in which order they came.
        """
        task = self._shop.tasks[version.task]
        with self._shop.database.snapshot() as tx:
            shift = last_shift(tx, task.name, self._shop.now())
        settings = self._shop.settings
        fewest = groups_needed(settings.gate.min_groups, settings.tasks[task.name].target)
        curated = self._shop.curated(task, self._shop.now())
        held_out = of_now(curated.held_out, shift, fewest)
        dataset = self._shop.artifacts.path("dataset", version.dataset)
        items = uncontaminated(held_out, _training_texts(dataset))
        most = settings.dataset.held_out_window
        traffic = weighted(curated.draws, items, most)
        return items, traffic, course_of(curated.draws, items, traffic, most)

    def _size(self, version: StudentVersion) -> int:
        """Bytes that this version adds: its own files, and a base that was tuned for it."""
        artifacts = self._shop.artifacts
        folders = [artifacts.path("student", version.student)]
        if "recipe" in artifacts.about(version.base_kind, version.base):
            folders.append(artifacts.path(version.base_kind, version.base))
        return sum(file.stat().st_size for folder in folders for file in folder.iterdir())

    def _challenged(self, tx: Cursor, version: StudentVersion) -> StudentVersion | None:
        """What a challenger has to beat: the task's own recipe on the same labels."""
        own = self._shop.settings.tasks[version.task].recipe
        if version.recipe == own:
            return None
        return next(iter(versions_by_content(tx, version.task, version.dataset, own)), None)

    def _evaluate(
        self,
        version: StudentVersion,
        evidence: tuple[Sequence[HeldOutItem], Sequence[HeldOutItem], Course],
        answers: dict[str, Answers],
        pool: PoolPart | None,
    ) -> Evaluation:
        items, traffic, course = evidence
        return evaluate(
            items,
            answers.pop("candidate"),
            answers,
            target=self._shop.settings.tasks[version.task].target,
            alpha=self._shop.settings.gate.alpha,
            pool=pool,
            traffic=traffic,
            course=course,
        )

    def _facts(
        self,
        version: StudentVersion,
        champion: StudentVersion | None,
        items: Sequence[HeldOutItem],
        measured: AnswerFacts,
    ) -> GateFacts:
        """Looked up again after the evaluation: an operator may have decided meanwhile."""
        task = self._shop.tasks[version.task]
        with self._shop.database.snapshot() as tx:
            serving = champion_of(tx, version.task)
            shapes = newest_shapes(tx, version.task)
        trained = set(
            map(
                normalise,
                _training_texts(self._shop.artifacts.path("dataset", version.dataset)),
            )
        )
        return GateFacts(
            has_champion=serving is not None,
            champion_is_current=serving == (champion.student if champion else None),
            evaluation_is_fresh=True,
            # Near-duplicates were left out; this counts what must not have slipped through.
            leaked_items=sum(normalise(item.text) in trained for item in items),
            latency_ms=measured.latency_ms,
            size_mb=self._size(version) / 1e6,
            shape=shape(write_answer(task.labels[0], task)),
            shapes=shapes,
        )

    def _gate(
        self, evaluation: Evaluation, turn: Turn, facts: GateFacts, gone: PairCounts
    ) -> GateReport:
        gate = self._shop.settings.gate
        policy = GatePolicy(
            alpha=gate.alpha,
            delta=gate.delta,
            min_groups=gate.min_groups,
            min_segment_pairs=gate.min_segment_pairs,
            max_negative_flips=gate.max_negative_flips,
            max_calibration_error=gate.max_calibration_error,
        )
        return judge(
            evaluation,
            policy,
            facts,
            turn=turn,
            departed={CHAMPION: gone},
        )

    def _report(
        self,
        version: StudentVersion,
        champion: StudentVersion | None,
        evaluation: Evaluation,
        gate: GateReport,
        facts: AnswerFacts,
        kept: Comparison,
    ) -> Report:
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
            gate=gate,
            evaluated_at=self._shop.now(),
            train_seconds=version.train_seconds,
            size_bytes=self._size(version),
            latency_ms=facts.latency_ms,
            labels_asked=len(kept.wanted(gate)),
        )

    def _publish(
        self,
        version: StudentVersion,
        report: Report,
        golden: Sequence[Golden],
        items: Sequence[HeldOutItem],
        kept: Comparison,
        scratch: Path,
    ) -> None:
        wanted = kept.wanted(report.gate)
        for leftover in scratch.iterdir():
            leftover.unlink()
        write_report(scratch, report, golden)
        write_items(scratch, (item.event_id for item in thin(items)))
        write_pool(scratch, kept.after(wanted))
        artifacts = self._shop.artifacts
        made_by = artifacts.about("student", version.student).get("recipe")
        write_card(
            scratch,
            report,
            version,
            recipe=Recipe(**made_by)
            if isinstance(made_by, dict)
            else RECIPES[cast("RecipeName", version.recipe)],
            dataset=artifacts.about("dataset", version.dataset),
            base=artifacts.about(version.base_kind, version.base),
            teacher=self._shop.settings.teacher.model,
        )
        passing("evaluation.judged")
        artifact = self._shop.artifacts.publish("report", scratch, {"student": version.student})
        passing("evaluation.published")
        threshold = report.evaluation.threshold
        with self._shop.database.transaction() as tx:
            ask_for(tx, wanted)
            add_evaluation(
                tx,
                StoredEvaluation(
                    task=version.task,
                    digest=version.student,
                    attempt=report.gate.attempt,
                    champion=report.champion,
                    snapshot=report.evaluation.snapshot,
                    items=report.evaluation.items,
                    report=artifact.digest,
                    verdict=report.gate.verdict,
                    promotable=report.gate.promotable,
                    compared=compared(report.gate),
                    threshold=threshold.value,
                    coverage=threshold.coverage,
                    evaluated_at=report.evaluated_at,
                ),
            )


def _training_texts(dataset: Path) -> list[str]:
    return [row.text for row in read_training(dataset)]
