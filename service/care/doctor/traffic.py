"""What a running learner sees in its traffic that no loop can learn from."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipelines.chat_request import STORED
from pipelines.errors import NotRunning
from service.care.doctor.finding import Finding, ok, warning
from service.settings import Settings

# Needs that say that prompts, or paid answers, are of no use.
TOLD = ("requests_past", "unusable_answers", "teacher_refused")

Ask = Callable[..., Any]


def look_at_traffic(settings: Settings, ask: Ask) -> Iterator[Finding]:
    try:
        status: Mapping[str, Any] = ask("status")
    except NotRunning:
        yield ok("traffic", "only a running learner knows: nothing is known now")
        return
    found = [need for need in status["needs"] if need["kind"] in TOLD]
    for need in found:
        yield warning("traffic", need["sentence"], need["text"])
    for task in status["tasks"]:
        past: Mapping[str, int] = task["past"]
        if past.get(STORED) and not past.get("state"):
            yield warning(
                "traffic",
                f"{past[STORED]:,} requests for {task['task']} in the last day wanted their "
                "answers stored, and none came back to an answer",
                f"if nobody looks them up, set `stateless = true` in [tasks.{task['task']}], so "
                "that its student may answer",
            )
    if not found:
        yield ok("traffic", "requests reach their students, and paid answers are labels")
