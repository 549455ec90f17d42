"""Every student family keeps the same promises: one conformance over all rows of the table."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from chat_model_rig import tiny_chat_model

from benchmarks.loose_work import BASE, DATASET, ENCODER, loose_executor, write_training
from pipelines.answer import LoadedBases
from pipelines.errors import ArtifactDamaged
from pipelines.recipes import RECIPES, FamilyName, Recipe
from pipelines.students.encoder import installed_encoder_files
from pipelines.students.families import FAMILIES, family_of
from pipelines.types import LabelledAnswer
from pipelines.work import TrainWork
from service.gateway.students import LOADERS
from service.sections import TrainerSettings
from storage.artifacts import ALLOWED_SUFFIXES, KINDS

ROOT = Path(__file__).parents[2]
# Of transformers, when peft asks a model something; a student is opened in this very process.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
LABELS = ("refund", "delivery")
TEXTS = [(f"please {label} number {at} soon", label) for at in range(12) for label in LABELS]


def quickest(family: FamilyName) -> Recipe:
    """The family's recipe that asks least of this machine."""
    recipes = [recipe for recipe in RECIPES.values() if recipe.family == family]
    return min(recipes, key=lambda recipe: recipe.epochs)


@pytest.fixture(scope="module", params=FAMILIES)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FamilyName, Path, Path]:
    """A small student of each family, and its base."""
    name: FamilyName = request.param
    folder = tmp_path_factory.mktemp(name)
    encoder, scratch = folder / "encoder", folder / "scratch"
    encoder.mkdir()
    scratch.mkdir()
    for file, (path, _) in installed_encoder_files().items():
        (encoder / file).symlink_to(path)
    base = encoder if FAMILIES[name].base_kind == "encoder" else tiny_chat_model().base
    write_training(folder / "dataset", TEXTS)
    work = TrainWork(
        recipe=quickest(name),
        task="support",
        labels=LABELS,
        instructions="",
        seed=0,
        dataset=DATASET,
        encoder=ENCODER,
        max_tokens=128,
        base=BASE,
        base_name="tiny",
        checkpoint="checkpoint",
    )
    inputs = {DATASET: folder / "dataset", ENCODER: encoder, BASE: base}
    loose_executor(folder, TrainerSettings(threads=1), inputs).run(work, scratch)
    return name, scratch, base


def answers_of(name: FamilyName, student: Path, base: Path) -> Sequence[LabelledAnswer]:
    opened = FAMILIES[name].open(student, base, 128, LoadedBases(1))
    return opened.answer([text for text, _ in TEXTS[:6]])


def test_the_table_and_the_names_are_the_same() -> None:
    assert set(FAMILIES) == set(get_args(FamilyName))
    assert all(name == family.name for name, family in FAMILIES.items())
    assert {family.base_kind for family in FAMILIES.values()} <= set(KINDS)
    assert {recipe.family for recipe in RECIPES.values()} == set(FAMILIES)
    assert family_of(RECIPES["head"]) is FAMILIES["head"]
    assert set(LOADERS) == set(FAMILIES), "a gateway holds each of them"


def test_a_student_answers_with_its_labels_and_a_probability(
    trained: tuple[FamilyName, Path, Path],
) -> None:
    for label, confidence, _ in answers_of(*trained):
        assert label in LABELS
        assert 0.0 < confidence <= 1.0


def test_a_student_that_is_opened_twice_answers_the_same(
    trained: tuple[FamilyName, Path, Path],
) -> None:
    first, second = answers_of(*trained), answers_of(*trained)
    assert [a.label for a in first] == [a.label for a in second]
    assert [a.confidence for a in first] == pytest.approx([a.confidence for a in second], abs=1e-3)


def test_its_base_answers_without_it(trained: tuple[FamilyName, Path, Path]) -> None:
    name, student, base = trained
    opened = FAMILIES[name].open(student, base, 128, LoadedBases(1))
    untuned = opened.untuned(LABELS).answer(["where is it"])
    assert untuned[0].label in LABELS


def test_its_folder_is_checked_and_holds_only_what_an_artifact_may(
    trained: tuple[FamilyName, Path, Path], tmp_path: Path
) -> None:
    name, student, _ = trained
    FAMILIES[name].check(student)
    assert {path.suffix for path in student.rglob("*") if path.is_file()} <= ALLOWED_SUFFIXES
    with pytest.raises(ArtifactDamaged):
        FAMILIES[name].check(tmp_path)


def test_nobody_compares_with_a_familys_name() -> None:
    """What differs between families is in their table; who asks for a name is a second one."""
    found = []
    for package in ("pipelines", "storage", "service"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Compare) and _is_about_family(node):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def _is_about_family(node: ast.Compare) -> bool:
    sides = [node.left, *node.comparators]
    names = {side.value for side in sides if isinstance(side, ast.Constant)}
    about = any(isinstance(side, ast.Attribute) and side.attr == "family" for side in sides)
    return about and bool(names & set(get_args(FamilyName)))
