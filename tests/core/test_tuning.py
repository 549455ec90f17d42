"""Tuning by gradient descent: plans, the trie, checkpoints, challengers, and what goes wrong."""

import math
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from chat_model_rig import tiny_chat_model
from safetensors.numpy import load_file, save_file
from training_rig import Shop, open_shop

from benchmarks.loose_work import BASE, DATASET, ENCODER, loose_executor, write_training
from pipelines.errors import SettingsError, TrainingFailed, TrainingInterrupted
from pipelines.recipes import RECIPES
from pipelines.rows import TrainingRow
from pipelines.students import bases
from pipelines.students.bases import TRAINING_STACK, check_base
from pipelines.students.causal import Branch, label_trie, load_config, most_probable
from pipelines.students.causal_tuning import passed
from pipelines.train import loss_curve, plan_steps, schedule, split
from pipelines.work import TrainWork
from service.sections import TrainerSettings
from storage.artifacts import hash_file
from storage.runs import runs

SMALL = replace(
    RECIPES["causal-lora"], batch_size=4, accumulate=1, rank=2, epochs=100.0, learning_rate=1e-3
)
LABELS = ("refund", "parcel", "parcel lost")
TEXTS = {
    "refund": ("i want my money back", "send me a refund", "pay me back now", "money please"),
    "parcel": ("where is my parcel", "is it on the way", "when does it come", "track my order"),
    "parcel lost": ("it never came", "the box is gone", "it was stolen", "nobody has seen it"),
}


# The trie.


def walk(trie: Branch, logits: Mapping[tuple[int, ...], Any], temperature: float) -> dict[str, Any]:
    """The probability of every label, by going everywhere."""
    if trie.label is not None:
        return {trie.label: 1.0}
    tokens = list(trie.choices)
    scaled = np.array([float(logits[trie.tokens][token]) for token in tokens]) / temperature
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    return {
        label: share * rest
        for token, share in zip(tokens, shares, strict=True)
        for label, rest in walk(trie.choices[token], logits, temperature).items()
    }


def all_branches(trie: Branch) -> Iterator[Branch]:
    yield trie
    for choice in trie.choices.values():
        yield from all_branches(choice)


@pytest.mark.parametrize("seed", range(20))
def test_the_answer_is_the_most_probable_label_with_its_normalised_probability(seed: int) -> None:
    rng = np.random.default_rng(seed)
    some = rng.choice(27, size=12, replace=False)
    sequences = {
        f"label-{at}": (*path, 9) for at, path in enumerate(product((1, 2, 3), repeat=3))
        if at in some
    }  # fmt: skip
    trie = label_trie(sequences)
    logits = {
        branch.tokens: (3 * rng.normal(size=10)).astype(np.float32) for branch in all_branches(trie)
    }
    probabilities = walk(trie, logits, 1.7)
    answer = most_probable(trie, logits.__getitem__, 1.7)

    assert math.isclose(sum(probabilities.values()), 1.0)
    assert answer.label == max(probabilities, key=lambda label: probabilities[label])
    assert math.isclose(answer.confidence, probabilities[answer.label], rel_tol=1e-6)


def test_only_branches_cost_a_forward_pass() -> None:
    trie = label_trie({"a": (5, 6, 7, 0), "b": (5, 6, 8, 0)})
    asked = []

    def logits(path: tuple[int, ...]) -> Any:
        asked.append(path)
        return np.arange(10, dtype=np.float32)

    assert most_probable(trie, logits, 1.0).label == "b"
    assert asked == [(5, 6)]
    assert passed(trie, (5, 6, 7, 0)) == [(trie, 7)]


def test_labels_of_the_same_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="same tokens"):
        label_trie({"a": (1, 0), "b": (1, 0)})


# Data.


def test_a_near_duplicate_group_is_either_tuned_on_or_calibrates() -> None:
    rows = [
        TrainingRow(event_id=str(at), text="", label="ab"[at % 2], group_id=f"g{at // 3}")
        for at in range(300)
    ]
    training, calibration = split(rows, 1)
    assert len(training) + len(calibration) == 300
    assert 40 <= len(calibration) <= 45
    assert not {row.group_id for row in training} & {row.group_id for row in calibration}
    assert split(rows, 1) == (training, calibration)


def test_each_epoch_sees_each_example_once_in_batches_of_similar_length() -> None:
    lengths = [int(length) for length in np.random.default_rng(0).integers(5, 100, size=403)]
    recipe = replace(RECIPES["causal-lora"], batch_size=8, accumulate=2, epochs=2.0)
    plan = plan_steps(lengths, recipe, 0)
    batches = [batch for step in plan for batch in step]
    first = [row for batch in batches[: len(batches) // 2] for row in batch]

    assert sorted(first) == list(range(403))
    assert {len(step) for step in plan[:-1]} == {2}
    padding = sum(max(lengths[r] for r in b) * len(b) - sum(lengths[r] for r in b) for b in batches)
    assert padding < 0.15 * 2 * sum(lengths), "random batches would pad by about 80 %"
    assert plan_steps(lengths, recipe, 0) == plan
    assert plan_steps(lengths, recipe, 1) != plan


def test_a_fraction_of_an_epoch_is_a_fraction_of_the_batches() -> None:
    recipe = replace(RECIPES["causal-lora"], batch_size=10, accumulate=1, epochs=1.5)
    assert len(plan_steps([10] * 100, recipe, 0)) == 15


def test_the_rate_warms_up_and_ends_near_nothing() -> None:
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert rates[-1] < 0.01


def test_the_loss_curve_is_short_and_keeps_the_last_step() -> None:
    curve = loss_curve([float(at) for at in range(1234)])
    assert len(curve) <= 100
    assert curve[-1][0] == 1234
    assert loss_curve([2.0, 1.0]) == [(1, 2.0), (2, 1.0)]


# Runs.


Told = Callable[[Mapping[str, Any]], None]


def causal_work(name: str) -> TrainWork:
    """What a trainer of the tiny chat model is told."""
    return TrainWork(
        recipe=SMALL,
        task="support",
        labels=LABELS,
        instructions="",
        seed=0,
        dataset=DATASET,
        encoder=ENCODER,
        max_tokens=128,
        base=BASE,
        base_name="tiny",
        checkpoint=f"checkpoint-{name}",
        checkpoint_seconds=0.0,
    )


def tune(
    folder: Path, name: str, on_progress: Told = lambda told: None, base: Path | None = None
) -> dict[str, Any]:
    """Run the work, in `folder / name`."""
    pairs = [(text, label) for label, texts in TEXTS.items() for text in texts]
    write_training(folder / "dataset", pairs)
    (folder / name).mkdir(exist_ok=True)
    inputs = {DATASET: folder / "dataset", ENCODER: folder, BASE: base or tiny_chat_model().base}
    executor = loose_executor(folder, TrainerSettings(threads=1), inputs, on_progress)
    return executor.run(causal_work(name), folder / name)


def kill_when_half_done(told: Mapping[str, Any]) -> None:
    if told["phase"] == "tune" and told["step"] > told["total"] / 3:
        for child in psutil.Process().children():
            if "pipelines.train" in child.cmdline():
                child.send_signal(signal.SIGKILL)


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = tune(tmp_path, "whole")
    with pytest.raises(TrainingInterrupted, match="SIGKILL"):
        tune(tmp_path, "killed", kill_when_half_done)
    resumed = tune(tmp_path, "killed")

    assert resumed["resumed_at_step"] > 0
    assert resumed["loss_curve"] == whole["loss_curve"]
    assert whole["loss_curve"][-1][1] < whole["loss_curve"][0][1] / 2
    assert whole["reproducible"] == "yes"
    name = "adapter_model.safetensors"
    assert hash_file(tmp_path / "killed" / name) == hash_file(tmp_path / "whole" / name)
    assert load_config(tmp_path / "whole").labels == LABELS
    assert not list((tmp_path / "whole").glob("README*"))


def test_a_loss_that_is_no_number_ends_the_run_with_a_reason(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_chat_model().base, base)
    weights = load_file(str(base / "model.safetensors"))
    name = next(iter(weights))
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, str(base / "model.safetensors"), {"format": "pt"})
    with pytest.raises(TrainingFailed, match=r"the loss is nan in step 1 of .*learning_rate"):
        tune(tmp_path, "poisoned", base=base)


@pytest.fixture
def challenged(tmp_path: Path) -> Iterator[Shop]:
    task = {"challenger": "encoder-lora", "challenger_time": "2s", "target": 0.7}
    with open_shop(tmp_path, task=task, gate={"min_groups": 30}) as shop:
        shop.fill()
        yield shop


@pytest.mark.slow
def test_a_challenger_has_to_beat_the_tasks_own_recipe_on_the_same_items(
    challenged: Shop,
) -> None:
    tiny_chat_model()  # skips where there is no training stack
    _, own = challenged.training.run("support", "first")
    assert own is not None
    challenged.evaluating.run("support")
    result, challenger = challenged.training.challenge(own)
    assert challenger is not None, result
    assert (challenger.recipe, challenger.dataset) == ("encoder-lora", own.dataset)
    assert challenger.base != own.base, "a tuned encoder is its own artifact"
    assert challenger.training["reproducible"].startswith("no: the time budget")
    about = challenged.artifacts.open("encoder", challenger.base).about
    assert (about["base"], about["recipe"]) != (None, None)

    report = challenged.evaluating.run("support").detail
    assert challenger.name in report
    judged = challenged.evaluating.judge(challenger, *challenged.evaluating._items(challenger))
    checks = {check.name: check for check in judged.checks}
    assert "beats_sibling" in checks
    assert not checks["beats_sibling"].passed, "both are right everywhere: no better"
    assert not judged.promotable


def failed_run(shop: Shop) -> str:
    with shop.rig.database.snapshot() as tx:
        (run,) = runs(tx, "support", 5)
    assert run.status == "failed"
    return str(run.failure)


def test_too_little_memory_is_a_sentence_before_anything_starts(tmp_path: Path) -> None:
    with open_shop(
        tmp_path, task={"recipe": "encoder-full"}, trainer={"memory_limit_mb": 900}
    ) as shop:
        shop.fill()
        with pytest.raises(TrainingFailed, match=r"trainer\.memory_limit_mb is 900: raise it"):
            shop.training.run("support", "first")
        assert "needs about" in failed_run(shop)
        assert shop.children_left() == []


def test_a_missing_training_stack_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "TRAINING_STACK", (*TRAINING_STACK, "no_such_stack"))
    with open_shop(tmp_path, task={"recipe": "causal-lora"}) as shop:
        shop.fill()
        with pytest.raises(TrainingFailed, match=r"\(no_such_stack\); run `make setup`"):
            shop.training.run("support", "first")
        assert "training stack is not installed" in failed_run(shop)


def test_a_base_model_that_nothing_can_be_loaded_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no Hugging Face model folder"):
        check_base(RECIPES["encoder-lora"], tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SettingsError, match="a pickle can run code"):
        check_base(RECIPES["encoder-lora"], tmp_path)
    with pytest.raises(SettingsError, match="not the GGUF file"):
        check_base(RECIPES["encoder-full"], tmp_path / "model.gguf")
