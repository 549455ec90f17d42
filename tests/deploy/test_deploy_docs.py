"""What the pages about running it tell people to type: done here, or checked as far as can be."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from deploy_files import DEPLOY, ROOT, program, said, tools
from test_deploy_helm import CHART, check

PAGES = ROOT / "docs" / "how-to"
KUBERNETES = (PAGES / "run-on-kubernetes.md").read_text()
COMPOSE = (PAGES / "run-with-compose.md").read_text()
SYSTEMD = (PAGES / "run-under-systemd.md").read_text()


def commands(page: str, name: str) -> list[list[str]]:
    """The page's command lines of one program."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line]
    return [words for line in lines if (words := shlex.split(line))[0] == name]


@pytest.fixture(scope="module")
def installed() -> list[dict[str, object]]:
    """What `helm install` on the page would create."""
    (install,) = (words for words in commands(KUBERNETES, "helm") if words[1] == "install")
    text = said(tools().helm, "template", *install[2:], cwd=ROOT)
    assert "Invalid: 0, Errors: 0" in check(text, "1.37.0")
    return [one for one in yaml.safe_load_all(text) if one]


def test_helm_commands_do_what_the_page_says(installed: list[dict[str, object]]) -> None:
    (lint,) = (words for words in commands(KUBERNETES, "helm") if words[1] == "lint")
    assert "0 chart(s) failed" in said(tools().helm, *lint[1:], cwd=ROOT)
    assert any(one["kind"] == "StatefulSet" for one in installed)


def test_kubectl_commands_name_what_is_installed(installed: list[dict[str, object]]) -> None:
    names = {(one["kind"], one["metadata"]["name"]) for one in installed}  # type: ignore[index]
    text = yaml.safe_dump_all(installed)
    called = commands(KUBERNETES, "kubectl")
    assert {words[1] for words in called} == {"create", "exec", "port-forward"}
    for words in called:
        if words[1] == "port-forward":
            assert ("Service", words[2].removeprefix("svc/")) in names
        elif words[1] == "exec":
            assert ("StatefulSet", words[2].removesuffix("-0")) in names
        else:
            assert words[2:4] == ["secret", "generic"]
            assert re.search(rf"(secretName|name): {words[4]}$", text, re.M)
    (ours,) = (words for words in called if words[1] == "create" and words[4] == "flywheel")
    keys = [word.removeprefix("--from-literal=").split("=")[0] for word in ours[5:]]
    written = (CHART / "values.yaml").read_text()
    assert keys
    assert all(f"#   {key} " in written for key in keys)


def test_the_deployment_on_the_page_is_accepted(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", KUBERNETES, re.M | re.S)
    assert shown.count("include") == 4
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "own.yaml").write_text(shown)
    (tmp_path / "Chart.yaml").write_text(
        "apiVersion: v2\nname: own\nversion: 1.0.0\n"
        "dependencies: [{name: flywheel, version: 0.1.0, repository: 'file://charts/flywheel'}]\n"
    )
    said("cp", "-rL", CHART, tmp_path / "flywheel")
    (tmp_path / "charts").mkdir()
    (tmp_path / "flywheel").rename(tmp_path / "charts" / "flywheel")
    values = yaml.safe_load((CHART / "example-values.yaml").read_text())
    own = tmp_path / "own-values.yaml"
    own.write_text(yaml.safe_dump({"flywheel": {"settings": values["settings"]}}))
    text = said(tools().helm, "template", "shop", tmp_path, "-f", own)
    assert "Invalid: 0, Errors: 0, Skipped: 0" in check(text, "1.37.0")


def test_compose_commands_name_services_that_are_there() -> None:
    compose = program("docker-compose", "docker-compose")
    found = commands(COMPOSE, "docker")
    kafka = (PAGES / "connect-kafka.md").read_text()
    file = ROOT / "deploy" / "compose.yaml"
    services = said(compose, "-f", file, "config", "--services").split()
    for words in [*found, *commands(kafka, "docker")]:
        if words[1] == "build":
            assert (ROOT / words[words.index("-f") + 1]).is_file()
            continue
        assert words[1:4] == ["compose", "-f", "deploy/compose.yaml"]
        verb, *rest = words[4:]
        named = [word for word in rest if not word.startswith("-")]
        if verb == "exec":
            assert named[0] in services
            assert named[1] == "flywheel"
        else:
            assert verb in ("up", "logs", "down")
            assert set(named) <= set(services)
    ports = set(re.findall(r"<http://127\.0\.0\.1:(\d+)>", COMPOSE))
    published = re.findall(r'"127\.0\.0\.1:(\d+):', (DEPLOY / "compose.yaml").read_text())
    assert ports == set(published) - {"9092"}


def test_the_changed_line_on_the_page_is_the_apps() -> None:
    (shown,) = re.findall(r"^client = .+$", COMPOSE, re.M)
    assert shown in (DEPLOY / "example-app" / "app.py").read_text().splitlines()


def test_files_that_the_pages_install_are_there() -> None:
    for words in commands(SYSTEMD, "install"):
        for word in words:
            if word.startswith("/opt/flywheel/"):
                assert (ROOT / word.removeprefix("/opt/flywheel/")).is_file(), word


@pytest.mark.parametrize(
    "page", [KUBERNETES, COMPOSE, SYSTEMD], ids=["kubernetes", "compose", "systemd"]
)
def test_each_page_says_what_was_not_run(page: str) -> None:
    assert "## What was not run" in page
    assert re.search(r"\*\*[^*]*\bnever\b[^*]*\*\*", page)
