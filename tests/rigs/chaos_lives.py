"""Short lives of the program's parts, each in a forked process that a failpoint may kill.

A life starts as after any crash, recovers, works through everything once and ends. What it
intends to decide, and what it has answered, it writes to a synced log: the witness.
"""

import asyncio
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from gateway_rig import TASK as DESK_TASK
from gateway_rig import TOPIC_FILE, publish_live, settings_for, wait_until
from ingest_rig import drain, make_ingest
from learner_rig import open_bench, open_rig
from operating import TASK as OPERATED
from operating import open_desk
from prometheus_client import CollectorRegistry
from training_rig import Shop, open_shop

import pipelines.answer
import pipelines.train
from pipelines.child import Channel
from pipelines.records.native import NativeRecord
from pipelines.types import Message
from pipelines.work import AnswerWork, TrainWork, Work
from service.gateway.capture import Capture
from service.gateway.generations import Generations
from service.gateway.sync import LiveFile, Watcher
from service.keys import open_keys
from service.learner.evaluation import Evaluating
from service.learner.executor import LocalExecutor, places_of
from service.learner.training import Training
from service.metrics.gateway import GatewayMetrics
from service.sections import TrainerSettings
from service.topics.embedded import EmbeddedTopicWriter, prune
from storage import failpoints
from storage.artifacts import Artifacts
from storage.live import LiveStudent, read_live
from storage.versions import versions

CONCURRENCY = 4
CALM = Path("failpoints")  # beside the data: what is armed, and what was passed


def fork(life: Callable[..., None], folder: Path, *arguments: Any) -> int:
    """Live it in a process of its own; its exit code, negative for a signal."""
    context = _context()
    process = context.Process(target=_live, args=(life, folder, *arguments))
    process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{life.__name__} does not end")
    return cast("int", process.exitcode)


@lru_cache(maxsize=1)
def _context() -> "ForkServerContext":
    """A server that has imported everything: a fork of it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["chaos_lives"])
    with pytest.MonkeyPatch.context() as patch:  # the server looks at the variable alone
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


def arm(folder: Path, point: str, *, nth: int = 1, signal: str = "SIGKILL") -> None:
    """Have the next life end at the nth passing of a point."""
    armed = folder / CALM / failpoints.ARMED
    armed.mkdir(parents=True, exist_ok=True)
    (armed / point).write_text(f"{signal} {nth}")


def fired(folder: Path) -> list[str]:
    """The points at which a process has sent itself a signal."""
    try:
        lines = (folder / CALM / failpoints.FIRED).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [line.split()[2] for line in lines]


def note(folder: Path, name: str, line: str) -> None:
    """A witness's line: on disk when this returns."""
    descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def notes(folder: Path, name: str) -> list[str]:
    try:
        return (folder / name).read_text().splitlines()
    except FileNotFoundError:
        return []


def learner_life(folder: Path, teacher_url: str) -> None:
    """Ingest what lies on the topic, and buy a label for each event."""
    teacher = {"max_concurrency": CONCURRENCY}
    with open_rig(folder, teacher=teacher) as rig, open_bench(rig, base_url=teacher_url) as bench:
        bench.relabel.recover()
        drain(make_ingest(rig, max_records=9, sampling={"held_out_rate": 1.0}))
        bench.relabel.run()


def operator_life(folder: Path) -> None:
    """Approve a version, roll back to the one before it, and remove what nobody needs."""
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    with open_desk(folder) as desk:
        version, report = desk.candidate()
        note(folder, "approved", version.student)
        desk.operations.approve(OPERATED, version.number, report=report, operator="ada")
        if len(set(notes(folder, "approved"))) > 1:
            desk.operations.rollback(OPERATED, None, reason="a test", operator="ada")
        spare = desk.train()
        desk.artifacts.prune("student", notes(folder, "approved"), time.time() + 1)
        assert not desk.artifacts.exists("student", spare.student)


def training_life(folder: Path) -> None:
    """Train and judge, with the child's work done in this process."""
    with open_shop(folder) as shop:
        _work_here(shop)
        shop.training.recover()
        shop.training.run("support", "a test")
        shop.evaluating.run("support")


def gateway_life(folder: Path, first: LiveStudent, second: LiveStudent) -> None:
    """Serve what is published, answer, follow a swap, answer again, and capture all of it."""
    keys, registry = open_keys(folder), CollectorRegistry()
    metrics = GatewayMetrics(registry)
    task = settings_for(folder).task_of(DESK_TASK)
    tasks = {DESK_TASK: task}
    generations = Generations(tasks, Artifacts(folder / "artifacts"), metrics, threads=1)
    watcher = Watcher(LiveFile(folder / "live.json"), generations, metrics, key=keys.live)
    path = folder / TOPIC_FILE
    capture = Capture(
        lambda: EmbeddedTopicWriter(path),
        metrics,
        key=keys.capture,
        buffer=1_000,
        max_record_bytes=100_000,
    )
    watcher.start()
    capture.start()
    published = read_live(folder / "live.json", keys.live).tasks[DESK_TASK].champion
    assert published is not None
    for student, other in ((published, None), (second, first), (first, second)):
        if other is not None:
            publish_live(folder, keys, student, other)
        wait_until(lambda name=student.name: _version(generations) == name)
        _answer(folder, generations, capture)
    wait_until(lambda: registry.get_sample_value("flywheel_gateway_captured_total") == 6)
    watcher.stop()
    capture.stop(5)
    prune(path, before_offset=1)


def _answer(folder: Path, generations: Generations, capture: Capture) -> None:
    for _ in range(2):
        generation = generations.champion(DESK_TASK)
        assert generation is not None
        reply = asyncio.run(generation.answer("where is my parcel"))
        event_id = uuid4().hex
        capture.put(_record(event_id, reply.label))
        note(folder, "answered", f"{event_id} {generation.version}")


def _version(generations: Generations) -> str | None:
    generation = generations.champion(DESK_TASK)
    return generation.version if generation else None


def _record(event_id: str, answer: str) -> NativeRecord:
    return NativeRecord(
        schema="flywheel.prompt/1",
        event_id=event_id,
        task=DESK_TASK,
        model="desk",
        occurred_at=datetime.now(UTC),
        messages=(Message("user", "where is my parcel"),),
        answer=answer,
        served_by="app",
    )


class _Here(LocalExecutor):
    """Does a child's work in this process: nothing has to be imported again."""

    def run(self, work: Work, scratch: Path) -> dict[str, Any]:
        host, channel = self._host(work, scratch), cast("Channel", _Silent())
        if isinstance(work, TrainWork):
            return pipelines.train.train(work, host, channel)
        assert isinstance(work, AnswerWork)
        return pipelines.answer.answer(work, host, channel)


class _Silent:
    def progress(self, *told: Any, **facts: Any) -> None: ...

    def announce(self, sentence: str) -> None: ...


def _work_here(shop: Shop) -> None:
    places = places_of(shop.rig.settings, shop.artifacts)
    executor = _Here(TrainerSettings(threads=1), places)
    object.__setattr__(shop.workshop, "executor", executor)
    shop.training, shop.evaluating = Training(shop.workshop), Evaluating(shop.workshop)


def trained(folder: Path) -> list[str]:
    """The versions that a training life has left."""
    with open_shop(folder) as shop, shop.rig.database.snapshot() as tx:
        return [version.name for version in versions(tx, "support")]


def _live(life: Callable[..., None], folder: Path, *arguments: Any) -> None:
    (folder / CALM).mkdir(exist_ok=True)
    failpoints.watch(folder / CALM)
    life(folder, *arguments)
