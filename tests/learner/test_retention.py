"""Retention forgets what is old, and never what was not read or what was once approved."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from learner_rig import Rig, open_rig
from operating import Desk, open_desk

from service.learner.retention import Retention
from service.topics.embedded import EmbeddedTopicReader, EmbeddedTopicWriter
from storage.artifacts import Artifacts
from storage.folder import DataFolder
from storage.traffic import store_offsets

NOW = datetime.now(UTC)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as opened:
        EmbeddedTopicWriter(DataFolder(tmp_path).topic).close()
        yield opened


def retention(rig: Rig, days_later: float = 0) -> Retention:
    artifacts = Artifacts(rig.folder / "artifacts")
    now = NOW + timedelta(days=days_later)
    return Retention(rig.database, artifacts, rig.settings, lambda: now)


def test_the_text_of_what_nobody_labelled_is_forgotten_but_not_that_it_was_drawn(rig: Rig) -> None:
    rig.sample("waiting", "my secret", at=NOW)
    rig.sample("labelled", "known", at=NOW)
    rig.label("labelled", "refund")

    retention(rig, days_later=15).run()

    assert rig.rows("SELECT status, text, messages FROM samples WHERE event_id = 'waiting'") == [
        ("expired", "", "[]")
    ]
    assert rig.statuses()["labelled"] == "labelled"


def test_labelled_samples_go_after_their_own_time(rig: Rig) -> None:
    rig.sample("labelled", "known", at=NOW)
    rig.label("labelled", "refund")

    retention(rig, days_later=400).run()

    assert rig.statuses() == {}


def test_vectors_of_texts_that_nothing_used_for_a_month_are_forgotten(rig: Rig) -> None:
    cache = rig.folder / "cache" / "vectors-0123456789abcdef"
    cache.mkdir(parents=True)
    for name, age in (("old.vectors", 31), ("used.vectors", 29), ("torn.unfinished", 31)):
        (cache / name).write_bytes(b"")
        moment = (NOW - timedelta(days=age)).timestamp()
        os.utime(cache / name, (moment, moment))

    retention(rig).run()

    assert [file.name for file in cache.iterdir()] == ["used.vectors"]


def test_of_the_embedded_topic_only_what_was_read_is_removed(rig: Rig) -> None:
    writer = EmbeddedTopicWriter(DataFolder(rig.folder).topic)
    for number in range(10):
        writer.send(b"%d" % number)
    writer.flush(10)
    writer.close()
    reader = EmbeddedTopicReader(DataFolder(rig.folder).topic)
    with rig.database.transaction() as tx:
        store_offsets(tx, reader.name, reader.identity(), {0: 6}, NOW)

    retention(rig, days_later=30).run()

    reader.seek({0: 6})
    left = reader.poll(max_records=100, timeout_seconds=0.1).records
    reader.close()
    assert [record.value for record in left] == [b"6", b"7", b"8", b"9"]


def test_nothing_that_is_young_goes(rig: Rig) -> None:
    rig.sample("waiting", "my secret", at=NOW)
    result = retention(rig).run()
    assert result.outcome == "nothing"
    assert rig.rows("SELECT text FROM samples") == [("my secret",)]


def tuned_encoder(desk: Desk, content: str, recipe: str | None) -> str:
    scratch = desk.folder / "tuned"
    scratch.mkdir()
    (scratch / "model.onnx").write_text(content)
    about = {"name": content, "recipe": recipe} if recipe else {"name": content}
    return desk.artifacts.publish("encoder", scratch, about).digest


def test_what_was_once_approved_stays_and_old_candidates_go(tmp_path: Path) -> None:
    with open_desk(tmp_path, retention={"students": 2}) as desk:
        approved = desk.approved()
        candidates = [desk.train() for _ in range(4)]
        encoders = [tuned_encoder(desk, at, "encoder-lora") for at in "ab"]
        encoders.append(tuned_encoder(desk, "c", None))
        with desk.database.transaction() as tx:
            tx.execute(
                "UPDATE students SET base = $base WHERE digest = $digest",
                {"base": encoders[0], "digest": candidates[-1].student},
            )
        for manifest in (desk.folder / "artifacts").rglob("manifest.json"):
            os.utime(manifest, (0, 0))  # so old that no job can have it in its hands

        Retention(desk.database, desk.artifacts, desk.settings, desk.clock).run()

        kept = desk.artifacts.digests("student")
        assert approved.student in kept
        assert {one.student for one in candidates[-2:]} <= set(kept)
        assert candidates[0].student not in kept
        left = desk.artifacts.digests("encoder")
        assert set(encoders) & set(left) == {encoders[0], encoders[2]}, "tuned for nobody that is"
        assert desk.operations.publish() is None, "what is live can be published as before"
