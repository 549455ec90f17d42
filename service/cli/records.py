"""The verbs that sort out what could not be read, and calls whose outcome is unknown."""

from typing import Annotated

import typer

from service.cli.help import examples
from service.cli.names import only_task
from service.cli.root import AsJson, TaskName, chosen, dead_letters, parked, show_found, unknown


@dead_letters.command("list")
def list_dead_letters(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50, as_json: AsJson = False
) -> None:
    """What could not be read, newest first, and why."""
    from service.terminal import dead_letters_lines

    show_found(chosen.client().get("dead-letters", limit=limit), dead_letters_lines, as_json)


@dead_letters.command(
    "replay", epilog=examples("flywheel dead-letters replay flywheel.prompts/0/17")
)
def replay(place: Annotated[str, typer.Argument(metavar="TOPIC/PARTITION/OFFSET")]) -> None:
    """Put a record back on the topic, as it came."""
    parts = place.rsplit("/", 2)
    if len(parts) != 3:
        raise typer.BadParameter("write TOPIC/PARTITION/OFFSET, as `list` prints it")
    chosen.client().post("dead-letters", *parts, "replay")
    print(f"{place} is back on the topic.")


@unknown.command("list")
def list_unknown(as_json: AsJson = False) -> None:
    """Calls that were sent and never answered. They are held, and their money with them."""
    from service.terminal import unknown_lines

    show_found(chosen.client().get("unknown-outcomes"), unknown_lines, as_json)


@unknown.command("release")
def release(key: str) -> None:
    """Ask the teacher again. The first call may have cost money too."""
    chosen.client().post("unknown-outcomes", key, "release")
    print("It will be asked again.")


@unknown.command("drop")
def drop(key: str) -> None:
    """Never ask again for this one."""
    chosen.client().post("unknown-outcomes", key, "drop")
    print("It is dropped.")


@parked.command("list")
def list_parked(task: TaskName = None, as_json: AsJson = False) -> None:
    """Prompts to which the teacher gave two different answers. They train no student."""
    from service.terminal import parked_lines

    client = chosen.client()
    found = client.get("tasks", task or only_task(client), "parked")
    show_found(found, parked_lines, as_json)


@parked.command("settle", epilog=examples("flywheel parked settle app-17 refund"))
def settle(event_id: str, label: str, task: TaskName = None) -> None:
    """Say what is right. Your word goes before the teacher's."""
    client = chosen.client()
    said = {"event_id": event_id, "label": label}
    client.post("tasks", task or only_task(client), "parked", body=said)
    print(f"{event_id} is {label}.")
