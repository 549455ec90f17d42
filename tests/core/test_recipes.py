"""Recipes: what each needs on this host, said in sentences, and how long it takes, by timing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_model_rig import TinyChatModel, tiny_chat_model
from safetensors.numpy import save_file

from pipelines.errors import SettingsError, TrainingStackMissing
from pipelines.measure import run_seconds, synthetic_rows
from pipelines.recipes import RECIPE_NAMES, RECIPES
from pipelines.students.bases import check_base, count_weights, require_training_stack
from service.care.check import find_problems
from service.care.recipe_needs import Needs, needs_lines, needs_of, recipe_needs, timed_needs
from service.sections import RecipeSettings, TaskSettings, TrainerSettings
from service.settings import Settings

ROOT = Path(__file__).parents[2]


def settings_of(tmp_path: Path, **changed: Any) -> Settings:
    values: dict[str, Any] = {
        "data_dir": tmp_path / "data",
        "tasks": {
            "support": TaskSettings(
                models=["m"], labels=["refund", "delivery"], challenger="causal-lora"
            )
        },
    }
    return Settings(**values | changed)


def without_tasks(tmp_path: Path, **changed: Any) -> Settings:
    return settings_of(tmp_path, tasks={}, **changed)


def save_weights(folder: Path, **shapes: tuple[int, ...]) -> Path:
    """A model folder with weights of these shapes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    tensors = {name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}
    save_file(tensors, str(folder / "model.safetensors"))
    return folder


@pytest.fixture
def without_stack(monkeypatch: pytest.MonkeyPatch) -> str:
    """As if torch were not installed; returns the sentence that says so."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(TrainingStackMissing) as found:
        require_training_stack()
    return str(found.value)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    try:
        require_training_stack()
    except TrainingStackMissing as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    return save_weights(tmp_path / "encoder", a=(1000, 1000), b=(10,))


@pytest.fixture(scope="module")
def model() -> TinyChatModel:
    return tiny_chat_model()


def with_base(name: str, base: Path) -> dict[str, Any]:
    return {"recipes": {name: RecipeSettings(base_model=base)}}


# Values and sentences


def test_weights_are_counted_from_the_header(tmp_path: Path) -> None:
    folder = save_weights(tmp_path / "one", a=(30, 40), b=(7,), c=(2, 3, 4))
    assert count_weights(folder) == 1200 + 7 + 24


def test_weights_of_a_gguf_file_are_estimated(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x" * 5_000)
    assert count_weights(path) == 8_000


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("encoder-lora", lambda base: base.mkdir(), "no Hugging Face model folder"),
        ("causal-lora", lambda base: None, "no Hugging Face model folder"),
    ],
)
def test_a_base_model_that_is_none_is_a_sentence(
    tmp_path: Path, name: str, make: Any, sentence: str
) -> None:
    base = tmp_path / "base"
    make(base)
    with pytest.raises(SettingsError, match=sentence):
        check_base(RECIPES[name], base)  # type: ignore[index]


def test_weights_as_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SettingsError, match="a pickle can run code"):
        check_base(RECIPES["encoder-lora"], tmp_path)


def test_without_the_stack_head_is_ready_and_the_others_say_what_to_do(
    tmp_path: Path, without_stack: str
) -> None:
    found = {one.recipe: one for one in recipe_needs(without_tasks(tmp_path))}
    assert found["head"].problem == ""
    for name in RECIPE_NAMES[1:]:
        assert found[name].problem == without_stack
    lines = list(needs_lines(list(found.values()), 2_000, 4_096))
    assert lines.count(f"! {without_stack}") == 1


def test_the_recipes_verb_ends_well_without_the_stack(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['flywheel', 'recipes', '--quick']\n"
        "from service.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "! the training stack is not installed (torch); run `make setup`" in done.stdout


def test_quick_imports_no_training_stack(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['flywheel', 'recipes', '--quick', '--json']\n"
        "from service.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    print([m for m in ('torch', 'transformers', 'sklearn') if m in sys.modules],"
        " file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert [one["recipe"] for one in json.loads(done.stdout)] == list(RECIPE_NAMES)


def test_every_recipe_says_which_tasks_use_it(tmp_path: Path) -> None:
    found = {one.recipe: one.tasks for one in recipe_needs(settings_of(tmp_path))}
    assert found["head"] == ("support",)
    assert found["causal-lora"] == ("support (challenger)",)
    assert found["encoder-full"] == ()


def test_memory_is_weights_and_the_trainers_own(tmp_path: Path, encoder: Path) -> None:
    needs = needs_of(without_tasks(tmp_path, **with_base("encoder-full", encoder)), "encoder-full")
    assert needs.weights == 1_000_010
    own = RECIPES["encoder-full"].memory_mb
    assert needs.memory_mb == own + int(1_000_010 * 16 / 2**20)
    assert needs.problem == ""


# `flywheel check`


def errors(settings: Settings) -> dict[str, str]:
    found = find_problems(settings)
    return {one.setting: one.sentence for one in found if one.level == "error"}


def test_check_names_a_recipe_without_its_stack(tmp_path: Path, without_stack: str) -> None:
    found = errors(settings_of(tmp_path))
    assert found["tasks.support.challenger"] == f"is causal-lora: {without_stack}"
    assert "tasks.support.recipe" not in found


def test_check_names_a_base_model_that_is_missing(tmp_path: Path, encoder: Path) -> None:
    found = errors(settings_of(tmp_path, **with_base("causal-lora", tmp_path / "nowhere")))
    assert "recipes.causal-lora.base_model" in found["tasks.support.challenger"]
    assert "it has no config.json" in found["tasks.support.challenger"]


def test_check_names_too_little_memory_as_recipes_does(tmp_path: Path, encoder: Path) -> None:
    settings = settings_of(
        tmp_path,
        trainer=TrainerSettings(memory_limit_mb=1_200),
        **with_base("causal-lora", encoder),
    )
    needs, needed = needs_of(settings, "causal-lora"), RECIPES["causal-lora"].memory_mb + 5
    assert needs.problem == (
        f"causal-lora on encoder needs about {needed} MB, and trainer.memory_limit_mb is 1200: "
        "raise it, or name a smaller base model"
    )
    assert errors(settings)["tasks.support.challenger"] == f"is causal-lora: {needs.problem}"


# Timing


def test_a_run_is_its_batches_and_one_reading_more() -> None:
    recipe = replace(RECIPES["encoder-lora"], epochs=10, batch_size=16)
    batches = 10 * (1_800 / 16 + 0.5)  # a tenth calibrates; the last batch is not full
    assert run_seconds(recipe, 2_000, 0.5) == pytest.approx(
        0.5 * (batches + 2 * 2_000 / 16 / 3), rel=0.001
    )
    chat = RECIPES["causal-lora"]
    assert run_seconds(chat, 2_000, 0.5) == pytest.approx(
        0.5 * (3 * 1_800 / chat.batch_size + 200 / chat.batch_size / 3), rel=0.001
    )


def test_synthetic_rows_are_the_same_each_time_and_have_all_labels() -> None:
    rows = synthetic_rows(50, ["a", "b", "c"])
    assert rows == synthetic_rows(50, ["a", "b", "c"])
    assert {row.label for row in rows} == {"a", "b", "c"}
    assert {len(row.text.split()) for row in rows} <= set(range(5, 26))


def test_recipes_are_timed_under_the_trainers_limits(
    tmp_path: Path, model: TinyChatModel, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = RecipeSettings(base_model=tmp_path / "nowhere")
    settings = settings_of(
        tmp_path,
        recipes={
            "encoder-lora": nowhere,
            "encoder-full": nowhere,
            "causal-lora": RecipeSettings(base_model=model.base),
        },
    )
    told: list[str] = []
    found = {one.recipe: one for one in timed_needs(settings, 500, told.append)}
    assert found["head"].seconds
    assert "texts a second" in found["head"].timed
    assert found["causal-lora"].problem == ""
    assert found["causal-lora"].seconds
    assert "float32" in found["causal-lora"].timed
    assert found["encoder-lora"].seconds is None  # nothing that cannot be used is timed
    assert "causal-lora: load 2 of 2" in told
    assert "trainer_started" not in capsys.readouterr().out
    assert not (tmp_path / "data").exists()  # it leaves nothing behind

    text = "\n".join(needs_lines(list(found.values()), 500, 4_096))
    assert "500 labels" in text
    assert "! recipes.encoder-lora.base_model" in text


def test_a_timing_that_fails_is_a_sentence(tmp_path: Path) -> None:
    limits = TrainerSettings(time_limit=timedelta(milliseconds=1))
    nowhere = RecipeSettings(base_model=tmp_path / "nowhere")
    settings = without_tasks(
        tmp_path, trainer=limits, recipes=dict.fromkeys(RECIPE_NAMES[1:], nowhere)
    )
    (head, *_) = timed_needs(settings, 500, lambda text: None)
    assert isinstance(head, Needs)
    assert head.problem.startswith("head cannot be timed: took longer than trainer.time_limit")
