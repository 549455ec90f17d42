"""What was bought, trained and judged stays so: the hashes that decide it have fixed values.

A value that changes here costs every installation: all labels are bought again, every student is
trained or judged again, or an old artifact or decision no longer verifies. That can be wanted;
then the changelog says so.
"""

from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines.ask import TeacherPolicy, ask
from pipelines.identities import (
    OF_A_RECIPE,
    dataset_content,
    prompt_version,
    settings_digest,
    snapshot_hash,
    training_fingerprint,
)
from pipelines.recipes import RECIPES, Recipe, RecipeName
from pipelines.sample import SamplingPolicy
from pipelines.types import Decision, Example, HeldOutItem, Message, Side, Task
from storage.artifacts import Artifacts
from storage.decisions import digest_of

TASK = Task(
    name="support",
    models=("support-desk",),
    labels=("refund", "délai"),
    answer_pointer="/label",
    instructions="Sort the message.",
)
TEACHER = TeacherPolicy(
    model="teacher-1",
    temperature=0.0,
    max_tokens=64,
    max_tokens_field="max_tokens",
    price_per_million_in=1.0,
    price_per_million_out=2.0,
)
ITEMS = [
    HeldOutItem(
        event_id="2",
        group_id="g2",
        text="Money back",
        label="refund",
        segment="refund",
        inclusion_probability=0.05,
    ),
    HeldOutItem(
        event_id="1",
        group_id="g1",
        text="Where?",
        label="délai",
        segment="",
        inclusion_probability=1 / 3,
    ),
]
SETTINGS_DIGESTS = {
    "head": "682b0b3fa267d917ab21635b156f4af3",
    "encoder-lora": "9a5f90e5956a721933557c00df9afc1d",
    "encoder-full": "37cfb153ab38ba20580f1f1a1446d38f",
    "causal-lora": "582f30ecd2ad9841941adf0d958635aa",
}
FINGERPRINTS = {
    "head": "8de352174402ba3dc0e55532d23fa3e0",
    "encoder-lora": "8d236aa66c773095cb77449bc7ca1d37",
    "encoder-full": "b4873eab15bbd2ee01ab13643b8a35be",
    "causal-lora": "21986d6aeba9a615af79c98abb8115fc",
}

# Fields of a recipe that may change without anything being trained again.
CHANGES_NO_WEIGHTS: tuple[str, ...] = ()


def example(event_id: str, text: str, label: str, weight: float) -> Example:
    return Example(
        event_id=event_id,
        text=text,
        label=label,
        group_id=event_id,
        side=Side.TRAINING,
        weight=weight,
    )


def test_a_question_that_was_paid_keeps_its_key() -> None:
    question = ask("event-1", (Message("user", "Où est mon colis?"),), TASK, TEACHER)
    assert question.key == "74ca0b7c52bcd4c499253d60eb8d65127a2d86b4915fdbdc96e4d23dae4611eb"


def test_a_task_keeps_its_prompt_version() -> None:
    assert prompt_version(TASK) == "01cd4f555043"


@pytest.mark.parametrize("name", RECIPES)
def test_a_trained_student_is_not_trained_again(name: RecipeName) -> None:
    encoder = "e" * 64 if RECIPES[name].family == "head" else ""
    found = settings_digest(RECIPES[name], base_model="None", encoder=encoder, seed=7)
    assert found == SETTINGS_DIGESTS[name]


def test_a_student_of_a_named_base_model_is_not_trained_again() -> None:
    found = settings_digest(
        RECIPES["encoder-lora"], base_model="/models/base", encoder="e" * 64, seed=7
    )
    assert found == "2b3aa492543489b767d8623b9ca75353"


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_still_belongs_to_its_training(name: RecipeName) -> None:
    found = training_fingerprint(RECIPES[name], TASK, base="b" * 64, seed=7, time_budget=600.0)
    assert found == FINGERPRINTS[name]


def test_a_dataset_keeps_its_content_hash() -> None:
    training = [
        example("1", "Where is it?", "délai", 1.0),
        example("2", "Money back", "refund", 2 / 3),
    ]
    assert dataset_content(training) == "ff773f0d3d7ab9de804731e7c91940f9"


def test_a_snapshot_keeps_its_hash() -> None:
    assert snapshot_hash(ITEMS) == "1061fcd1c27f81c5ebce6866b57b4fad"


def test_an_artifact_keeps_its_name(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "head.safetensors").write_bytes(b"weights")
    (scratch / "student.json").write_text("{}")
    about = {"task": "support", "recipe": {"name": "head"}, "délai": 0.5}
    made = Artifacts(tmp_path / "artifacts").publish("student", scratch, about)
    assert made.digest == "183cb124bc48ff9e5a34265b68d9656bc2f60dd2c4be9afddae72691d862f25a"


def test_a_decision_keeps_its_place_in_the_chain() -> None:
    link = Decision(
        sequence=1,
        task="support",
        action="approve",
        student="s" * 64,
        report="r" * 64,
        operator="ada",
        reason="",
        decided_at=datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        previous_digest="0" * 64,
        digest="",
    )
    assert digest_of(link) == "7d58670d5d3859abe09ac535db71d4ecc33db87347d6ad4ce2a3eb7cea1ec064"


def test_a_sampling_policy_keeps_its_version() -> None:
    policy = SamplingPolicy(
        salt=b"s",
        audit_rate=0.01,
        held_out_rate=0.05,
        given_rate=1.0,
        learning_scale=1.0,
        learning_pi_min=0.02,
        cold_start_rate=0.5,
        cold_start=True,
    )
    # Renewed with the rate of free held-out items: it changes which events are drawn.
    assert policy.version == "16039951"
    assert replace(policy, salt=b"other").version == policy.version


def test_a_new_field_of_a_recipe_trains_nothing_again() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Grown(Recipe):
        distils: bool = True

    head = RECIPES["head"]
    grown = Grown(**{field.name: getattr(head, field.name) for field in fields(head)})
    found = settings_digest(grown, base_model="None", encoder="e" * 64, seed=7)
    assert found == SETTINGS_DIGESTS["head"]
    found = training_fingerprint(grown, TASK, base="b" * 64, seed=7, time_budget=600.0)
    assert found == FINGERPRINTS["head"]


def test_every_field_of_a_recipe_was_thought_about() -> None:
    assert {field.name for field in fields(Recipe)} == {*OF_A_RECIPE, *CHANGES_NO_WEIGHTS}
