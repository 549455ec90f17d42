"""The recipes' benchmark goes on where it was cut short, and compares on the same queries."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.recipes import measure
from benchmarks.recipes.plot import draw
from benchmarks.recipes.points import BASE, Case, Point, pack, sample, settings_of, unpack
from pipelines.recipes import RECIPE_NAMES

POINT = Point(
    recipe="head",
    labels=200,
    seed=0,
    commit="c",
    settings=settings_of("head"),
    threads=1,
    queries=8,
    accuracy=0.5,
    right=pack([True, False] * 4),
    minutes=0.1,
    processor_minutes=0.1,
    minutes_in_all=0.2,
    peak_memory_mb=300,
    size_mb=0.1,
    latency_p50_ms=3.0,
    trained={},
)


def points() -> list[Point]:
    """Heads, and an encoder that is right about two more of eight queries."""
    tuned = pack([True, False, True, False, True, True, True, True])
    return [
        POINT,
        replace(POINT, labels=800),
        replace(
            POINT,
            recipe="encoder-full",
            settings=settings_of("encoder-full"),
            accuracy=0.75,
            right=tuned,
        ),
    ]


def test_each_query_is_remembered_as_right_or_wrong() -> None:
    right = [False, False, True, True, False, True, False]
    assert unpack(pack(right), len(right)) == right


def test_a_second_call_measures_only_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "recipes.json"
    measure.write(points(), path)
    found = measure.read_points(path)
    assert {point.case for point in found} == {point.case for point in points()}
    assert found == sorted(points(), key=lambda point: found.index(point))
    wanted = measure.cases(("head",), (200, 800), (0,))
    measure.run(wanted, path, threads=1)  # would take minutes, and need the data, if it measured
    missing = json.loads(path.read_text())["missing"]
    assert ["head", 2_000, 0] in missing
    assert ["head", 200, 0] not in missing


def test_a_point_of_other_settings_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "recipes.json"
    measure.write(points(), path)
    content = json.loads(path.read_text())
    for point in content["points"]:
        if point["recipe"] == "encoder-full":
            point["settings"]["epochs"] += 1
    path.write_text(json.dumps(content))
    assert {point.recipe for point in measure.read_points(path)} == {"head"}


def test_figures_of_another_machine_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "recipes.json"
    measure.write(points(), path)
    content = json.loads(path.read_text())
    content["machine"]["cores"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="another machine"):
        measure.read_points(path)


def test_the_difference_to_the_head_is_paired_and_has_an_interval() -> None:
    _, _, tuned = points()
    found = measure.difference(tuned, Case("head", 200, 0), points())
    assert found
    assert found["value"] == 0.25
    assert found["low"] < 0.25 < found["high"]
    assert found["n"] == 8
    assert measure.difference(tuned, Case("head", 2_000, 0), points()) is None


def test_a_chat_model_is_compared_on_the_queries_that_it_was_asked() -> None:
    size = 3_080
    asked = sample("causal-lora", 0, size)
    assert len(asked) == 500
    assert asked == sample(BASE, 0, size) != sample(BASE, 1, size)
    of_head = [at in set(asked) for at in range(size)]  # right where the chat model was asked
    head = replace(POINT, queries=size, right=pack(of_head))
    causal = replace(POINT, recipe="causal-lora", queries=500, right=pack([True] * 500))
    found = measure.difference(causal, Case("head", 200, 0), [head, causal])
    assert found
    assert found["value"] == 0


def test_what_tells_most_is_measured_first() -> None:
    every = measure.cases((*RECIPE_NAMES, BASE), measure.LABELS, measure.SEEDS)
    assert len(every) == len(set(every)) == 36
    assert {case.recipe for case in every[:9]} == {"head"}
    assert every[9:12] == [
        Case("encoder-lora", 2_000, 0),
        Case("encoder-full", 2_000, 0),
        Case("causal-lora", 800, 0),
    ]


def test_the_plot_names_each_recipe_and_is_the_same_twice(tmp_path: Path) -> None:
    path = tmp_path / "recipes.json"
    measure.write(points(), path)
    found = json.loads(path.read_text())
    for name in ("one.svg", "two.svg"):
        draw(found, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert "encoder-full" in text
    assert "causal-lora" not in text  # there is no point of it
