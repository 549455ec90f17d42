"""Labels to a student to a report, with real children on the installed encoder."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import psutil
import pytest
from core_samples import labelled
from training_rig import PHRASES, Shop, open_shop, read_json_lines

from pipelines.curate import CurationPolicy, curate
from pipelines.errors import ArtifactDamaged, TrainingFailed
from pipelines.recipes import RECIPES
from pipelines.rows import read_training
from pipelines.students.encoder import Encoder, VectorCache
from pipelines.students.head import CONFIG_FILE, Classifier, Head, load_head, save_head
from pipelines.types import StudentVersion
from pipelines.work import Input, TrainWork
from service.learner.executor import LocalExecutor, places_of
from service.sections import TrainerSettings
from storage.datasets import latest_dataset, write_dataset
from storage.evaluations import latest_evaluation
from storage.reports import read_report
from storage.runs import runs, start_run
from storage.versions import versions
from storage.votes import doubted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, StudentVersion]]:
    """A shop with one trained and judged version, for the tests that change nothing."""
    with open_shop(tmp_path_factory.mktemp("shop")) as shop:
        shop.fill()
        result, version = shop.training.run("support", "a test")
        assert version is not None
        assert result.detail == f"{version.name} trained: a test"
        assert shop.evaluating.run("support").outcome == "done"
        yield shop, version


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with open_shop(tmp_path) as opened:
        yield opened


def classifier(shop: Shop, version: StudentVersion) -> Classifier:
    encoder = Encoder(shop.workshop.encoder.path, threads=1)
    student = shop.artifacts.open("student", version.student)
    return Classifier(head=load_head(student.path, dimension=encoder.dimension), encoder=encoder)


def test_student_answers_what_it_was_taught(made: tuple[Shop, StudentVersion]) -> None:
    student = classifier(*made)
    asked = {label: phrases[0].format("a wooden chair") for label, phrases in PHRASES.items()}
    found = student.answer(list(asked.values()))
    assert [answer.label for answer in found] == list(asked)
    assert all(0.4 < answer.confidence <= 1 for answer in found)
    (odd,) = student.answer(["zebras graze at noon"])
    assert odd.confidence < min(answer.confidence for answer in found)


def test_dataset_has_its_manifest_and_every_form(made: tuple[Shop, StudentVersion]) -> None:
    shop, version = made
    dataset = shop.artifacts.open("dataset", version.dataset)
    about = dataset.about
    assert (about["training"], about["held_out"], about["parent"]) == (144, 36, None)
    assert about["training_by_label"] == {"refund": 48, "delivery": 48, "cancel": 48}
    assert about["terms"] == "scripted"
    assert len(about["content"]) == 32
    train = read_json_lines(dataset.file("train.jsonl"))
    chat = read_json_lines(dataset.file("chat.jsonl"))
    assert len(train) == len(chat) == 144
    assert chat[0]["messages"] == [
        {"role": "user", "content": train[0]["text"]},
        {"role": "assistant", "content": train[0]["label"]},
    ]
    query = f"SELECT split, count(*) FROM '{dataset.file('examples.parquet')}' GROUP BY ALL"
    assert dict(duckdb.execute(query).fetchall()) == {"training": 144, "held_out": 36}
    assert version.labels_trained == 144
    assert version.labels_bought == 180


def test_held_out_groups_are_not_in_the_training_set(made: tuple[Shop, StudentVersion]) -> None:
    shop, version = made
    dataset = shop.artifacts.open("dataset", version.dataset)
    train = {row["group_id"] for row in read_json_lines(dataset.file("train.jsonl"))}
    held_out = {row["group_id"] for row in read_json_lines(dataset.file("held_out.jsonl"))}
    assert len(held_out) == 36
    assert not train & held_out


def test_report_holds_golden_prompts_that_the_student_reproduces(
    made: tuple[Shop, StudentVersion],
) -> None:
    shop, version = made
    with shop.rig.database.snapshot() as tx:
        found = latest_evaluation(tx, "support", version.student)
    assert found is not None
    report = read_report(shop.artifacts, found.report)
    assert report.evaluation.items == found.items == 36
    assert set(report.evaluation.agreement) == {"candidate", "base", "majority", "nearest"}
    assert report.evaluation.agreement["candidate"].value > 0.9
    assert report.gate.verdict == "insufficient_evidence"
    assert report.latency_ms is not None
    golden = json.loads((shop.artifacts.path("report", found.report) / "golden.json").read_text())
    assert len(golden) == 16
    answers = classifier(shop, version).answer([prompt["text"] for prompt in golden])
    for prompt, answer in zip(golden, answers, strict=True):
        assert answer.label == prompt["label"]
        assert answer.confidence == pytest.approx(prompt["confidence"], abs=1e-5)


def test_nothing_is_left_in_the_scratch_folder(made: tuple[Shop, StudentVersion]) -> None:
    shop, _ = made
    assert shop.children_left() == []


def test_without_new_labels_nothing_is_trained_or_judged(
    made: tuple[Shop, StudentVersion],
) -> None:
    shop, version = made
    result, none = shop.training.run("support", "again")
    assert none is None
    assert (result.outcome, result.detail) == (
        "nothing",
        f"support: no new labels since {version.name}",
    )
    again = shop.evaluating.run("support")
    assert again.outcome == "nothing"
    assert "0 new held-out items to judge it on; 8 are needed" in again.detail
    with shop.rig.database.snapshot() as tx:
        assert len(runs(tx, "support", 10)) == 1


def test_same_dataset_and_seed_make_the_same_student(
    made: tuple[Shop, StudentVersion], tmp_path: Path
) -> None:
    """Also without the cache of vectors, which the first training filled."""
    shop, version = made
    before = shop.artifacts.open("student", version.student)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    encoder = Input("encoder", shop.workshop.encoder.digest)
    work = TrainWork(
        recipe=RECIPES["head"],
        task="support",
        labels=shop.rig.task.labels,
        instructions="",
        seed=0,
        dataset=Input("dataset", version.dataset),
        encoder=encoder,
        max_tokens=shop.workshop.encoder.about["max_tokens"],
        base=encoder,
        base_name="",
    )
    places = replace(
        places_of(shop.rig.settings, shop.artifacts), vectors=lambda encoder: tmp_path / "cache"
    )
    result = LocalExecutor(TrainerSettings(threads=1), places).run(work, scratch)
    assert result.pop("doubts") == [], "kept in a table of their own, not in the manifest"
    result["settings"] = before.about["training"]["settings"]
    assert result == before.about["training"]
    assert shop.artifacts.publish("student", scratch, before.about).digest == version.student


def test_next_dataset_names_its_parent_and_its_cut_off(shop: Shop) -> None:
    shop.fill(6)
    _, first = shop.training.run("support", "first")
    shop.fill(12, start=6)
    _, second = shop.training.run("support", "second")
    assert first is not None
    assert second is not None
    assert (first.number, second.number) == (1, 2)
    assert shop.artifacts.open("dataset", second.dataset).about["parent"] == first.dataset
    with shop.rig.database.snapshot() as tx:
        stored = latest_dataset(tx, "support")
        newest = tx.execute("SELECT max(labelled_at) FROM labels").fetchall()[0][0]
        assert [version.number for version in versions(tx, "support")] == [2, 1]
    assert stored is not None
    assert stored.parent == first.dataset
    assert newest <= stored.cut_off.replace(tzinfo=None) <= second.trained_at.replace(tzinfo=None)


def test_dataset_that_was_pruned_does_not_stop_training(shop: Shop) -> None:
    shop.fill(6)
    _, first = shop.training.run("support", "first")
    assert first is not None
    shutil.rmtree(shop.artifacts.path("dataset", first.dataset))
    shop.fill(7, start=6)
    _, second = shop.training.run("support", "second")
    assert second is not None


def test_too_few_labels_teach_nothing(shop: Shop) -> None:
    shop.rig.sample("a", "money back")
    shop.rig.label("a", "refund")
    result, version = shop.training.run("support", "early")
    assert version is None
    assert "fewer than two labels teach nothing" in result.detail
    assert shop.evaluating.run("support").detail == "support: no student was trained yet"


def test_without_terms_nothing_is_trained(tmp_path: Path) -> None:
    with open_shop(tmp_path, teacher={"terms_allow_training": False}) as shop:
        shop.fill(6)
        result, version = shop.training.run("support", "early")
    assert version is None
    assert "teacher.terms" in result.detail


def test_killed_trainer_is_a_failed_run_and_the_next_one_succeeds(shop: Shop) -> None:
    shop.fill(6)

    def kill_the_trainer() -> None:
        for _ in range(600):
            for child in psutil.Process().children():
                if "pipelines.train" in child.cmdline():
                    child.kill()
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_the_trainer)
    killer.start()
    with pytest.raises(TrainingFailed, match="support: killed by SIGKILL"):
        shop.training.run("support", "doomed")
    killer.join()
    with shop.rig.database.snapshot() as tx:
        (run,) = runs(tx, "support", 10)
        assert versions(tx, "support") == []
    assert run.status == "failed"
    assert run.failure is not None
    assert "SIGKILL" in run.failure
    assert run.ended_at is not None
    assert shop.children_left() == []
    assert shop.artifacts.digests("student") == []
    _, version = shop.training.run("support", "again")
    assert version is not None
    assert version.dataset == run.dataset, "the same dataset is tried again"


def test_learner_that_was_killed_finds_its_run_failed(shop: Shop) -> None:
    with shop.rig.database.transaction() as tx:
        start_run(
            tx,
            run_id="r",
            task="support",
            dataset="d",
            recipe="head",
            reason="",
            now=shop.rig.now(),
        )
    shop.workshop.scratch()
    shop.training.recover()
    with shop.rig.database.snapshot() as tx:
        (run,) = runs(tx, "support", 10)
    assert (run.status, run.failure) == ("failed", "the learner ended while it ran")
    assert shop.children_left() == []


def test_a_starting_learner_leaves_what_others_are_writing(shop: Shop) -> None:
    """A backup copies the database, and a gateway fetches artifacts, while a learner starts."""
    folder = shop.workshop.settings.folder
    others = (folder.new_frozen(), folder.fetched / "tmp")
    for path in others:
        path.mkdir(parents=True)
    shop.training.recover()
    assert all(path.is_dir() for path in others)


def test_line_breaks_of_every_kind_train(shop: Shop) -> None:
    """JSON lines end at a line feed; a text may hold Unicode's other breaks."""
    for number, mark in enumerate(("\u2028", "\u2029", "\x85", "\x0b", "\r\n")):
        shop.rig.sample(f"a-{number}", f"give me my money{mark}back {number}")
        shop.rig.label(f"a-{number}", "refund")
        shop.rig.sample(f"b-{number}", f"where is{mark}my parcel {number}")
        shop.rig.label(f"b-{number}", "delivery")
    _, version = shop.training.run("support", "breaks")
    assert version is not None
    assert version.labels_trained == 10
    dataset = shop.artifacts.path("dataset", version.dataset)
    texts = [row.text for row in read_training(dataset)]
    assert "give me my money\u2028back 0" in texts


def test_evidence_that_thinning_leaves_out_is_no_reason_to_look_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.evaluate.FEWEST_KEPT", 1)  # of 36 none would be left out
    shop.fill(11)
    with shop.rig.database.transaction() as tx:  # half drawn at one rate, half at another
        tx.execute(
            "UPDATE samples SET held_out_pi = 0.1 WHERE event_id LIKE '%-0' AND side = 'held_out'"
        )
    shop.training.run("support", "first")
    assert shop.evaluating.run("support").outcome == "done"
    with shop.rig.database.snapshot() as tx:
        (version,) = versions(tx, "support")
        found = latest_evaluation(tx, "support", version.student)
    assert found is not None
    assert found.items < 30
    for _ in range(3):
        assert shop.evaluating.run("support").outcome == "nothing"


def head(labels: tuple[str, ...] = ("a", "b"), dimension: int = 4) -> Head:
    weight = np.arange(len(labels) * dimension, dtype=np.float32).reshape(len(labels), dimension)
    bias = np.zeros(len(labels), dtype=np.float32)
    return Head(labels=labels, weight=weight, bias=bias, temperature=1.5)


def test_head_survives_saving_in_any_memory_order(tmp_path: Path) -> None:
    fortran = replace(head(), weight=np.asfortranarray(head().weight))
    save_head(tmp_path, fortran, {"task": "support"})
    again = load_head(tmp_path, dimension=4)
    assert again.labels == ("a", "b")
    assert np.array_equal(again.weight, head().weight)
    assert again.temperature == 1.5


@pytest.mark.parametrize(
    "bad",
    [
        replace(head(), weight=np.full((2, 4), np.nan, dtype=np.float32)),
        replace(head(), bias=np.array([0, np.inf], dtype=np.float32)),
        replace(head(), temperature=0.0),
        replace(head(), temperature=float("nan")),
        replace(head(), labels=("a", "b", "c")),
        replace(head(), labels=("a", "a")),
        head(dimension=5),
    ],
    ids=["nan", "infinite", "cold", "no temperature", "shape", "twice", "dimension"],
)
def test_rubbish_heads_are_refused(bad: Head, tmp_path: Path) -> None:
    save_head(tmp_path, bad, {})
    with pytest.raises(ArtifactDamaged):
        load_head(tmp_path, dimension=4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CONFIG_FILE, "{"),
        (CONFIG_FILE, "[]"),
        (CONFIG_FILE, '{"labels": ["a", "b"], "auto_map": {"x": "run.py"}}'),
        (CONFIG_FILE, '{"labels": [["a"], ["b"]]}'),
        (CONFIG_FILE, '{"labels": 3}'),
        ("head.safetensors", "rubbish"),
    ],
)
def test_unreadable_students_are_refused(name: str, content: str, tmp_path: Path) -> None:
    save_head(tmp_path, head(), {})
    (tmp_path / name).write_text(content)
    with pytest.raises(ArtifactDamaged):
        load_head(tmp_path)


def test_vectors_come_from_the_cache_and_damage_to_it_does_no_harm(
    made: tuple[Shop, StudentVersion], tmp_path: Path
) -> None:
    shop, _ = made
    encoder = Encoder(shop.workshop.encoder.path, threads=1)
    texts = [f"text number {n}" for n in range(5)]
    fresh = encoder.encode(texts)
    first = VectorCache(tmp_path, encoder.dimension)
    assert np.allclose(first.encode(encoder, texts), fresh)
    (segment,) = tmp_path.glob("*.vectors")
    (tmp_path / "half.unfinished").write_bytes(b"torn")
    told: list[tuple[int, int]] = []
    again = VectorCache(tmp_path, encoder.dimension)
    found = again.encode(encoder, [*texts, "new"], lambda done, new: told.append((done, new)))
    assert np.allclose(found[:5], fresh)
    assert told == [(1, 1)], "only what is new is embedded"
    whole = segment.read_bytes()
    zeros = whole[: 5 * 16] + bytes(len(whole) - 5 * 16)
    for damaged in (zeros, whole[:-7], b"", b"x" * len(whole)):
        segment.write_bytes(damaged)
        healed = VectorCache(tmp_path, encoder.dimension)
        assert np.allclose(healed.encode(encoder, texts), fresh)
        assert segment.read_bytes() == whole, "what was damaged is written again"


def test_a_segment_that_is_used_is_not_old(
    made: tuple[Shop, StudentVersion], tmp_path: Path
) -> None:
    shop, _ = made
    encoder = Encoder(shop.workshop.encoder.path, threads=1)
    cache = VectorCache(tmp_path, encoder.dimension)
    cache.encode(encoder, ["where is it"])
    cache.encode(encoder, ["cancel it"])
    segments = sorted(tmp_path.glob("*.vectors"))
    for segment in segments:
        os.utime(segment, (0, 0))
    VectorCache(tmp_path, encoder.dimension).encode(encoder, ["cancel it"])
    assert [segment.stat().st_mtime > 0 for segment in segments].count(True) == 1
    for segment in segments:
        segment.unlink()
    assert cache.encode(encoder, ["where is it"]).any(), "pruned under our hands: made again"


def test_vector_of_a_text_does_not_depend_on_its_company(made: tuple[Shop, StudentVersion]) -> None:
    shop, _ = made
    encoder = Encoder(shop.workshop.encoder.path, threads=1)
    texts = ["where is it", "i want my money back " * 12, "cancel"]
    together = encoder.encode(texts)
    alone = np.vstack([encoder.encode([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-4


def test_dataset_files_are_the_same_for_the_same_labels(
    made: tuple[Shop, StudentVersion], tmp_path: Path
) -> None:
    shop, _ = made
    policy = CurationPolicy(max_per_user=9, max_per_group=9, held_out_window=9)
    curated = curate([labelled(n, f"{n} things I said") for n in range(9)], policy)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        write_dataset(folder, curated, shop.rig.task)
    for name in os.listdir(folders[0]):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_the_teacher_is_asked_first_about_what_the_examples_speak_against(shop: Shop) -> None:
    shop.fill()
    rig = shop.rig
    slip, doubted_by_a_student = "refund-7-2", "cancel-8-1"
    with rig.database.transaction() as tx:
        tx.execute("UPDATE labels SET label = 'delivery' WHERE event_id = ?", [slip])
        tx.execute(
            "UPDATE samples SET student_label = 'refund', confidence = 0.99 WHERE event_id = ?",
            [doubted_by_a_student],
        )
    _, version = shop.training.run("support", "a test")
    assert version is not None
    assert "doubts" not in version.training  # they are of the data, and may be many
    assert version.training["labels_looked_at"] == 144
    with rig.database.snapshot() as tx:
        asked = [one.event_id for one in doubted(tx, "support", 10)]
    assert asked == [slip, doubted_by_a_student]
    assert rig.rows("SELECT label, likelier FROM doubts") == [("delivery", "refund")]
    # What a person has said since is no word of the teacher's to doubt.
    rig.label(slip, "refund", source="correction")
    with rig.database.snapshot() as tx:
        assert [one.event_id for one in doubted(tx, "support", 10)] == [doubted_by_a_student]
