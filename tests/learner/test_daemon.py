"""The daemon: what a learner does at its start, whatever its schedules say."""

import time
from pathlib import Path
from threading import Event
from typing import Any

from core_samples import TASK
from prometheus_client import CollectorRegistry

from service.learner.daemon import Learner
from service.settings import Settings


def looks(registry: CollectorRegistry) -> float:
    labels = {"job": "watch", "outcome": "done"}
    return registry.get_sample_value("flywheel_job_ticks_total", labels) or 0.0


def test_a_learner_looks_at_the_traffic_of_before_when_it_starts(tmp_path: Path) -> None:
    """Until then it draws as if there had been none: a restart would spend the held-out purse."""
    options: dict[str, Any] = {
        "data_dir": tmp_path,
        "learner": {"port": 0},
        "schedule": {"watch": "every 10h"},
        "tasks": {TASK.name: {"models": ["gpt-support"], "labels": list(TASK.labels)}},
    }
    settings = Settings(**options)
    learner = Learner(settings, Event())
    try:
        learner.start()
        deadline = time.monotonic() + 60
        while not looks(learner._registry):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        learner.close()
