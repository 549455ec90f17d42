"""The image cannot be built without Docker; what its steps do is done here, in an empty folder."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest
from deploy_files import DEPLOY, ROOT, said, tools

DOCKERFILE = DEPLOY / "Dockerfile"
building = pytest.mark.timeout(600)  # for whichever test is the first
SECRET = re.compile(r"key|token|password|secret|credential", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One FROM with its instructions, continued lines joined."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def of(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]


def stages() -> dict[str, Stage]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    found: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            stage = found[name] = Stage(name=name, base=base)
        elif instruction and stage is not None:
            stage.steps.append((instruction, " ".join(rest.split())))
    return found


def line_of(name: str) -> Iterator[Stage]:
    """The stage and those that it is made from, the first one first."""
    stage = stages()[name]
    if stage.base in stages():
        yield from line_of(stage.base)
    yield stage


def copied(stage: Stage) -> Iterator[tuple[str, str]]:
    """Source and target of every file or folder that comes from the repository."""
    for rest in stage.of("COPY"):
        *sources, target = rest.split()
        if not sources[0].startswith("--from="):
            yield from ((source, target) for source in sources)


def ignored(path: str) -> bool:
    """By .dockerignore: its last line that concerns the path or a folder above it decides."""
    verdict = False
    parts = path.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        anywhere = pattern.startswith("**/")
        names = parts if anywhere else above
        if any(fnmatch(name, pattern.removeprefix("**/")) for name in names):
            verdict = not line.startswith("!")
    return verdict


def test_the_linter_finds_nothing() -> None:
    assert said(tools().hadolint, "--failure-threshold", "style", DOCKERFILE) == ""


def test_both_images_are_there_and_slim_is_the_default() -> None:
    found = stages()
    assert {"slim", "full"} <= set(found)
    assert list(found)[-1] == "slim"
    assert {stage.name for stage in line_of("slim")} == {"base", "runtime", "slim"}
    (brought,) = found["full"].of("COPY")
    assert brought.startswith("--from=full-files ")
    assert "training" in {stage.name for stage in line_of("full-files")}
    assert "training" not in {stage.name for stage in line_of("slim-files")}


def test_what_is_copied_is_there_and_not_ignored() -> None:
    sources = [source for stage in stages().values() for source, _ in copied(stage)]
    assert len(sources) > 8
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    everything = said("git", "ls-files", cwd=ROOT).split()
    needed = [
        name for name in everything if name.startswith(("service/", "storage/", "pipelines/"))
    ]
    assert not [name for name in needed if ignored(name)]
    for private in ("flywheel.toml", ".env", "flywheel-data/secrets/internal.key", ".git/config"):
        assert ignored(private), private
    assert ignored("service/__pycache__/check.pyc")
    assert ignored("tests/core/test_gate.py")


def test_everything_is_installed_from_locks_with_hashes() -> None:
    for stage in stages().values():
        for command in stage.of("RUN"):
            for install in re.findall(r"pip(?:\"|') install[^&]*|pip install[^&]*", command):
                assert "--no-deps" in install, install
                assert "--require-hashes" in install or "/wheel/" in install, install
    locks = {source for stage in stages().values() for source, _ in copied(stage)}
    assert {"installer.lock", "core.lock", "training.lock"} <= locks


def test_no_secret_is_in_any_layer() -> None:
    for stage in stages().values():
        for rest in stage.of("ARG") + stage.of("ENV"):
            for name in re.findall(r"(\w+)=", rest):
                assert not SECRET.search(name), name
        assert not any(SECRET.search(source) or source == "." for source, _ in copied(stage)), (
            stage.name
        )


@pytest.mark.parametrize("name", ["slim", "full"])
def test_it_runs_as_nobody_special_and_hears_its_signals(name: str) -> None:
    line = list(line_of(name))
    users = [user for stage in line for user in stage.of("USER")]
    assert users == ["10001:10001"]
    chart = (DEPLOY / "helm" / "flywheel" / "templates" / "_names.tpl").read_text()
    assert "runAsUser: 10001" in chart
    entries = [entry for stage in line for entry in stage.of("ENTRYPOINT")]
    assert entries == ['["tini", "--", "flywheel"]']  # not through a shell, which hears no signal
    (health,) = (check for stage in line for check in stage.of("HEALTHCHECK"))
    assert "service.host.probe" in health


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The steps of `slim`, run below an empty folder instead of in images.

    What differs: absolute paths begin there, packages come from uv's cache where it has them,
    and Debian's packages and the user are left out.
    """
    root = tmp_path_factory.mktemp("image")
    for name in ("installer", "core", "program", "slim-files"):
        _run_stage(stages()[name], root)
    return root


def _run_stage(stage: Stage, root: Path) -> None:
    work = root / "build"
    work.mkdir(exist_ok=True)
    # As the host reaches its package index, as fast as it can.
    environment = {**os.environ, "UV_LINK_MODE": "hardlink"}
    environment.pop("VIRTUAL_ENV", None)
    for earlier in line_of(stage.name):
        for rest in earlier.of("ENV"):
            for word in shlex.split(rest):
                name, _, value = word.partition("=")
                if name not in ("PATH", "UV_NO_CACHE", "PIP_NO_CACHE_DIR", "UV_LINK_MODE"):
                    environment[name] = f"{root}{value}" if value.startswith("/") else value
    for instruction, rest in stage.steps:
        if instruction == "COPY" and not rest.startswith("--from="):
            for source, target in ((s, t) for s, t in copied(stage) if s in rest.split()):
                _copy(ROOT / source, work / (source if target == "./" else target))
        elif instruction == "RUN":
            command = re.sub(r"(?<=[\s\"'=])/(?=installer|wheel|opt)", f"{root}/", f" {rest}")
            done = subprocess.run(
                command, shell=True, cwd=work, env=environment, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        leave = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(source, target, ignore=leave, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def program(built: Path, *words: str | Path, **more: str) -> str:
    """The installed program, with nothing of this repository or environment in reach."""
    command: Sequence[str | Path] = [built / "opt/flywheel/.venv/bin/flywheel", *words]
    return said(*command, cwd=built, env={"PATH": "/usr/bin:/bin", **more})


@building
def test_its_steps_make_a_program_that_runs(built: Path) -> None:
    assert "Keep a small student model good" in program(built, "--help")
    assert "\nhead " in program(built, "recipes", "--quick")
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    assert program(built, "--version") == f"flywheel {version[1]}\n"


@building
def test_the_wheel_has_every_file_of_the_program(built: Path) -> None:
    (installed,) = (built / "opt/flywheel/.venv/lib").glob("python3*/site-packages")
    files = said("git", "ls-files", "service", "storage", "pipelines", cwd=ROOT).split()
    absent = [name for name in files if not (installed / name).is_file()]
    assert absent == []
    assert not (installed / "torch").exists()
    assert not (installed / "tests").exists()


@building
def test_its_example_app_can_be_imported_from(built: Path) -> None:
    python = built / "opt/flywheel/.venv/bin/python"
    customers = DEPLOY / "example-app" / "customers.py"
    assert "messages a second" in said(python, customers, "--help", cwd=built, env={"PATH": ""})
    assert "scripted" in said(
        python, "-m", "service.demo.scripted_teacher", "--help", cwd=built, env={"PATH": ""}
    )
