"""What `flywheel export` writes can be used without the flywheel, and tells nothing of its host."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from chat_model_rig import TinyChatModel, tiny_chat_model
from training_rig import open_shop

from benchmarks.loose_work import BASE, DATASET, ENCODER, loose_executor, write_training
from pipelines.errors import Refused
from pipelines.recipes import RECIPES
from pipelines.students.encoder import Encoder
from pipelines.students.head import load_head
from pipelines.work import TrainWork
from service.care.export import export_version
from service.sections import TrainerSettings

CARD = "---\nlicense: other\n---\n# support-v1\n"
SMALL = replace(RECIPES["causal-lora"], batch_size=4, rank=2, epochs=1.0)


@pytest.fixture(scope="module")
def model() -> TinyChatModel:
    return tiny_chat_model()


def test_an_exported_head_answers_by_itself(tmp_path: Path) -> None:
    with open_shop(tmp_path / "data") as shop:
        shop.fill(5)
        _, version = shop.training.run("support", "test")
        assert version is not None
        told = {
            "name": version.name,
            "recipe": version.recipe,
            "base_kind": version.base_kind,
            "student": version.student,
            "base": version.base,
        }
        folder = tmp_path / "exported"
        export_version(told, CARD, shop.workshop.settings.data_dir, folder)
    names = {path.name for path in folder.iterdir()}
    assert {"model.onnx", "tokenizer.json", "head.safetensors", "README.md"} <= names
    vectors = Encoder(folder, threads=1, max_tokens=128).encode(["where is my parcel"])
    (answer,) = load_head(folder).answer(vectors)
    assert answer.label == "delivery"


def test_exported_adapters_come_with_their_tokenizer(tmp_path: Path, model: TinyChatModel) -> None:
    live = model.publish(tmp_path, 1)
    told = {
        "name": live.name,
        "recipe": "causal-lora",
        "base_kind": "chat_model",
        "student": live.student,
        "base": live.base,
    }
    folder = tmp_path / "exported"
    export_version(told, CARD, tmp_path, folder)
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names  # the base model is named, not copied
    assert (folder / "README.md").read_text() == CARD


def test_without_the_artifacts_it_says_where_to_export(tmp_path: Path) -> None:
    told = {
        "name": "support-v1-ab",
        "recipe": "head",
        "base_kind": "encoder",
        "student": "a" * 64,
        "base": "b" * 64,
    }
    with pytest.raises(Refused, match="export on the host of the learner"):
        export_version(told, CARD, tmp_path / "elsewhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def tuned(folder: Path, model: TinyChatModel) -> dict[str, str]:
    """The hash of every file of a student that was trained in `folder`."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    pairs = [(f"{label} {at}", label) for label in ("refund", "parcel") for at in range(10)]
    write_training(folder / "dataset", pairs)
    inputs = {DATASET: folder / "dataset", ENCODER: folder, BASE: model.base}
    work = TrainWork(
        recipe=SMALL,
        task="support",
        labels=("refund", "parcel"),
        instructions="",
        seed=0,
        dataset=DATASET,
        encoder=ENCODER,
        max_tokens=128,
        base=BASE,
        base_name="tiny",
        checkpoint="checkpoint",
    )
    precision = folder.parent / "precision.json"
    loose_executor(folder, TrainerSettings(threads=1), inputs, precision=precision).run(
        work, scratch
    )
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in scratch.iterdir()}


def test_adapters_are_the_same_to_the_byte_and_name_no_folder_of_their_host(
    tmp_path: Path, model: TinyChatModel
) -> None:
    one, other = tuned(tmp_path / "one", model), tuned(tmp_path / "other", model)
    assert one == other
    config = json.loads((tmp_path / "one" / "scratch" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert str(model.base) not in json.dumps(config)
