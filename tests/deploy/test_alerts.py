"""The alerts fire when they should and not before, and each leads to a page that helps."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from dashboard_file import unknown_labels, unknown_series
from prometheus_server import DEPLOY, program

from service.cli import app
from service.sections import TaskSettings
from service.settings import Settings

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs" / "runbooks"
RULE_TESTS = sorted((DEPLOY / "tests").glob("*.yml"))
GROUPS = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
SECTIONS = ("What it means", "What to check", "What to do", "Commands")
PAGES = sorted(RUNBOOKS.glob("*.md"))


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
def test_promtool_passes_the_rules() -> None:
    promtool("check", "rules", str(DEPLOY / "alerts.yml"))


@pytest.mark.prometheus
def test_promtool_passes_the_configuration_and_finds_its_rule_files() -> None:
    promtool("check", "config", str(DEPLOY / "prometheus.yml"))


@pytest.mark.prometheus
@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_not_before(path: Path) -> None:
    promtool("test", "rules", str(path))


def test_every_alert_is_fired_by_a_rule_test() -> None:
    tested = "\n".join(path.read_text() for path in RULE_TESTS)
    fired = set(re.findall(r'alertname="(\w+)",alertstate="firing"', tested))
    fired |= set(re.findall(r"- alertname: (\w+)", tested))
    assert set(ALERTS) - fired == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_names_only_what_we_export_or_record(rule: dict[str, Any]) -> None:
    assert not unknown_series(rule["expr"])
    assert not unknown_labels(rule["expr"])
    assert set(re.findall(r"\w+:\w+:\w+", rule["expr"])) <= RECORDED


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_severity_a_summary_and_a_runbook(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["labels"]["service"] == "flywheel", "what the dashboard and routes go by"
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["description"].endswith(".")
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {page.stem for page in PAGES} == set(ALERTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_says_what_it_means_what_to_check_and_what_to_do(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.stem}\n")
    assert tuple(re.findall(r"^## (.+)$", text, re.M)) == SECTIONS
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (RUNBOOKS / link).is_file(), link
    for path in re.findall(r"`((?:docs|deploy)/[^`]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbooks_commands_and_settings_exist(page: Path) -> None:
    text = page.read_text()
    verbs = _verbs()
    for line in re.findall(r"^flywheel (.+)$", text, re.M) + re.findall(
        r"`flywheel ([^`]+)`", text
    ):
        first, *rest = line.split()
        assert first in verbs, line
        assert not verbs[first] or rest[0] in verbs[first], line
    for section, name in re.findall(r"`([a-z]+)\.([a-z_]+)`", text):
        if section in Settings.model_fields:
            assert name in _fields(section), f"{section}.{name}"
    for name in re.findall(r"`tasks\.\*\.([a-z_]+)`", text):
        assert name in TaskSettings.model_fields


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbooks_log_events_are_logged(page: Path) -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    metrics = "\n".join(path.read_text() for path in (ROOT / "service/metrics").glob("*.py"))
    for event in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page.read_text()):
        known = f'"{event}"' in code or event in metrics or event in TaskSettings.model_fields
        assert known, event


def test_the_page_about_the_metrics_is_what_the_code_says() -> None:
    made = subprocess.run(
        [sys.executable, str(DEPLOY / "metrics_page.py"), "--print"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    committed = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    assert made == committed, "run: python deploy/prometheus/metrics_page.py"


def _verbs() -> dict[str, set[str]]:
    """Sub-verbs by verb; none for a plain one."""
    command = typer.main.get_command(app)
    verbs: dict[str, Any] = getattr(command, "commands", {})
    return {name: set(getattr(verb, "commands", {})) for name, verb in verbs.items()}


def _fields(section: str) -> set[str]:
    model: Any = Settings.model_fields[section].annotation
    return set(model.model_fields)
