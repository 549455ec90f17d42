"""The speed benchmarks run, in their quick versions, and the published figures are all there."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import answer, day, footprint, ingest, passthrough, retrain
from benchmarks.results import RESULTS, write_results

# What the documentation quotes, by the file that has it.
PUBLISHED = {
    "ingest": {"ratio_to_poll", "embedded_read_to_sqlite", "embedded_write_to_sqlite"},
    "answer": {"ratio_to_bare", "p50_ms", "throughput_gain_16", "p99_to_p50_16"},
    "footprint": {"learner_mb", "gateway_mb", "gateway_ready_s", "help_s"},
    "retrain": {"cold_s", "cached_s"},
    "passthrough": {"ratio_to_litellm", "ratio_to_litellm_1", "ratio_to_litellm_16"},
    "day": {"events", "size_mb", "pages", "slowest_page_p50_ms", "slowest_page_max_ms"},
}


def are_figures(figures: dict[str, float]) -> bool:
    return bool(figures) and all(math.isfinite(value) for value in figures.values())


@pytest.mark.kafka
def test_ingest_is_measured_over_a_real_broker(kafka_broker: Any, tmp_path: Path) -> None:
    rounds = ingest.measure_kafka(ingest.QUICK, tmp_path, kafka_broker.bootstrap_servers)
    assert all(one.floor > 0 and one.ours > 0 for found in rounds.values() for one in found)


def test_the_embedded_topic_is_measured_against_plain_sqlite(tmp_path: Path) -> None:
    reading, writing = ingest.measure_embedded(ingest.QUICK, tmp_path)
    assert ingest.ratio(reading) > 0
    assert ingest.ratio(writing) > 0


def test_an_answer_is_measured_against_the_bare_parts(tmp_path: Path) -> None:
    figures, _ = answer.run(answer.QUICK, tmp_path)
    assert are_figures(figures)
    assert figures.keys() >= PUBLISHED["answer"]


def test_the_footprint_is_that_of_a_running_demonstration(tmp_path: Path) -> None:
    figures, about = footprint.run(footprint.QUICK, tmp_path)
    assert are_figures(figures)
    assert about["imports_torch"] == {"learner": False, "gateway": False}


def test_a_retrain_is_measured_with_and_without_its_vectors(tmp_path: Path) -> None:
    figures, about = retrain.run(retrain.QUICK, retrain.invented(retrain.QUICK), tmp_path)
    assert are_figures(figures)
    assert about["trained"]["examples"] == retrain.QUICK.labels


def test_passing_through_is_measured_over_the_gateway(tmp_path: Path) -> None:
    figures, _ = passthrough.run(passthrough.QUICK, tmp_path)
    assert are_figures(figures)
    assert "gateway_adds_ms_16" in figures


def test_every_page_over_a_day_of_traffic_is_measured(tmp_path: Path) -> None:
    figures, pages = day.run(day.QUICK, tmp_path)
    assert are_figures(figures)
    assert {"/", "/activity", "/dead-letters", "/unknown-outcomes"} <= pages.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_say_what_they_were_measured_on(name: str) -> None:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"not measured yet: make bench BENCHMARKS={name}")
    found = json.loads(path.read_text())
    assert found.keys() >= {"machine", "seed", "commit", "figures"}
    assert found["machine"].keys() >= {"processor", "cores", "memory_gb"}
    assert are_figures(found["figures"])
    assert found["figures"].keys() >= PUBLISHED[name]


def test_results_are_written_in_this_form(tmp_path: Path) -> None:
    path = write_results("example", {"ratio": 0.5}, seed=3, folder=tmp_path, rounds=2)
    found = json.loads(path.read_text())
    assert found["figures"] == {"ratio": 0.5}
    assert (found["seed"], found["rounds"]) == (3, 2)
