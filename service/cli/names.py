"""Which version and which task a command line means."""

import re
from typing import TYPE_CHECKING

import typer

from pipelines.errors import Refused

if TYPE_CHECKING:
    from service.client import LearnerClient


def only_task(client: "LearnerClient") -> str:
    tasks = [one["task"] for one in client.get("status")["tasks"]]
    if len(tasks) == 1:
        return str(tasks[0])
    raise typer.BadParameter(f"say which with --task: {', '.join(tasks) or 'there is none'}")


def version_or_waiting(
    client: "LearnerClient", version: str | None, task: str | None
) -> tuple[str, int]:
    if version is not None:
        name, number = parse_version(version)
        return name or task or only_task(client), number
    found = [one["waiting"] for one in client.get("status")["tasks"] if one["waiting"]]
    waiting = [one for one in found if task in (None, one["task"])]
    if not waiting:
        raise Refused("nothing waits for approval; `flywheel versions` lists all versions")
    if len(waiting) > 1:
        names = ", ".join(f"{one['task']}-v{one['number']}" for one in waiting)
        raise typer.BadParameter(f"several versions wait, say which: {names}")
    return str(waiting[0]["task"]), int(waiting[0]["number"])


def parse_version(text: str) -> tuple[str | None, int]:
    """`support-v3`, `support-v3-1f2e3d4c`, `v3` or `3`."""
    found = re.fullmatch(r"(?:(.+)-)?v(\d+)(?:-[0-9a-f]{8})?", text)
    if found:
        return found[1], int(found[2])
    if text.isdecimal():
        return None, int(text)
    raise typer.BadParameter(f"'{text}' is no version; write for example support-v3, or 3")
