"""Swaps: nothing unapproved or changed is ever served, and no request notices."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from gateway_rig import (
    ALL_TEXTS,
    TASK,
    LearnerSide,
    Load,
    RunningGateway,
    Students,
    Teacher,
    publish_live,
    serving,
    settings_for,
    shared_students,
    wait_until,
)

from pipelines.students.encoder import Encoder
from service.gateway.batcher import Batcher
from service.gateway.student import StudentReply
from service.keys import Keys, open_keys
from service.sections import BudgetSettings
from storage.durable import write_durably
from storage.live import Live, LiveTask, encode_live


@pytest.fixture(scope="module")
def students() -> Students:
    return shared_students()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    teacher = Teacher()
    with serving(teacher.app()) as port:
        teacher.port = port
        running = RunningGateway(settings_for(tmp_path, teacher))
        yield running
        running.stop()


def test_swaps_under_load_fail_no_request_and_mix_no_versions(
    gateway: RunningGateway, students: Students
) -> None:
    folder = gateway.settings.data_dir
    published = [
        students.publish(folder, n, strength=strength) for n, strength in ((1, 2.0), (2, 20.0))
    ]
    gateway.serve(published[0])
    with Load(gateway) as load:
        for turn in range(8):
            new, old = published[(turn + 1) % 2], published[turn % 2]
            gateway.serve(new, old)
            time.sleep(0.1)
    assert load.failures == []
    assert set(load.versions) == {student.name for student in published}
    wait_until(lambda: gateway.metric("resident_generations") <= 2)


def test_a_rollback_is_immediate(gateway: RunningGateway, students: Students) -> None:
    folder = gateway.settings.data_dir
    first, second = students.publish(folder, 1), students.publish(folder, 2, strength=3.0)
    gateway.serve(first)
    gateway.serve(second, first)
    wait_until(lambda: gateway.metric("resident_generations") == 2)
    # What is resident needs no disk.
    for digest in (first.student, second.student):
        (folder / "artifacts" / "student" / digest / "head.safetensors").unlink()
    # A rollback is another decision about the same student.
    again = msgspec.structs.replace(first, decision="decision-3")
    started = time.monotonic()
    gateway.publish(again, second)
    wait_until(lambda: gateway.chat().headers["x-flywheel-version"] == first.name)
    assert time.monotonic() - started < 5
    assert gateway.metric("swaps_total", task=TASK, outcome="rolled_back") == 1


def test_the_version_before_is_asked_beside_the_champion(
    gateway: RunningGateway, students: Students
) -> None:
    """What an automatic rollback rests on."""
    folder = gateway.settings.data_dir
    first, second = students.publish(folder, 1), students.publish(folder, 2, strength=3.0)
    message = {"role": "user", "content": ALL_TEXTS[0]}
    body = {"task": TASK, "events": [{"event_id": "e1", "messages": [message]}], "role": "previous"}
    gateway.serve(first)
    refused = gateway.http.post("/v1/assess", json=body)
    assert refused.status_code == 409
    assert "no previous student" in refused.text

    gateway.serve(second, first)
    wait_until(lambda: gateway.metric("resident_generations") == 2)

    assert gateway.http.post("/v1/assess", json=body).json()["version"] == first.name
    champion = gateway.http.post("/v1/assess", json={**body, "role": "champion"}).json()
    assert champion["version"] == second.name


def test_a_text_that_breaks_the_model_fails_alone(students: Students) -> None:
    # It may read further than it can.
    encoder = Encoder(students.encoder_path, threads=1, max_tokens=4000)
    batches: list[int] = []
    batcher = Batcher(encoder, lambda seconds, texts: batches.append(texts))
    head = students.head()

    async def ask() -> list[StudentReply | BaseException]:
        texts = [ALL_TEXTS[0], ALL_TEXTS[8], "parcel " * 1500, ALL_TEXTS[16]]
        asked = (batcher.answer(text, head) for text in texts)
        return await asyncio.gather(*asked, return_exceptions=True)

    alone, first, broken, second = asyncio.run(ask())
    assert batches == [1, 3]
    assert isinstance(broken, Exception)
    labels = [reply.label for reply in (alone, first, second) if isinstance(reply, StudentReply)]
    assert labels == ["refund", "delivery", "invoice"]


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # the file may be a link to one that others use
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("student", "head.safetensors"),
        ("student", "student.json"),
        ("report", "golden.json"),
        ("student", "manifest.json"),
    ],
)
def test_a_changed_artifact_is_refused_and_the_old_student_serves_on(
    gateway: RunningGateway, students: Students, kind: str, file: str
) -> None:
    folder = gateway.settings.data_dir
    good, bad = students.publish(folder, 1), students.publish(folder, 2, strength=3.0)
    gateway.serve(good)
    digest = bad.student if kind == "student" else bad.report
    flip_byte(folder / "artifacts" / kind / digest / file)
    gateway.publish(bad, good)
    wait_until(lambda: TASK in gateway.readyz()[1]["failed"])
    assert gateway.chat().headers["x-flywheel-version"] == good.name
    assert gateway.metric("swaps_total", task=TASK, outcome="artifact") == 1


def test_a_changed_encoder_is_never_loaded(gateway: RunningGateway, students: Students) -> None:
    folder = gateway.settings.data_dir
    student = students.publish(folder, 1)
    flip_byte(folder / "artifacts" / "encoder" / student.base / "model.onnx")
    gateway.publish(student)
    wait_until(lambda: TASK in gateway.readyz()[1]["failed"])
    assert gateway.chat().headers["x-flywheel-served-by"] == "teacher"


@pytest.mark.parametrize(
    "golden",
    [
        [],
        [{"text": ALL_TEXTS[0], "label": "invoice", "confidence": 0.9}],
        [{"text": ALL_TEXTS[0], "label": "refund", "confidence": 0.123}],
        [{"text": ALL_TEXTS[0], "label": "refund"}],
    ],
)
def test_a_student_that_answers_golden_prompts_otherwise_is_refused(
    gateway: RunningGateway, students: Students, golden: list[dict[str, Any]]
) -> None:
    folder = gateway.settings.data_dir
    good = students.publish(folder, 1)
    gateway.serve(good)
    gateway.publish(students.publish(folder, 2, strength=3.0, golden=golden), good)
    wait_until(lambda: gateway.metric("swaps_total", task=TASK, outcome="golden") == 1)
    assert gateway.chat().headers["x-flywheel-version"] == good.name


def test_a_student_of_another_task_or_encoder_is_refused(
    gateway: RunningGateway, students: Students
) -> None:
    folder = gateway.settings.data_dir
    for number, about in enumerate(({"task": "other"}, {"encoder": "0" * 64})):
        gateway.publish(students.publish(folder, number, about=about))
        expected = number + 1
        wait_until(
            lambda expected=expected: (
                gateway.metric("swaps_total", task=TASK, outcome="artifact") == expected
            )
        )
    assert gateway.readyz()[1]["serving"] == {}


def test_an_unsigned_or_replayed_live_file_is_not_followed(
    gateway: RunningGateway, students: Students
) -> None:
    folder = gateway.settings.data_dir
    first, second = students.publish(folder, 1), students.publish(folder, 2, strength=3.0)
    gateway.serve(first)
    old = (folder / "live.json").read_bytes()
    gateway.serve(second, first)
    forged = Live(serial=99, tasks={TASK: LiveTask(champion=first)})
    cut = encode_live(forged, gateway.keys.live)[:-20]
    for content in (encode_live(forged, b"another key"), b"", b"{}", cut, old):
        write_durably(folder / "live.json", content)
        before = gateway.readyz()[1]["failed"].get("all")
        wait_until(
            lambda before=before: (
                gateway.readyz()[1]["failed"].get("all") not in (None, before) or before is not None
            )
        )
        time.sleep(0.3)
        assert gateway.chat().headers["x-flywheel-version"] == second.name


def test_withdrawing_the_champion_returns_to_the_teacher(
    gateway: RunningGateway, students: Students
) -> None:
    gateway.serve(students.publish(gateway.settings.data_dir, 1))
    gateway.publish(None)
    wait_until(lambda: gateway.chat().headers["x-flywheel-served-by"] == "teacher")


def test_many_swaps_leave_no_student_behind(gateway: RunningGateway, students: Students) -> None:
    folder = gateway.settings.data_dir
    published = [students.publish(folder, n, strength=1.0 + n) for n in range(6)]
    for number, student in enumerate(published):
        gateway.serve(student, published[number - 1] if number else None)
        gateway.chat()
    wait_until(lambda: gateway.metric("resident_generations") == 2)


def test_a_gateway_elsewhere_fetches_verifies_and_keeps_what_is_published(
    tmp_path: Path, students: Students
) -> None:
    keys = open_keys(tmp_path / "learner", "one-shared-secret-for-this-test")
    learner = LearnerSide(tmp_path / "learner", keys, BudgetSettings())
    with learner.running():
        first = students.publish(tmp_path / "learner", 1)
        publish_live(tmp_path / "learner", keys, first)
        elsewhere = settings_for(
            tmp_path / "gateway",
            gateway={
                "learner_url": f"http://127.0.0.1:{learner.port}",
                "learner_token": keys.internal,
                "poll_interval": "100ms",
            },
        )
        gateway = RunningGateway(elsewhere)
        wait_until(lambda: gateway.readyz()[1]["serving"] == {TASK: first.name})
        wait_until(lambda: any(s["serving"] == {TASK: first.name} for s in learner.statuses))
        second = students.publish(tmp_path / "learner", 2, strength=3.0)
        flip_byte(tmp_path / "learner" / "artifacts" / "student" / second.student / "student.json")
        publish_live(tmp_path / "learner", keys, second, first)
        wait_until(lambda: "all" in gateway.readyz()[1]["failed"])
        assert gateway.chat().headers["x-flywheel-version"] == first.name
        # A copy that was damaged here is fetched again.
        flip_byte(tmp_path / "gateway" / "artifacts" / "student" / first.student / "student.json")
        gateway.stop()
        gateway = RunningGateway(elsewhere)
        wait_until(lambda: gateway.readyz()[1]["serving"] == {TASK: first.name})
    # The learner is dead. Serving goes on, also over a restart.
    assert gateway.chat().headers["x-flywheel-version"] == first.name
    gateway.stop()
    gateway = RunningGateway(elsewhere)
    wait_until(lambda: gateway.readyz()[1]["serving"] == {TASK: first.name})
    gateway.stop()


@pytest.mark.parametrize(
    "path",
    [
        "/gateway/artifacts/dataset/{digest}/manifest.json",
        "/gateway/artifacts/student/{digest}/../../../secrets/internal.key",
        "/gateway/artifacts/student/{digest}/%2e%2e/%2e%2e/%2e%2e/secrets/internal.key",
        "/gateway/artifacts/student/..%2f..%2fsecrets/internal.key",
        "/gateway/artifacts/student/{digest}//etc/passwd",
    ],
)
def test_the_learner_hands_out_nothing_but_published_students(
    tmp_path: Path, students: Students, path: str
) -> None:
    keys = open_keys(tmp_path)
    with LearnerSide(tmp_path, keys, BudgetSettings()).running() as learner:
        digest = students.publish(tmp_path, 1, with_encoder=False).student
        url = f"http://127.0.0.1:{learner.port}"
        headers = {"authorization": f"Bearer {keys.internal}"}
        with httpx2.Client(base_url=url, headers=headers) as http:
            response = http.get(path.format(digest=digest))
            assert response.status_code == 404
            found = http.get(f"/gateway/artifacts/student/{digest}/manifest.json")
            assert json.loads(found.content)["kind"] == "student"


def test_the_learner_wants_the_internal_key(tmp_path: Path) -> None:
    keys = Keys(internal="right")
    with LearnerSide(tmp_path, keys, BudgetSettings()).running() as learner:
        url = f"http://127.0.0.1:{learner.port}"
        for token in ("", "Bearer wrong", "right", "Bearer"):
            headers = {"authorization": token}
            for path in ("/gateway/live", "/gateway/artifacts/student/a/b"):
                assert httpx2.get(url + path, headers=headers).status_code == 401
            for path in ("/gateway/lease", "/gateway/status"):
                posted = httpx2.post(url + path, json={"gateway": "g"}, headers=headers)
                assert posted.status_code == 401
        assert learner.statuses == []
