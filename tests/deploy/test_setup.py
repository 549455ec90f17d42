"""Set-up: everything comes from lock files with hashes, and the core without torch."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("installer.lock", "core.lock", "training.lock", "dev.lock", "deploy/tools.lock")
TRAINING_STACK = ("torch", "transformers", "peft", "accelerate")
REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;]+)")


def requirements(lock: str) -> list[str]:
    """The requirements with their hashes, one text each."""
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def pins(lock: str) -> Mapping[str, set[str]]:
    """Versions by package; two where the Python version decides."""
    found: dict[str, set[str]] = {}
    for line in requirements(lock):
        match = REQUIREMENT.match(line)
        assert match, f"{lock}: {line[:80]} is not pinned"
        found.setdefault(normal(match[1]), set()).add(match[2])
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*requirements: str) -> set[str]:
    return {normal(re.split(r"[\[<>=!~; ]", text)[0]) for text in requirements}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_and_has_hashes(lock: str) -> None:
    assert pins(lock)
    for line in requirements(lock):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", line), f"{lock}: {line[:80]}"


def test_nothing_names_a_registry_or_a_folder_of_somebodys_machine() -> None:
    files = [ROOT / name for name in (*LOCKS, "Makefile", "pyproject.toml", ".ci/run")]
    for path in files:
        text = path.read_text()
        assert not re.search(r"(?<!emit-)index-url|--find-links|--trusted-host", text), path
        assert not re.search(r"https?://", text), path
        assert not re.search(r"(?:^|[\s\"'=])/(?:home|root|work|Users)/", text), path


def test_core_has_no_training_stack() -> None:
    assert not set(TRAINING_STACK) & set(pins("core.lock"))
    assert "sentence-transformers" not in pins("core.lock")


def test_training_lock_contains_the_core_unchanged() -> None:
    assert set(requirements("core.lock")) <= set(requirements("training.lock"))
    assert set(TRAINING_STACK) <= set(pins("training.lock"))


@pytest.mark.parametrize("lock", ["dev.lock", "installer.lock"])
def test_other_locks_agree_with_the_training_lock(lock: str) -> None:
    training = pins("training.lock")
    differ = {name: v for name, v in pins(lock).items() if name in training and v != training[name]}
    assert not differ


def test_locks_hold_what_the_project_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    core = declared(*project["project"]["dependencies"])
    train = declared(*project["project"]["optional-dependencies"]["train"])
    dev = declared(*project["dependency-groups"]["dev"])
    assert core <= set(pins("core.lock")), "run `make lock`"
    assert train <= set(pins("training.lock")), "run `make lock`"
    assert dev <= set(pins("dev.lock")), "run `make lock`"


def test_make_alone_lists_every_target() -> None:
    said = make()
    makefile = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY:(.*)$", makefile, re.M)
    for target in " ".join(phony).split():
        assert re.search(rf"^  make {target} +\S", said, re.M), target


def test_second_start_installs_nothing() -> None:
    if not (ROOT / ".venv" / ".installed-everything").exists():
        pytest.skip("not set up by make; `make setup` does it")
    planned = make("--dry-run", "--old-file=pyproject.toml", "setup")
    assert "install" not in planned


def test_ci_runs_make_test_and_nothing_cleverer() -> None:
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & 0o111
    commands = [line for line in run.read_text().splitlines() if not line.startswith("#")]
    assert commands[-1] == "exec make test"


def test_program_is_installed_beside_python() -> None:
    program = Path(sys.executable).parent / "flywheel"
    if not program.exists():
        pytest.skip("flywheel is not installed here; `make core` does it")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.stdout.strip() == f"flywheel {version}", done.stderr


def make(*arguments: str) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
