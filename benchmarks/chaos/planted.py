"""Bugs planted on purpose, each in a copy of the program, and the test that catches it.

Each is a replacement of exact text: when the program has changed and the text is not found,
that is an error, never a bug that was "caught".
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, ROOT, commit, write_results

COPIED = ("pipelines", "storage", "service", "tests", "benchmarks", "deploy")
POINTS = "tests/faults/test_chaos_points.py::"
A_LEARNER = POINTS + "test_a_learner_killed_here_loses_doubles_and_buys_nothing_twice"
TEST_SECONDS = 300
INTEND = """\
        self._ledger.intend(
            question.key,
            event_id=question.event_id,
            request=canonical(parameters),
            repeat=question.repeat,
            reserve=Amounts(tokens=question.tokens, money=money),
            now=self._now(),
        )
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """What is replaced in which file, and which test must fail then."""

    name: str
    file: str
    old: str
    new: str
    test: str
    more: tuple[tuple[str, str], ...] = ()  # further replacements in the same file
    cheap: bool = False  # caught within seconds


BUGS: Sequence[Bug] = (
    Bug(
        name="auto-commit consumer",
        file="service/learner/ingest.py",
        old='        passing("ingest.read")\n        self._commit(work)\n',
        new="        with self._database.transaction() as early:\n"
        "            store_offsets(early, self._reader.name, self._identity,\n"
        "                          work.batch.next_offsets, self._now())\n"
        '        passing("ingest.read")\n        self._commit(work)\n',
        test=f"{A_LEARNER}[ingest.read-2]",
    ),
    Bug(
        name="offset outside the transaction",
        file="service/learner/ingest.py",
        old="                    store_offsets(tx, name, self._identity, offsets, now)\n"
        "                break\n",
        new='                passing("ingest.read")\n'
        "                with self._database.transaction() as tx:\n"
        "                    store_offsets(tx, name, self._identity, offsets, now)\n"
        "                break\n",
        test=f"{A_LEARNER}[ingest.read-2]",
    ),
    Bug(
        name="check-then-increment budget",
        file="service/learner/teacher.py",
        old="        self._ledger.intend(\n",
        new="        await asyncio.sleep(0)\n        self._ledger.intend(\n",
        test="tests/learner/test_relabel.py::test_budget_is_a_hard_ceiling_under_concurrency",
    ),
    Bug(
        name="ledger written after the call",
        file="service/learner/teacher.py",
        old=INTEND + '        passing("teacher.intended")\n',
        new='        passing("teacher.intended")\n',
        more=(("        body = response.content\n", "        body = response.content\n" + INTEND),),
        test=f"{A_LEARNER}[teacher.answered-7]",
    ),
    Bug(
        name="interrupted call sent again",
        file="service/learner/teacher.py",
        old='                call.key, "unknown", detail="the learner stopped during the call"',
        new='                call.key, "not_sent", detail="the learner stopped during the call"',
        test=f"{A_LEARNER}[teacher.answered-7]",
    ),
    Bug(
        name="publish without fsync",
        file="storage/artifacts.py",
        old="                _sync_file(scratch / name)\n",
        new="                pass\n",
        test="tests/faults/test_chaos_durability.py::test_a_published_artifact_survives_a_power_cut",
        cheap=True,
    ),
    Bug(
        name="durable write without fsync",
        file="storage/durable.py",
        old="            os.fsync(file.fileno())\n",
        new="",
        test="tests/faults/test_chaos_durability.py::test_what_is_published_live_survives_a_power_cut",
        cheap=True,
    ),
    Bug(
        name="manifest first",
        file="storage/artifacts.py",
        old="            try:\n                os.replace(scratch, target)\n",
        new="            target.mkdir()\n"
        "            os.replace(scratch / MANIFEST, target / MANIFEST)\n"
        '            passing("artifact.manifested")\n'
        "            for name in manifest['files']:\n"
        "                (target / name).parent.mkdir(parents=True, exist_ok=True)\n"
        "                os.replace(scratch / name, target / name)\n"
        "            try:\n                shutil.rmtree(scratch)\n",
        test="tests/faults/test_chaos_durability.py::"
        "test_a_power_cut_while_publishing_leaves_the_artifact_whole_or_absent",
        cheap=True,
    ),
    Bug(
        name="same-name reload",
        file="service/gateway/generations.py",
        old="    return student.name, student.student, student.base, student.report\n",
        new='    return student.name, "", "", ""\n',
        test="tests/faults/test_chaos_swaps.py::test_another_student_under_a_known_name_is_loaded_anew",
    ),
    Bug(
        name="alias flipped before warm-up",
        file="service/gateway/generations.py",
        old="        check_golden(wanted.name, student, report)\n"
        "        failures = Failures(task.name, wanted.name, self._metrics)\n"
        "        return Generation(task=task, live=wanted, student=student, failures=failures)\n",
        new="        failures = Failures(task.name, wanted.name, self._metrics)\n"
        "        made = Generation(task=task, live=wanted, student=student, failures=failures)\n"
        "        before = self.current.get(task.name, Served())\n"
        "        self._flip(task, Served(champion=made, previous=before.champion))\n"
        "        try:\n"
        "            check_golden(wanted.name, student, report)\n"
        "        except BaseException:\n"
        "            self._flip(task, before)\n"
        "            raise\n"
        "        return made\n",
        test="tests/faults/test_chaos_swaps.py::test_a_refused_student_answers_not_one_request",
    ),
    Bug(
        name="unload without drain",
        file="service/gateway/generations.py",
        old="        # One assignment: every request that starts after it sees the new mapping.\n",
        new="        for one in self._alive:\n"
        "            if served.champion is not None and one.live != served.champion.live:\n"
        "                object.__setattr__(one.student, '_head', None)\n",
        test="tests/gateway/test_generations.py::test_swaps_under_load_fail_no_request_and_mix_no_versions",
    ),
    Bug(
        name="gate passing on NaN",
        file="pipelines/checks.py",
        old="    usable = broken == 0 and agreement is not None and 0.0 <= agreement.value <= 1.0",
        new="    usable = agreement is not None and not agreement.value < 0.0",
        test="tests/core/test_gate.py::test_a_candidate_that_answers_nan_is_not_promotable",
        cheap=True,
    ),
    Bug(
        name="held-out leaking into training",
        file="pipelines/curate.py",
        old="    training = [item.example for item in samples "
        "if item.example.side is Side.TRAINING]\n",
        new="    training = [item.example for item in samples]\n",
        test="tests/core/test_curate.py::test_held_out_side_never_trains_drawn_or_not",
        cheap=True,
    ),
    Bug(
        name="decision not bound to the hash",
        file="pipelines/decide.py",
        old="    if judged.report != report:\n",
        new="    if False:\n",
        test="tests/operator/test_operations.py::test_only_the_report_that_was_looked_at_can_be_approved",
    ),
    Bug(
        name="torn line kept",
        file="storage/decisions.py",
        old="            if whole != len(content):\n",
        new="            if False:\n",
        test="tests/storage/test_decisions.py::"
        "test_a_torn_last_line_is_dropped_and_the_next_decision_starts_its_own",
    ),
    Bug(
        name="hidden retries in the client",
        file="service/learner/teacher.py",
        old="            max_retries=0,",
        new="            max_retries=2,",
        test="tests/faults/test_faults_teacher.py::"
        "test_a_teacher_that_hangs_up_may_have_charged_so_the_call_is_held",
    ),
    Bug(
        name="unsigned publication obeyed",
        file="storage/live.py",
        old="        if not hmac.compare_digest(signature, _sign(body, key)):\n",
        new="        if not signature:\n",
        test="tests/storage/test_artifacts.py::test_live_that_we_did_not_write_is_refused",
        cheap=True,
    ),
)


@contextmanager
def copy_of_the_program() -> Iterator[Path]:
    """What the tests need, in a folder that may be spoilt."""
    with tempfile.TemporaryDirectory(prefix="planted-") as made:
        folder = Path(made)
        for name in COPIED:
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(ROOT / "pyproject.toml", folder)
        yield folder


def plant(bug: Bug, folder: Path) -> None:
    """Put a bug into a copy. Raises `LookupError` where the text is not there exactly once."""
    path = folder / bug.file
    text = path.read_text()
    for old, new in ((bug.old, bug.new), *bug.more):
        if text.count(old) != 1:
            raise LookupError(f"{bug.name}: its place in {bug.file} is not there any more")
        text = text.replace(old, new)
    path.write_text(text)


def run_test(folder: Path, test: str) -> "subprocess.CompletedProcess[str]":
    """Run one test against the program in `folder`."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True,
        timeout=TEST_SECONDS, check=False,
    )  # fmt: skip


def is_caught(bug: Bug) -> bool:
    """Whether the bug's test fails, by an assertion or an error of its own, with the bug."""
    with copy_of_the_program() as folder:
        plant(bug, folder)
        done = run_test(folder, bug.test)
    if done.returncode not in (0, 1) or "no tests ran" in done.stdout:
        raise RuntimeError(f"{bug.name}: {bug.test} could not be run\n{done.stdout[-3000:]}")
    return done.returncode == 1


def passes_without(tests: Sequence[str]) -> bool:
    """Whether these tests pass in a copy in which nothing was planted."""
    with copy_of_the_program() as folder:
        for test in tests:
            done = run_test(folder, test)
            if done.returncode != 0:
                print(f"{test} fails without any bug\n{done.stdout[-3000:]}")
                return False
    return True


def plant_all() -> int:
    """Every bug, one after the other; the counts go into `benchmarks/results/chaos.json`."""
    sound = passes_without(sorted({bug.test for bug in BUGS}))
    caught = {}
    for bug in BUGS:
        caught[bug.name] = is_caught(bug)
        print(f"{bug.name:45} {'caught' if caught[bug.name] else 'NOT CAUGHT'}", flush=True)
    keep(caught)
    print(f"{sum(caught.values())} of {len(caught)} caught")
    return 0 if sound and all(caught.values()) else 1


def keep(caught: dict[str, bool]) -> None:
    """Beside the figures of the run, whose commit stays theirs."""
    path = RESULTS / "chaos.json"
    before: dict[str, Any] = {"figures": {}, "seed": 0}
    if path.exists():
        before = json.loads(path.read_text())
    figures = before.pop("figures") | {
        "planted_bugs": len(caught),
        "planted_bugs_caught": sum(caught.values()),
    }
    tests = {bug.name: bug.test.removeprefix("tests/") for bug in BUGS}
    more = before | {"planted": tests, "planted_commit": commit()}
    write_results("chaos", figures, **more)
