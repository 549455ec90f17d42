"""Each named failpoint kills the process there once, and the next life makes everything right.

The witnesses are the producer's list of what the topic acknowledged, the teacher's billing
log, the operator's notes of what he approved, and the gateway's of what it answered.
"""

import ast
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import pytest
from chaos_lives import (
    CALM,
    CONCURRENCY,
    arm,
    fired,
    fork,
    gateway_life,
    learner_life,
    notes,
    operator_life,
    trained,
    training_life,
)
from gateway_rig import Students, captured, publish_live, shared_students
from ingest_rig import Producer, record
from learner_rig import Scripted, open_rig, scripted_teacher
from operating import TASK as OPERATED
from operating import open_desk
from training_rig import open_shop

from service.keys import open_keys
from storage.evaluations import latest_evaluation
from storage.runs import runs

ROOT = Path(__file__).parents[2]
SENT = 24
LABELS = ("refund", "delivery", "cancel")
TEXTS = [f"message number {number} about it" for number in range(SENT)]
KILLED = -9
# Migrations come first, then recovery, then a transaction for each batch.
SECOND_BATCH = len(list((ROOT / "storage" / "migrations").glob("*.sql"))) + 3

# By the life that passes them, with the passing that is the last one.
LEARNER = {
    "database.counted": (1, SECOND_BATCH),
    "database.committed": (2, SECOND_BATCH),
    "database.noted": (3, SECOND_BATCH),
    "topic.written": (2,),
    "topic.committed": (2,),
    "ingest.read": (1, 2),
    "ingest.committed": (1, 2),
    "ingest.reported": (2,),
    "ledger.body_written": (1, 10),
    "ledger.body_kept": (1, 10),
    "ledger.written": (1, 10),
    "ledger.synced": (1, 10),
    "teacher.intended": (1, 7),
    "teacher.answered": (1, 7),
    "teacher.received": (1, 7),
    "relabel.applied": (1,),
}
OPERATOR = {
    "durable.written": (2, 5),
    "durable.synced": (2, 5),
    "durable.renamed": (2, 5),
    "durable.done": (2, 5),
    "artifact.written": (2,),
    "artifact.synced": (2,),
    "artifact.manifested": (2,),
    "artifact.renamed": (2,),
    "artifact.published": (2,),
    "artifact.half_removed": (1,),
    "decision.written": (1,),
    "decision.synced": (1,),
    "decision.in_file": (1,),
    "decision.cut": (1,),
    "live.decided": (1, 2),
    "live.published": (1, 2),
}
TRAINING = {
    "training.started": (1,),
    "training.trained": (1,),
    "training.published": (1,),
    "training.recorded": (1,),
    "evaluation.judged": (1,),
    "evaluation.published": (1,),
}
GATEWAY = {
    "swap.loaded": (1, 2),
    "swap.flipped": (2,),
    "swap.done": (2,),
    "capture.handed_over": (1,),
    "capture.flushed": (2,),
    "topic.written": (2,),
    "topic.committed": (2,),
}
# Passed once in the life of an installation.
KEYS = {"keys.written": (1,), "keys.linked": (1,)}
# Killed with the whole program running: tests/faults/test_chaos.py.
SUPERVISOR = ("supervisor.starting", "supervisor.started", "supervisor.bereft")


def points_in_the_source() -> set[str]:
    """Every argument of `passing`; it has to be a plain string, so that nothing escapes."""
    found = set()
    for path in [*(ROOT / "storage").rglob("*.py"), *(ROOT / "service").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "passing":
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{path}: {ast.unparse(node)}"
                found.add(str(argument.value))
    return found


def cases(points: Mapping[str, tuple[int, ...]]) -> list[Any]:
    return [
        pytest.param(point, nth, id=f"{point}-{nth}")
        for point, passings in points.items()
        for nth in passings
    ]


def test_every_failpoint_in_the_source_is_killed_at() -> None:
    killed = {*LEARNER, *OPERATOR, *KEYS, *TRAINING, *GATEWAY, *SUPERVISOR}
    assert points_in_the_source() == killed


# What ends or begins on disk elsewhere, and why there is no failpoint beside it.
UNMARKED = {
    "storage/durable.py:sync_folder": "its callers have theirs before and after",
    "storage/artifacts.py:_sync_file": "publish has its own before and after",
    "storage/database.py:_note_commit": "transaction has its own before and after",
    "storage/ledger.py:_open_bodies": "at the start; an empty side store is made again",
    "service/topics/topic_file.py:_sync_folder": "at the start; an empty topic is made again",
    "service/learner/base_models.py:take_in": "in a scratch folder, which a restart empties",
    "service/care/doctor/places.py:_real_write": "writes to see whether one can",
    "service/demo/scripted_teacher.py:charge": "a witness, and no part of the program",
}
# The operator's own commands, run while nothing else does; tests of theirs break them off.
OFFLINE = (
    "storage/bundle.py",
    "service/care/rebuild/run.py",
    "service/care/restore.py",
    "service/care/rollback.py",
)
LASTING = {"os.fsync", "os.fdatasync", "os.replace", "os.rename", "os.link"}


def test_what_lasts_on_disk_has_failpoints_beside_it() -> None:
    bare = set()
    for path in [*(ROOT / "storage").rglob("*.py"), *(ROOT / "service").rglob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or name in OFFLINE:
                continue
            calls = {ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
            lasts = any(c in LASTING or c.endswith((".commit", ".rename")) for c in calls)
            if lasts and "passing" not in calls:
                bare.add(f"{name}:{node.name}")
    assert bare == set(UNMARKED)


def test_failpoints_are_off_unless_their_variable_is_set() -> None:
    source = (ROOT / "storage" / "failpoints.py").read_text()
    assert source.count("environ") == 2, "armed by one variable, read once"
    for name in ("settings.py", "sections.py"):
        assert "failpoint" not in (ROOT / "service" / name).read_text().lower()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: a killed process loses nothing of what it has written,
    synced or not, and what only a sync keeps is for tests/faults/test_chaos_durability.py."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with TemporaryDirectory(dir=memory, prefix="flywheel-chaos-") as made:
        yield Path(made)


def die(folder: Path, point: str, nth: int, life: Any, *arguments: Any) -> None:
    arm(folder, point, nth=nth)
    assert fork(life, folder, *arguments) == KILLED, f"{point} was not passed {nth} times"
    assert fired(folder) == [point]


@pytest.fixture(scope="module")
def shared_teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    answers = {text: LABELS[number % 3] for number, text in enumerate(TEXTS)}
    with scripted_teacher(tmp_path_factory.mktemp("teacher"), answers) as teacher:
        yield teacher


@pytest.mark.parametrize(("point", "nth"), cases(LEARNER))
def test_a_learner_killed_here_loses_doubles_and_buys_nothing_twice(
    point: str, nth: int, folder: Path, shared_teacher: Scripted
) -> None:
    with shared_teacher.billing.open("w"):
        pass
    producer = Producer(folder)
    producer.send(*(record(f"e-{number}", text) for number, text in enumerate(TEXTS)))
    producer.close()

    die(folder, point, nth, learner_life, shared_teacher.url)
    assert fork(learner_life, folder, shared_teacher.url) == 0

    with open_rig(folder) as rig:
        assert rig.scalar("SELECT sum(events) FROM traffic") == SENT
        assert rig.scalar("SELECT next_offset FROM offsets") == SENT
        assert set(rig.statuses()) == {f"e-{number}" for number in range(SENT)}
        labelled = len(rig.labels())
    billed = Counter(bill["messages_sha256"] for bill in shared_teacher.bills())
    assert max(billed.values()) == 1, "something was bought twice"
    steps = last_steps(folder / "ledger" / "ledger.jsonl")
    unknown = sum(step == "unknown" for step in steps.values())
    assert unknown <= CONCURRENCY
    assert labelled == SENT - unknown
    assert labelled <= len(billed) <= labelled + unknown


def last_steps(ledger: Path) -> dict[str, str]:
    """The ledger, read without the program: each line with its checksum."""
    steps = {}
    for line in ledger.read_bytes().splitlines():
        checksum, _, body = line.partition(b" ")
        assert checksum == b"%08x" % crc32(body)
        step = json.loads(body)
        steps[step["key"]] = step["step"]
    return steps


@pytest.mark.parametrize(("point", "nth"), cases(OPERATOR))
def test_an_operator_whose_learner_dies_here_finds_the_champion_whole_and_approved(
    point: str, nth: int, folder: Path
) -> None:
    assert fork(operator_life, folder) == 0
    if point == "decision.cut":
        with (folder / "decisions.jsonl").open("ab") as file:
            file.write(b'{"half a lin')

    die(folder, point, nth, operator_life)
    check_champion(folder)
    assert fork(operator_life, folder) == 0
    check_champion(folder)


@pytest.mark.parametrize(("point", "nth"), cases(KEYS))
def test_an_installation_that_dies_while_it_makes_its_keys_can_start_again(
    point: str, nth: int, folder: Path
) -> None:
    die(folder, point, nth, operator_life)
    assert fork(operator_life, folder) == 0
    check_champion(folder)


def check_champion(folder: Path) -> None:
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    with open_desk(folder) as desk:  # recovers, as a learner does
        champion = desk.live().tasks[OPERATED].champion
        assert champion is not None
        assert champion.student == desk.champion()
        assert champion.student in notes(folder, "approved")
        desk.artifacts.open("student", champion.student)
        desk.artifacts.open("report", champion.report)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    with open_shop(folder) as shop:
        shop.fill(5)
    # The vectors of its texts are made once.
    shutil.copytree(folder, once := tmp_path_factory.mktemp("once"), dirs_exist_ok=True)
    assert fork(training_life, once) == 0
    shutil.copytree(once / "cache", folder / "cache")
    return folder


@pytest.mark.parametrize(("point", "nth"), cases(TRAINING))
def test_a_learner_killed_here_ends_with_one_version_judged_once(
    point: str, nth: int, filled: Path, folder: Path
) -> None:
    shutil.copytree(filled, folder, dirs_exist_ok=True)

    die(folder, point, nth, training_life)
    assert fork(training_life, folder) == 0

    (name,) = trained(folder)
    with open_shop(folder) as shop, shop.rig.database.snapshot() as tx:
        assert {run.status for run in runs(tx, "support", 10)} <= {"succeeded", "failed"}
        digest = shop.artifacts.digests("student")
        found = [latest_evaluation(tx, "support", one) for one in digest]
        judged = [evaluation for evaluation in found if evaluation]
        assert name.startswith("support-v1-")
        assert len(judged) == 1
        shop.artifacts.open("report", judged[0].report)
        assert shop.children_left() == []


@pytest.fixture(scope="module")
def students() -> Students:
    return shared_students()


@pytest.mark.parametrize(("point", "nth"), cases(GATEWAY))
def test_a_gateway_killed_here_serves_only_what_is_approved_and_doubles_nothing(
    point: str, nth: int, tmp_path: Path, students: Students
) -> None:
    keys = open_keys(tmp_path)
    first, second = students.publish(tmp_path, 1), students.publish(tmp_path, 2, strength=3.0)
    publish_live(tmp_path, keys, first)

    die(tmp_path, point, nth, gateway_life, first, second)
    assert fork(gateway_life, tmp_path, first, second) == 0

    answered = dict(line.split() for line in notes(tmp_path, "answered"))
    assert set(answered.values()) <= {first.name, second.name}
    kept = [event.event_id for event in captured(tmp_path, keys)]
    assert len(kept) == len(set(kept))
    # An answer that was captured may have died before its line in the log, but only one.
    assert len(set(kept) - set(answered)) <= 1
    assert set(list(answered)[-6:]) <= {*kept, list(answered)[-6]}, "the second life lost some"


def test_what_a_life_passes_is_written_down(folder: Path) -> None:
    """The harness sees a point that no life passes any more."""
    assert fork(operator_life, folder) == 0
    passed = {path.name for path in (folder / CALM / "passed").iterdir()}
    assert {point for point in OPERATOR if point != "decision.cut"} <= passed
