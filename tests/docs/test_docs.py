"""The documentation says what is: generated parts are current, examples work, links lead on."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from generate import documents
from generator.files_page import file_tree
from generator.settings_page import settings_without_meaning

from pipelines.decode import decode
from pipelines.records.common import DecodePolicy
from pipelines.types import SourceOffset
from service.cli import app
from service.sections import TaskSettings
from service.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").rglob("*.md"))]
LINES_OF_FRONT_PAGES = {README: 220, CONTRIBUTING: 120}
# Each is the acceptance test of a seam: what needs more files has no seam.
ADDING = sorted((ROOT / "docs" / "contributing").glob("add-*.md"))
MOST_FILES_TO_ADD = 5
EXAMPLE = ROOT / "flywheel.example.toml"
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.M | re.S)
# Programs of other people that the pages call.
OTHER_PROGRAMS = {"apt-get", "brew", "cd", "cp", "curl", "docker", "du", "export", "git"}
# Of operating a host or a cluster; tests/deploy/test_deploy_docs.py says what becomes of them.
OTHER_PROGRAMS |= {"helm", "install", "kubectl", "sudo", "systemctl", "useradd"}
# A sentence may name a verb without what it needs. (typer keeps these classes to itself.)
LEFT_OUT = {"MissingParameter", "NoArgsIsHelpError"}
# In the example these comments show no default, because there is none.
EXAMPLES_ONLY = {"answer_pointer", "bootstrap_servers", "options"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fences(language: str) -> Iterator[tuple[str, str]]:
    """The page and the text of each code block in that language."""
    for page in PAGES:
        for indent, found, text in FENCE.findall(page.read_text()):
            if found == language:
                yield name_of(page), re.sub(rf"^{indent}", "", text, flags=re.M)


def commands() -> list[tuple[str, list[str]]]:
    """Every command line that a page shows in a block, with continued lines joined."""
    found = []
    for page, text in fences("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                found.append((page, shlex.split(line, comments=True)))
    return found


def mentions() -> list[tuple[str, list[str]]]:
    """Every command that a page names in a sentence, often without what it needs."""
    return [
        (name_of(page), shlex.split(inline))
        for page in PAGES
        for inline in re.findall(r"`((?:make|flywheel) [^`\n]+)`", page.read_text())
    ]


def test_generated_parts_are_current() -> None:
    stale = [name_of(path) for path, content in documents().items() if path.read_text() != content]
    assert not stale, "run `make docs`"


def test_every_setting_is_explained() -> None:
    assert settings_without_meaning() == []


def test_every_file_says_what_it_is() -> None:
    silent = [line for line in file_tree() if "." in line and "  " not in line.strip()]
    assert silent == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
            assert anchor[1:] in {re.sub(r"[^\w-]+", "-", title.lower()) for title in titles}


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES[1:]:
        inside = os.path.relpath(page, ROOT / "docs")
        if inside != "index.md":
            assert f"({inside})" in index or f"({Path(inside).parent.as_posix()}/)" in index, inside


@pytest.mark.parametrize(("page", "most"), LINES_OF_FRONT_PAGES.items(), ids=str)
def test_the_front_pages_are_read_to_their_end(page: Path, most: int) -> None:
    assert len(page.read_text().splitlines()) <= most


@pytest.mark.parametrize("page", ADDING, ids=name_of)
def test_what_is_added_takes_five_files_at_most(page: Path) -> None:
    steps = re.findall(r"^\d+\. `([^`]+)`: ", page.read_text(), re.M)
    assert 1 <= len(steps) <= MOST_FILES_TO_ADD
    assert len(steps) == len(re.findall(r"^\d+\. ", page.read_text(), re.M))


@pytest.mark.parametrize("page", [CONTRIBUTING, *ADDING], ids=name_of)
def test_files_that_are_named_to_contributors_exist(page: Path) -> None:
    """NAME stands for what the reader adds: then its folder has to be there."""
    named = re.findall(r"`((?:\w+/)+[\w.-]*)`", page.read_text())
    named += re.findall(r'ARGS="(tests/[^"]+)"', page.read_text())
    for path in (ROOT / one for several in named for one in several.split() if "/" in one):
        assert (path.parent if path.stem == "NAME" else path).exists(), path


def test_there_is_a_page_for_each_seam() -> None:
    assert [page.stem for page in ADDING] == [
        "add-a-recipe",
        "add-a-record-shape",
        "add-a-student-family",
    ]


def test_make_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = [(p, words[1]) for p, words in commands() + mentions() if words[0] == "make"]
    assert called
    assert [(page, target) for page, target in called if target not in targets] == []


def test_flywheel_commands_can_be_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = typer.main.get_command(app)
    called = [words for _, words in commands() if Path(words[0]).name == "flywheel"]
    assert len(called) > 20
    for words in called:
        if words[1] == "import":  # it looks whether the files are there
            for name in (word for word in words[2:] if "." in word and "/" not in word):
                Path(name).touch()
        _parse(program, words[1:], " ".join(words))
    for _, words in mentions():
        if words[0] == "flywheel" and "--help" not in words:  # which ends at once
            try:
                _parse(program, words[1:], " ".join(words))
            except Exception as error:
                if type(error).__name__ not in LEFT_OUT:
                    raise


def _parse(command: Any, words: list[str], whole: str, parent: Any = None) -> None:
    """Read the words as the program would, without doing what they say."""
    if words[:1] and words[0].isupper():  # a placeholder
        return
    context = command.make_context(command.name, list(words), parent=parent)
    if hasattr(command, "commands"):
        verb, inner, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert inner is not None, f"{whole}: there is no verb {verb}"
        _parse(inner, rest, whole, context)


def test_nothing_else_is_called_than_what_is_known() -> None:
    for page, words in commands():
        program = Path(words[0]).name
        assert program in OTHER_PROGRAMS | {"make", "flywheel"}, f"{page}: {words}"


@pytest.mark.parametrize(("page", "text"), list(fences("toml")))
def test_settings_shown_can_be_loaded(page: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "flywheel.toml"
    path.write_text(text)
    load_settings(path)


def test_json_records_shown_are_understood() -> None:
    policy = DecodePolicy(claims={"support-classifier": "support"}, user_salt=b"salt")
    shown = [text for page, text in fences("json") if "connect-kafka" in page]
    assert shown
    for text in shown:
        event = decode(text.encode(), (), SourceOffset("t", 0, 0), 1_700_000_000_000, policy)
        assert event.task == "support"


def test_example_settings_can_be_loaded_as_they_are() -> None:
    settings = load_settings(EXAMPLE)
    assert list(settings.tasks) == ["support"]


def test_commented_lines_of_the_example_show_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "flywheel.toml"
    path.write_text(re.sub(r"^# ([a-z_]+ = )", r"\1", EXAMPLE.read_text(), flags=re.M))
    changed = load_settings(path)
    defaults = Settings().model_dump()
    section = ""
    shown: Mapping[str, Any]
    usual: Mapping[str, Any]
    for line in EXAMPLE.read_text().splitlines():
        if header := re.match(r"\[(.+)\]", line):
            section = header[1]
        commented = re.match(r"# ([a-z_]+) = ", line)
        if commented is None or commented[1] in EXAMPLES_ONLY:
            continue
        if section.startswith("tasks."):
            shown = changed.tasks[section.removeprefix("tasks.")].model_dump()
            usual = TaskSettings(models=["m"], labels=["a", "b"]).model_dump()
        elif section:
            shown, usual = changed.model_dump()[section], defaults[section]
        else:
            shown, usual = changed.model_dump(), defaults
        assert shown[commented[1]] == usual[commented[1]], f"[{section}] {commented[1]}"


def test_quickstart_for_own_traffic_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "flywheel.toml").write_text(EXAMPLE.read_text())
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-m", "service", "check"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 10, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: teacher.terms_allow_training is false: nothing is labelled or trained until it is"
    ]


def test_headers_of_answers_are_documented() -> None:
    page = (ROOT / "docs" / "reference" / "http-api.md").read_text()
    source = (ROOT / "service" / "gateway" / "turn.py").read_text()
    for header in re.findall(r'"(x-flywheel-[a-z-]+[a-z])"', source):
        assert f"`{header}`" in page, header
