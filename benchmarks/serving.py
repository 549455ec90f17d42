"""A gateway over a student that is published as the learner would publish it, for benchmarks."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np

from pipelines.students.encoder import Encoder, installed_encoder_files
from pipelines.students.fit import Data, fit
from pipelines.students.head import Head, save_head
from service.demo.corpus import Corpus
from service.keys import open_keys
from storage.artifacts import Artifacts
from storage.live import Live, LiveStudent, LiveTask, write_live

GOLDEN = 8
PER_LABEL = 8
UP_SECONDS = 60.0


def publish_student(data: Path, corpus: Corpus) -> tuple[Encoder, Head]:
    """A head on the installed encoder, trained on the demonstration's messages, as champion.

    Every answer is above its threshold. Returns what the gateway loads, for the bare figures.
    """
    artifacts, keys = Artifacts(data / "artifacts"), open_keys(data, "")
    scratch = data / "publishing"
    scratch.mkdir(parents=True)
    for name, (path, _) in installed_encoder_files().items():
        shutil.copy(path, scratch / name)
    base = artifacts.publish("encoder", scratch, {"name": "benchmark", "max_tokens": 128})
    encoder = Encoder(base.path, threads=1)
    head = _train(encoder, corpus)
    scratch.mkdir(exist_ok=True)
    save_head(scratch, head, {"encoder": base.digest, "task": corpus.task, "max_tokens": 128})
    student = artifacts.publish("student", scratch, {})
    texts = [text for texts in corpus.messages.values() for text in texts][:GOLDEN]
    answers = head.answer(encoder.encode(texts))
    golden = [
        {"text": text, "label": answer.label, "confidence": answer.confidence}
        for text, answer in zip(texts, answers, strict=True)
    ]
    scratch.mkdir(exist_ok=True)
    (scratch / "golden.json").write_text(json.dumps(golden))
    report = artifacts.publish("report", scratch, {})
    champion = LiveStudent(
        name=f"{corpus.task}-v1-{student.digest[:8]}",
        number=1,
        student=student.digest,
        base=base.digest,
        report=report.digest,
        decision="benchmark",
        threshold=0.0,
    )
    live = Live(serial=1, tasks={corpus.task: LiveTask(champion=champion)})
    write_live(data / "live.json", live, keys.live)
    return encoder, head


@contextmanager
def running_gateway(data: Path, settings: str) -> Iterator[str]:
    """The address of `flywheel gateway` over this data folder; its process ends afterwards."""
    config = data.with_suffix(".toml")
    config.write_text(f"data_dir = {json.dumps(str(data))}\n\n[gateway]\nport = 0\n{settings}")
    with data.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "--config", str(config), "gateway"],
            stdout=log,
            stderr=log,
        )
    try:
        yield _address(process, data)
    finally:
        process.terminate()
        process.wait(UP_SECONDS)


def task_settings(corpus: Corpus) -> str:
    """The corpus's task as settings."""
    return f"""
[tasks.{corpus.task}]
models = ["{corpus.task}"]
labels = {json.dumps(corpus.labels)}
instructions = {json.dumps(corpus.instructions)}
"""


def _address(process: "subprocess.Popen[bytes]", data: Path) -> str:
    note = data / "run" / "gateway.json"
    deadline = time.monotonic() + UP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            address = f"http://127.0.0.1:{json.loads(note.read_text())['port']}"
            if httpx2.get(f"{address}/readyz").status_code == 200:
                return address
        except (OSError, ValueError, httpx2.HTTPError):
            pass
        time.sleep(0.05)
    tail = data.with_suffix(".log").read_text(errors="replace")[-2000:]
    raise TimeoutError(f"the gateway is not up\n{tail}")


def _train(encoder: Encoder, corpus: Corpus) -> Head:
    rows = [
        (text, at)
        for at, label in enumerate(corpus.labels)
        for text in corpus.messages[label][:PER_LABEL]
    ]
    vectors = encoder.encode([text for text, _ in rows])
    data = Data(
        vectors=vectors,
        targets=np.array([at for _, at in rows]),
        weights=np.ones(len(rows)),
        groups=np.arange(len(rows)),
    )
    weight, bias = fit(data, len(corpus.labels))
    return Head(
        labels=corpus.labels,
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        temperature=1.0,
    )
