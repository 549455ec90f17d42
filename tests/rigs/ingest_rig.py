"""Ingest over an embedded topic, as the daemon wires it. Runnable: a process that can be killed.

python ingest_rig.py FOLDER      ingests what lies in FOLDER until it is killed
"""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from threading import Event
from typing import Any

from core_samples import TASK
from learner_rig import Rig, open_rig

from pipelines.intake import Rules
from pipelines.records.common import DecodePolicy
from pipelines.records.native import NativeRecord, encode_native
from pipelines.records.signature import sign
from pipelines.types import Headers, Message, PromptEvent, StudentAnswer
from service.keys import GATEWAY_PRODUCER
from service.learner.ingest import Ingest
from service.learner.sampling import Sampling
from service.operator.board import Board
from service.rules import first_policy
from service.sections import IngestSettings
from service.topics.embedded import EmbeddedTopicReader, EmbeddedTopicWriter
from storage.live import LiveStudent, LiveTask

KEY = b"k" * 32
SALT = b"s" * 32
TOPIC = "topic.sqlite"
CHAMPION = LiveStudent(
    name="support-v1-aaaaaaaa",
    number=1,
    student="a" * 64,
    base="e" * 64,
    report="r" * 64,
    decision="d" * 64,
    threshold=0.9,
)


class Assessor:
    """Stands where the gateway's /v1/assess is; None: it is down."""

    def __init__(self, confidence: float | None = None) -> None:
        self.confidence = confidence
        self.asked = 0

    def assess(self, task: str, events: Sequence[PromptEvent]) -> dict[str, StudentAnswer]:
        self.asked += len(events)
        if self.confidence is None:
            return {}
        return {
            event.event_id: StudentAnswer(
                version="support-v1", label=TASK.labels[0], confidence=self.confidence
            )
            for event in events
        }


def make_ingest(
    rig: Rig,
    *,
    reader: Any = None,
    assessor: Assessor | None = None,
    has_student: bool = False,
    board: Board | None = None,
    terms: str | None = "scripted",
    sampling: dict[str, Any] | None = None,
    held_out_left: float = inf,
    **settings: Any,
) -> Ingest:
    """An ingest that takes up where the rig's database says."""
    quick = {"poll_timeout": timedelta(0), "linger": timedelta(0), "min_free_disk_mb": 0}
    board = board or Board()
    if has_student:
        board.live = {TASK.name: LiveTask(champion=CHAMPION)}
    policy = first_policy(
        rig.settings.model_copy(
            update={"sampling": rig.settings.sampling.model_copy(update=sampling or {})}
        ),
        SALT,
    )
    ingest = Ingest(
        reader=reader or EmbeddedTopicReader(rig.folder / TOPIC),
        database=rig.database,
        rules=Rules(
            tasks={TASK.name: TASK},
            decoding=DecodePolicy(
                claims={"gpt-support": TASK.name},
                tasks=frozenset({TASK.name}),
                producer_keys={GATEWAY_PRODUCER: KEY},
                own_producers=frozenset({GATEWAY_PRODUCER}),
                user_salt=b"users",
            ),
            teacher=rig.settings.teacher.policy,
            terms=terms,
        ),
        sampling=Sampling({TASK.name: policy}, held_out_left),
        assessor=assessor or Assessor(),
        group_salt=SALT,
        settings=IngestSettings().model_copy(update={**quick, **settings}),
        data_dir=rig.folder,
        metrics=rig.metrics,
        board=board,
    )
    ingest.start()
    return ingest


def record(event_id: str, text: str = "where is it", **about: Any) -> NativeRecord:
    fields: dict[str, Any] = {
        "schema": "flywheel.prompt/1",
        "event_id": event_id,
        "model": "gpt-support",
        "occurred_at": datetime.now(UTC),
        "messages": (Message("user", text),),
    }
    return NativeRecord(**{**fields, **about})


class Producer:
    """Writes to the rig's topic; what `flush` returned from is durable."""

    def __init__(self, folder: Path) -> None:
        self._writer = EmbeddedTopicWriter(folder / TOPIC)

    def send(self, *records: NativeRecord | bytes, signed: bool = True) -> None:
        for item in records:
            value = item if isinstance(item, bytes) else encode_native(item)
            headers = (
                sign(value, GATEWAY_PRODUCER, KEY) if signed and not isinstance(item, bytes) else ()
            )
            self._writer.send(value, headers=headers)
        self._writer.flush(10)

    def send_raw(self, value: bytes, headers: Headers) -> None:
        self._writer.send(value, headers=headers)
        self._writer.flush(10)

    def close(self) -> None:
        self._writer.close()


def drain(ingest: Ingest) -> int:
    """Poll until the topic is empty; returns how many records there were."""
    total = 0
    while count := ingest.run_once():
        total += count
    return total


if __name__ == "__main__":
    with open_rig(Path(sys.argv[1])) as opened:
        worker = make_ingest(opened, max_records=37, sampling={"given_rate": 0.5})
        print("ready", flush=True)
        stop = Event()
        while not stop.is_set():
            if not worker.run_once():
                time.sleep(0.005)
