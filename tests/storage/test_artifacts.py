"""Artifacts, durable files, live.json and keys: whole or absent, and never changed unnoticed."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from pipelines.errors import ArtifactDamaged, DataDamaged, SettingsError
from service.keys import Keys, open_keys, operator_token, read_operator_token
from storage.artifacts import MANIFEST, Artifact, Artifacts
from storage.durable import write_durably, write_json
from storage.live import Live, LiveTask, decode_live, encode_live, read_live, write_live

FUTURE = 4e9


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "artifacts")


def scratch(tmp_path: Path, text: str = "hello", name: str = "scratch") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "data.jsonl").write_text(text)
    (folder / "inside").mkdir()
    (folder / "inside" / "more.json").write_text("{}")
    return folder


def publish(artifacts: Artifacts, tmp_path: Path, text: str = "hello") -> Artifact:
    return artifacts.publish("dataset", scratch(tmp_path, text), {"task": "support"})


def test_published_artifact_opens_with_what_was_said_about_it(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    made = publish(artifacts, tmp_path)
    assert not (tmp_path / "scratch").exists()
    found = artifacts.open("dataset", made.digest)
    assert found == made
    assert found.about == {"task": "support"}
    assert found.file("data.jsonl").read_text() == "hello"
    assert artifacts.exists("dataset", made.digest)


def test_same_content_is_one_artifact_and_other_content_another(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    one = artifacts.publish("dataset", scratch(tmp_path, name="a"), {"task": "support"})
    same = artifacts.publish("dataset", scratch(tmp_path, name="b"), {"task": "support"})
    other = artifacts.publish("dataset", scratch(tmp_path, name="c"), {"task": "billing"})
    kind = artifacts.publish("report", scratch(tmp_path, name="d"), {"task": "support"})
    assert one == same
    assert len({one.digest, other.digest, kind.digest}) == 3


def flip(folder: Path) -> None:
    content = bytearray((folder / "data.jsonl").read_bytes())
    content[0] ^= 1
    (folder / "data.jsonl").write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "truncated": lambda folder: (folder / "data.jsonl").write_text("hell"),
    "added": lambda folder: (folder / "new.json").write_text("{}"),
    "added inside": lambda folder: (folder / "inside" / "new.json").write_text("{}"),
    "removed": lambda folder: (folder / "inside" / "more.json").unlink(),
    "renamed": lambda folder: (folder / "data.jsonl").rename(folder / "other.jsonl"),
    "code": lambda folder: (folder / "run.py").write_text("print()"),
    "pickle": lambda folder: (folder / "head.pkl").write_bytes(b""),
    "link": lambda folder: (folder / "link.json").symlink_to("data.jsonl"),
    "linked folder": lambda folder: (folder / "more").symlink_to("inside"),
    "manifest": lambda folder: (folder / MANIFEST).write_text(
        (folder / MANIFEST).read_text().replace("support", "billing")
    ),
    "manifest cut": lambda folder: (folder / MANIFEST).write_text("{"),
    "manifest gone": lambda folder: (folder / MANIFEST).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_changed_artifact_is_never_opened(
    damage: str, artifacts: Artifacts, tmp_path: Path
) -> None:
    made = publish(artifacts, tmp_path)
    DAMAGES[damage](made.path)
    with pytest.raises(ArtifactDamaged):
        artifacts.open("dataset", made.digest)


@pytest.mark.parametrize("damage", ["code", "pickle", "link", "linked folder"])
def test_what_is_not_data_is_not_published(
    damage: str, artifacts: Artifacts, tmp_path: Path
) -> None:
    folder = scratch(tmp_path)
    DAMAGES[damage](folder)
    with pytest.raises(ArtifactDamaged, match="may not be part"):
        artifacts.publish("student", folder, {})
    assert artifacts.digests("student") == []


def test_manifest_that_a_child_left_in_its_scratch_counts_for_nothing(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    folder = scratch(tmp_path)
    (folder / MANIFEST).write_text('{"files": {}}')
    made = artifacts.publish("dataset", folder, {"task": "support"})
    assert set(artifacts.open("dataset", made.digest).about) == {"task"}


def test_unknown_digest_and_other_kind_are_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    made = publish(artifacts, tmp_path)
    with pytest.raises(ArtifactDamaged, match="no student"):
        artifacts.open("student", made.digest)
    with pytest.raises(ArtifactDamaged):
        artifacts.open("dataset", "../dataset/" + made.digest)


def test_prune_keeps_what_it_is_told_and_what_is_new(artifacts: Artifacts, tmp_path: Path) -> None:
    digests = [
        artifacts.publish("dataset", scratch(tmp_path, str(n), f"s{n}"), {}).digest
        for n in range(3)
    ]
    os.utime(artifacts.path("dataset", digests[1]) / MANIFEST, (1_000, 1_000))
    assert artifacts.prune("dataset", [digests[0]], older_than=2_000) == [digests[1]]
    assert artifacts.prune("dataset", [digests[0]], older_than=FUTURE) == [digests[2]]
    assert artifacts.digests("dataset") == [digests[0]]


def test_artifact_that_is_published_again_is_new_again(
    artifacts: Artifacts, tmp_path: Path
) -> None:
    made = publish(artifacts, tmp_path)
    os.utime(made.path / MANIFEST, (1_000, 1_000))
    publish(artifacts, tmp_path)
    assert artifacts.prune("dataset", [], older_than=2_000) == []


def test_half_removed_artifact_can_be_published_again(artifacts: Artifacts, tmp_path: Path) -> None:
    made = publish(artifacts, tmp_path)
    (made.path / MANIFEST).unlink()  # what a killed prune leaves
    assert publish(artifacts, tmp_path).digest == made.digest
    assert artifacts.open("dataset", made.digest).file("data.jsonl").read_text() == "hello"


def test_durable_write_replaces_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2}, mode=0o600)
    assert path.read_text() == '{\n "a": 2\n}'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n "a": 2\n}'
    assert os.listdir(tmp_path) == ["file.json"]


def test_durable_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "taken.json"
    folder.mkdir()
    (folder / "x").write_text("")
    with pytest.raises(IsADirectoryError):
        write_durably(folder, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.json"]


def test_two_threads_that_write_one_file_leave_one_of_the_two(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [b"a" * 200_000, b"b" * 200_000]

    def write(content: bytes) -> None:
        for _ in range(20):
            write_durably(path, content)

    threads = [Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_live_is_what_was_written_and_signed(tmp_path: Path) -> None:
    live = Live(serial=3, tasks={"support": LiveTask()})
    path = tmp_path / "live.json"
    assert read_live(path, b"key") == Live()
    write_live(path, live, b"key")
    assert read_live(path, b"key") == live


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.replace(b'\\"serial\\":3', b'\\"serial\\":4'),
        lambda content: content[:-10],
        lambda content: b"{}",
        lambda content: b"[]",
        lambda content: b'{"live": "{}", "signature": "\\u00e9"}',
        lambda content: b'{"live": "\\ud800", "signature": ""}',
        lambda content: b"\xff",
    ],
)
def test_live_that_we_did_not_write_is_refused(change: Callable[[bytes], bytes]) -> None:
    content = encode_live(Live(serial=3), b"key")
    changed = change(content)
    assert changed != content
    with pytest.raises(DataDamaged):
        decode_live(changed, b"key")
    with pytest.raises(DataDamaged, match="not signed"):
        decode_live(content, b"another key")


def test_keys_are_made_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    first = open_keys(tmp_path)
    assert open_keys(tmp_path) == first
    token = operator_token(tmp_path)
    assert operator_token(tmp_path) == read_operator_token(tmp_path) == token
    for path in (tmp_path / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {path.name for path in (tmp_path / "secrets").iterdir()} == {
        "internal.key",
        "operator.token",
    }


def test_keys_for_different_purposes_differ_and_are_never_printed(tmp_path: Path) -> None:
    keys = open_keys(tmp_path)
    assert len({keys.capture, keys.live, keys.users, keys.sampling}) == 4
    assert keys.internal not in repr(keys)
    assert open_keys(tmp_path, "given") == Keys(internal="given")


OPEN_MANY = """
import sys
from pathlib import Path
from service.keys import open_keys
print("ready", flush=True)
sys.stdin.readline()
print(open_keys(Path(sys.argv[1])).internal)
"""


def test_processes_that_start_together_agree_on_the_key(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_MANY, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    keys = {process.communicate()[0] for process in processes}
    assert len(keys) == 1
    assert keys != {""}


def test_missing_and_empty_secrets_are_explained(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="start the learner once"):
        read_operator_token(tmp_path)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "internal.key").touch()
    with pytest.raises(SettingsError, match="is empty; remove it"):
        open_keys(tmp_path)
