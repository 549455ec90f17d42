"""The references of the alerts and of the log, from the rules and from the sentences."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from generator.places import NOTE, ROOT
from service.host.log_sentences import SENTENCES
from service.host.logs import REPEATING

FOLDER = ROOT / "deploy" / "prometheus"
MEANS = {
    "critical": "answers fail or are wrong, or something is lost: somebody is woken",
    "warning": "the loop does not turn as it should: somebody looks today",
    "info": "an operator is awaited",
}


def alerts_page() -> Iterator[str]:
    """Every alert with its severity, its wait, what it means and its page."""
    yield from (
        NOTE.format(source="deploy/prometheus/alerts.yml"),
        "",
        "# Alerts",
        "",
        "The rules are `deploy/prometheus/alerts.yml`; each alert's name leads to the page that",
        "says what to check and what to do. `deploy/prometheus/alertmanager.yml` is an example of",
        "who is told what. How to set both up: [watch it](../how-to/watch-it.md).",
        "",
        "| severity | means |",
        "|---|---|",
    )
    yield from (f"| {severity} | {text} |" for severity, text in MEANS.items())
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    for group in rules["groups"]:
        alerts = [rule for rule in group["rules"] if "alert" in rule]
        if alerts:
            title = group["name"].removeprefix("flywheel-").capitalize()
            yield from ("", f"## {title}", "", "| alert | severity | after | what it says |")
            yield "|---|---|---|---|"
            yield from map(_alert_row, alerts)
    yield from ("", "## What silences what", "")
    yield "With the example's inhibition, the right column is not told while the left one is:"
    yield from ("", "| told | not told meanwhile |", "|---|---|")
    routes = yaml.safe_load((FOLDER / "alertmanager.yml").read_text())
    for rule in routes["inhibit_rules"]:
        yield f"| {_names(rule['source_matchers'])} | {_names(rule['target_matchers'])} |"
    yield from ("", "## Recorded series", "", "What several rules need, worked out once:", "")
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                yield f"- `{rule['record']}`"


def _alert_row(rule: Mapping[str, Any]) -> str:
    name, notes = rule["alert"], rule["annotations"]
    link = f"[{name}](../runbooks/{name}.md)"
    return (
        f"| {link} | {rule['labels']['severity']} | {rule.get('for', 'at once')} "
        f"| {notes['description']} |"
    )


def _names(matchers: list[str]) -> str:
    (found,) = (one for one in matchers if one.startswith("alertname"))
    return ", ".join(re.findall(r"\w+", found.partition("=")[2]))


def log_page() -> Iterator[str]:
    """Every event of the log with its sentence."""
    yield from (
        NOTE.format(source="service/host/log_sentences.py"),
        "",
        "# The log",
        "",
        "All processes write to standard error: for people on a terminal, else a JSON object a",
        "line. A line has `timestamp` (UTC), `level`, `process`, `event` (a name to search for),",
        "`sentence` (always the same for an event) and fields of its own. No line has a prompt's",
        "text. What libraries warn of has the event `library_said`.",
        "",
        "Events marked * belong to something that is tried again and again. They are said at",
        "once, then less and less often while nothing about them changes; `held_back` says how",
        "many lines were left out.",
        "",
        "| event | sentence |",
        "|---|---|",
    )
    for event, sentence in sorted(SENTENCES.items()):
        yield f"| `{event}`{' *' if event in REPEATING else ''} | {sentence} |"
