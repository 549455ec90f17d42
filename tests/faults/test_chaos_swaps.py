"""What a careless swap would do: reload by name, serve before it has verified."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gateway_rig import (
    ALL_TEXTS,
    TASK,
    Load,
    RunningGateway,
    Students,
    settings_for,
    shared_students,
    wait_until,
)


@pytest.fixture(scope="module")
def students() -> Students:
    return shared_students()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[RunningGateway]:
    running = RunningGateway(settings_for(tmp_path))
    yield running
    running.stop()


def test_another_student_under_a_known_name_is_loaded_anew(
    gateway: RunningGateway, students: Students
) -> None:
    folder = gateway.settings.data_dir
    weak = students.publish(folder, 1, strength=0.1)
    gateway.serve(weak)
    before = confidence(gateway)

    strong = students.publish(folder, 2, strength=50.0)
    gateway.publish(msgspec.structs.replace(strong, name=weak.name))

    wait_until(lambda: confidence(gateway) > before + 0.1)


def confidence(gateway: RunningGateway) -> float:
    return float(gateway.chat(ALL_TEXTS[3]).headers["x-flywheel-confidence"])


def test_a_refused_student_answers_not_one_request(
    gateway: RunningGateway, students: Students
) -> None:
    folder = gateway.settings.data_dir
    good = students.publish(folder, 1)
    golden: list[dict[str, Any]] = [
        {"text": text, "label": "nonsense", "confidence": 1.0} for text in ALL_TEXTS * 8
    ]
    gateway.serve(good)
    with Load(gateway) as load:
        for number in range(2, 5):
            bad = students.publish(folder, number, strength=float(number), golden=golden)
            gateway.publish(bad, good)
            refused = number - 1
            wait_until(
                lambda refused=refused: (
                    gateway.metric("swaps_total", task=TASK, outcome="golden") >= refused
                )
            )
    assert load.failures == []
    assert set(load.versions) == {good.name}
