"""The model card says what a version is, and no prompt's text."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from operating import DATASET_ABOUT, TASK, TUNED, Desk, make_report, open_desk

from pipelines.card import CardFacts, model_card, training_facts
from pipelines.errors import Refused
from pipelines.recipes import RECIPES, RecipeName
from pipelines.students.families import family_of
from pipelines.types import StudentVersion

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def version_of(recipe: RecipeName = "encoder-lora", **changed: Any) -> StudentVersion:
    values: dict[str, Any] = {
        "task": TASK,
        "number": 5,
        "student": "ab" * 32,
        "dataset": "cd" * 32,
        "family": RECIPES[recipe].family,
        "base_kind": family_of(RECIPES[recipe]).base_kind,
        "base": "ef" * 32,
        "recipe": recipe,
        "labels_trained": 2_600,
        "labels_bought": 3_250,
        "trained_at": AT,
        "train_seconds": 512.0,
        "training": TUNED,
    }
    return StudentVersion(**values | changed)


def facts_of(version: StudentVersion, **changed: Any) -> CardFacts:
    champion = version_of(number=3, student="12" * 32)
    report = make_report(
        version,
        champion=champion,
        verdict="better",
        passed=True,
        threshold=0.62,
        attempt=2,
        at=AT,
    )
    values: dict[str, Any] = {
        "version": version,
        "recipe": RECIPES[version.recipe],  # type: ignore[index]
        "evaluation": report.evaluation,
        "gate": report.gate,
        "champion": report.champion_name,
        "dataset": DATASET_ABOUT,
        "base": {"name": "all-MiniLM-L6-v2, tuned", "max_tokens": 128},
        "teacher": "large-model",
        "evaluated_at": AT,
        "size_bytes": 412_733,
        "latency_ms": 2.7,
    }
    return CardFacts(**values | changed)


def front_matter(card: str) -> Any:
    opening, matter, _ = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(matter)


def test_the_front_matter_is_what_hugging_face_reads() -> None:
    found = front_matter(model_card(facts_of(version_of())))
    assert found["license"] == "other"
    assert found["license_name"] == "contract 2026-117, section 4"
    assert found["library_name"] == "onnx"
    assert found["base_model"] == "all-MiniLM-L6-v2"
    assert found["pipeline_tag"] == "text-classification"
    assert {"encoder-lora", TASK} <= set(found["tags"])
    (result,) = found["model-index"][0]["results"]
    assert result["dataset"]["revision"] == "5" * 64
    (metric,) = result["metrics"]
    assert metric["value"] == 0.941
    assert metric["args"] == {"low": 0.914, "high": 0.961, "items": 412}


@pytest.mark.parametrize("library", [("head", "onnx"), ("causal-lora", "peft")])
def test_the_library_is_that_which_loads_the_files(library: tuple[RecipeName, str]) -> None:
    recipe, name = library
    assert front_matter(model_card(facts_of(version_of(recipe))))["library_name"] == name


def test_the_card_tells_data_training_evaluation_and_limits() -> None:
    card = model_card(facts_of(version_of()))
    for expected in (
        f"# support-v5-{'ab' * 4}",
        "It imitates a teacher, large-model.",
        "- **Terms of the teacher**: contract 2026-117, section 4",
        f"- **Dataset**: `{'cd' * 32}`",
        f"- **Follows on**: `{'4' * 64}`",
        "2,600 to train, 412 held out; 3,250 labels were bought",
        "- **Left out**: 31 (one user's share)",
        "LoRA of rank 16, peak rate 0.001, batches of 16 x 1",
        "- **Weights tuned**: 1,327,876",
        "- **Resumed**: at step 410, after an interruption",
        "| this version | 94.1 % (91.4 to 96.1) | – |",
        "| the champion, support-v3-12121212 | 90.3 % (87.1 to 92.9) | +3.8 points (+1.2",
        "| base model, untrained | 61.2 %",
        "| majority class | 11.8 %",
        "| nearest neighbour | 87.1 %",
        "Above a confidence of 0.62 it agrees with the teacher at least 97 % of the time",
        "82.8 % of the traffic lies above it",
        "Expected calibration error: 3.1 % (1.9 to 5.2).",
        "| gift_card | 41 | 78 % (62.0 to 89.0) | +2.0 points",
        "A text is cut after 128 tokens.",
        "These labels had no example and are not to be expected: cancel",
    ):
        assert expected in card


def test_no_prompt_text_is_in_the_card() -> None:
    facts = facts_of(version_of())
    card = model_card(facts)
    assert facts.evaluation.flips
    for flip in facts.evaluation.flips:
        assert flip.text not in card
        assert flip.text[:20] not in card


def test_a_version_without_threshold_or_champion_has_a_card_too() -> None:
    facts = facts_of(version_of("head", training={}))
    evaluation = replace(
        facts.evaluation,
        agreement={"candidate": facts.evaluation.agreement["candidate"]},
        difference={},
        slices=(),
        threshold=replace(facts.evaluation.threshold, value=None, reason="too few items"),
    )
    card = model_card(replace(facts, evaluation=evaluation, champion=None, dataset={}, base={}))
    assert "No threshold could be certified for 97 %: too few items." in card
    assert "The held-out prompts have no segments." in card
    assert "- **Terms of the teacher**: not recorded" in card
    assert front_matter(card)["base_model"] == "unknown"


def test_what_comes_from_outside_cannot_break_the_layout() -> None:
    strange = 'a"b: c\n---\n# forged | <script> `x`'
    facts = facts_of(version_of(), dataset={**DATASET_ABOUT, "terms": strange}, teacher=strange)
    card = model_card(facts)
    assert front_matter(card)["license_name"] == strange
    assert "\n# forged" not in card
    assert "<script>" not in card.split("---\n", 2)[2]


def test_training_facts_are_plain_words_and_leave_out_what_is_not_known() -> None:
    facts = dict(training_facts(TUNED))
    assert facts["Examples"] == "2,600, 260 of them kept back to calibrate"
    assert facts["Passes over the examples"] == "10, in 1,463 steps"
    assert facts["Served as"] == "int8: 99.8 % of the training texts keep their label"
    assert dict(training_facts({"seed": 3})) == {"Seed": "3"}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        yield opened


def test_the_card_lies_beside_the_report_that_an_approval_is_bound_to(desk: Desk) -> None:
    version, report = desk.candidate()
    card = desk.operations.card(TASK, version.number)
    assert card.startswith("---\nlicense: other\n")
    assert (desk.artifacts.open("report", report).path / "README.md").read_text() == card


def test_a_version_that_is_not_evaluated_has_no_card_yet(desk: Desk) -> None:
    desk.train()
    with pytest.raises(Refused, match="its evaluation writes it"):
        desk.operations.card(TASK, 1)
