"""`flywheel check`: the effective settings with secrets masked, and what is missing."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pipelines.checks import groups_needed, why_that_many
from service.care.recipe_needs import needs_of
from service.sections import is_loopback
from service.settings import Settings

MASK = "**********"
SECRET_WORDS = ("password", "secret", "token", "key", "credential")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error keeps the loop from turning; a warning is worth knowing."""

    level: Literal["error", "warning"]
    setting: str
    sentence: str


def masked(settings: Settings) -> dict[str, Any]:
    """All settings as plain data. Secrets show only whether they are set."""
    content = settings.model_dump(mode="json")
    options = content["kafka"]["options"]
    for name in options:
        if any(word in name.lower() for word in SECRET_WORDS):
            options[name] = MASK
    return content


def lines(settings: Settings) -> Iterator[str]:
    """The masked settings as lines of TOML."""
    yield from _table("", masked(settings))


def notes(settings: Settings) -> Iterator[str]:
    """What is not wrong and good to know: what first students wait for, what may pass."""
    for name, task in settings.tasks.items():
        asked = settings.gate.min_groups, task.target
        yield (
            f"task {name}: a first student needs {groups_needed(*asked)} held-out prompts, "
            f"because {why_that_many(*asked)}"
        )
    gateway = settings.gateway
    off = [
        name for name in ("pass_models", "pass_requests_per_minute") if not getattr(gateway, name)
    ]
    if off and len(gateway.keys) != 1:
        yield (
            f"gateway.{' and gateway.'.join(off)}: not set, so whoever reaches the gateway may use "
            f"{'any model' if 'pass_models' in off else 'those models'} of the teacher's account"
            f"{' as often as he likes' if 'pass_requests_per_minute' in off else ''}, beyond all "
            "budgets"
        )


def find_problems(settings: Settings) -> list[Problem]:
    """What is missing or doubtful, errors first."""
    found = [
        *_missing(settings),
        *_unusable(settings),
        *_recipes(settings),
        *_doubtful(settings),
    ]
    return sorted(found, key=lambda problem: problem.level)


def _missing(settings: Settings) -> Iterator[Problem]:
    teacher = settings.teacher
    if not settings.tasks:
        yield _error("tasks", "no task is set; add a table [tasks.NAME] with models and labels")
    if not teacher.base_url:
        yield _error("teacher.base_url", "is not set, for example https://api.example.com/v1")
    if not teacher.model:
        yield _error("teacher.model", "is not set")
    if not teacher.terms:
        yield _error(
            "teacher.terms", "is not set: under which terms are the labels? Nothing is labelled"
        )
    elif not teacher.terms_allow_training:
        yield _error(
            "teacher.terms_allow_training", "is false: nothing is labelled or trained until it is"
        )


def _unusable(settings: Settings) -> Iterator[Problem]:
    gateway, learner = settings.gateway, settings.learner
    if gateway.port and gateway.port == learner.port:
        yield _error("learner.port", f"is {learner.port}, and so is gateway.port")
    folder = _existing(settings.data_dir)
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        yield _error("data_dir", f"{settings.data_dir} cannot be written")
    encoder = settings.encoder.path
    for name in ("model.onnx", "tokenizer.json"):
        if encoder is not None and not (encoder / name).is_file():
            yield _error("encoder.path", f"{encoder} has no {name}")


def _recipes(settings: Settings) -> Iterator[Problem]:
    """Of the recipes that tasks use: what `flywheel recipes` says about them."""
    for name, task in settings.tasks.items():
        chosen = {"recipe": task.recipe, "challenger": task.challenger}
        for setting, recipe in chosen.items():
            if recipe is None:
                continue
            needs = needs_of(settings, recipe)
            where = f"tasks.{name}.{setting}"
            if needs.problem:
                yield _error(where, f"is {recipe}: {needs.problem}")
            elif needs.warning:
                yield _warning(where, f"is {recipe}: {needs.warning}")


def _doubtful(settings: Settings) -> Iterator[Problem]:
    teacher, budget = settings.teacher, settings.budget
    if teacher.base_url and not teacher.api_key.get_secret_value():
        yield _warning("teacher.api_key", "is not set; the teacher must need none")
    if not teacher.price_per_million_in and not teacher.price_per_million_out:
        yield _warning(
            "teacher.price_per_million_in", "and _out are 0: spend and savings will show as 0"
        )
    if not budget.label_calls or not budget.label_tokens:
        yield _warning("budget", "allows no label to be bought")
    yield from _notifications(settings)
    if not is_loopback(settings.learner.host):
        yield _warning(
            "learner.host",
            f"{settings.learner.host} is reachable from outside: put TLS in front of the console",
        )


def _notifications(settings: Settings) -> Iterator[Problem]:
    notify, host = settings.notify, urlsplit(settings.notify.url.get_secret_value()).hostname
    if not host:
        return
    if not notify.kinds:
        yield _warning("notify.kinds", "is empty: nothing is told")
    if host == "hooks.slack.com" and notify.format != "slack":
        yield _warning("notify.format", f'is "{notify.format}", which Slack refuses')
    if not settings.learner.public_url:
        yield _warning(
            "learner.public_url", "is not set: links in notifications work on this host only"
        )


def _existing(path: Path) -> Path:
    """The folder that is there, or the nearest above it where it would be made."""
    found = path.absolute()
    while not found.exists():
        found = found.parent
    return found


def _error(setting: str, sentence: str) -> Problem:
    return Problem(level="error", setting=setting, sentence=sentence)


def _warning(setting: str, sentence: str) -> Problem:
    return Problem(level="warning", setting=setting, sentence=sentence)


def _table(name: str, content: Mapping[str, Any]) -> Iterator[str]:
    plain = {key: value for key, value in content.items() if not isinstance(value, dict)}
    if name and plain:
        yield f"[{name}]"
    for key, value in plain.items():
        yield f"# {key} is not set" if value is None else f"{key} = {_toml(value)}"
    if plain:
        yield ""
    for key, value in content.items():
        if isinstance(value, dict) and (value or name == ""):
            yield from _table(f"{name}.{key}" if name else key, value)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
