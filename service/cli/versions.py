"""The verbs of an operator: see the loop, decide on versions, steer the jobs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import NotRunning, Refused
from service.cli.help import examples
from service.cli.names import only_task, parse_version, version_or_waiting
from service.cli.root import AsJson, Reason, TaskName, VersionName, Yes, app, chosen, show_found

if TYPE_CHECKING:
    from service.client import LearnerClient


@app.command(epilog=examples("flywheel status", "flywheel status --json"))
def status(as_json: AsJson = False) -> None:
    """What is served, whether it is good, and what waits for you."""
    from service.terminal import status_lines

    found = chosen.client().get("status")
    show_found(found, status_lines, as_json)


@app.command(epilog=examples("flywheel versions", "flywheel versions --task support"))
def versions(task: TaskName = None, as_json: AsJson = False) -> None:
    """All student versions and what became of them."""
    from service.terminal import versions_lines

    client = chosen.client()
    found = client.get("tasks", task or only_task(client), "versions")
    show_found(found, versions_lines, as_json)


@app.command(epilog=examples("flywheel show support-v3", "flywheel show 3 --card"))
def show(
    version: VersionName = None,
    task: TaskName = None,
    card: Annotated[bool, typer.Option("--card", help="Print its model card instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """One version's report: gate, agreement, worst segments, flips. Default: what waits."""
    from service.terminal import report_lines

    client = chosen.client()
    name, number = version_or_waiting(client, version, task)
    if card:
        print(client.text("tasks", name, "versions", str(number), "card"), end="")
        return
    found = client.get("tasks", name, "versions", str(number))
    show_found(found, report_lines, as_json)


@app.command(epilog=examples("flywheel export support-v3 support-v3"))
def export(
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new one, or empty.")],
    task: TaskName = None,
) -> None:
    """Write a version's files and model card into a folder, in Hugging Face's layout."""
    from service.care.export import export_version, refuse_to_overwrite

    refuse_to_overwrite(folder)
    client = chosen.client()
    name, number = version_or_waiting(client, version, task)
    place = ("tasks", name, "versions", str(number))
    found = client.get(*place)["version"]
    export_version(found, client.text(*place, "card"), chosen.settings().data_dir, folder)
    print(f"{found['name']} is in {folder}.")


@app.command(epilog=examples("flywheel approve", "flywheel approve support-v3 --yes"))
def approve(
    version: VersionName = None,
    task: TaskName = None,
    yes: Yes = False,
    serves_nothing: Annotated[
        bool,
        typer.Option(
            "--serves-nothing", help="Approve one that answers nothing by itself, knowing it."
        ),
    ] = False,
    above_ceiling: Annotated[
        bool,
        typer.Option(
            "--above-ceiling",
            help="Approve one whose target is above what the teacher agrees with itself.",
        ),
    ] = False,
) -> None:
    """Let a version serve. Default: the one that waits. Shows its report and asks first."""
    from service.terminal import report_lines

    client = chosen.client()
    name, number = version_or_waiting(client, version, task)
    found = client.get("tasks", name, "versions", str(number))
    for line in report_lines(found):
        print(line)
    if not found["version"]["can_approve"]:
        raise Refused(f"{name}-v{number} cannot be approved: {found['version']['sentence']}")
    for option, told, said in (
        ("--serves-nothing", found["version"]["serves_nothing"], serves_nothing),
        ("--above-ceiling", found["version"]["above_ceiling"], above_ceiling),
    ):
        if told and not said:
            raise Refused(f"{name}-v{number} needs {option} to be approved. {told}")
    if not yes:
        typer.confirm(f"Approve {name}-v{number}?", abort=True)
    seen = {
        "report": found["version"]["report"],
        "serves_nothing": serves_nothing,
        "above_ceiling": above_ceiling,
    }
    client.post("tasks", name, "versions", str(number), "approve", body=seen)
    print(f"{name}-v{number} is approved and published.")


@app.command(epilog=examples("flywheel reject support-v3 --reason 'worse on vouchers'"))
def reject(reason: Reason, version: VersionName = None, task: TaskName = None) -> None:
    """Say no to a version, with the reason."""
    client = chosen.client()
    name, number = version_or_waiting(client, version, task)
    client.post("tasks", name, "versions", str(number), "reject", body={"reason": reason})
    print(f"{name}-v{number} is rejected.")


@app.command(
    epilog=examples(
        "flywheel rollback --reason 'complaints'", "flywheel rollback support-v1 --reason x --yes"
    )
)
def rollback(
    reason: Reason, version: VersionName = None, task: TaskName = None, yes: Yes = False
) -> None:
    """Serve a formerly approved version again. Default: the one approved before.

    Works without the learner too, on its host: the decision is recorded when it is back.
    """
    name, number = parse_version(version) if version else (task, None)
    name = name or task
    client = _running_learner()
    if client is not None:
        name = name or only_task(client)
    if not yes:
        to = f"{name}-v{number}" if name and number is not None else "the version approved before"
        typer.confirm(f"Roll {name or 'it'} back to {to}?", abort=True)
    if client is None:
        _roll_back_offline(name, number, reason)
        return
    done = client.post("tasks", str(name), "rollback", body={"to": number, "reason": reason})
    print(f"{done['name']} serves again.")


def _running_learner() -> "LearnerClient | None":
    """None when none answers. Asked before anything is done: a rollback that was sent and not
    answered must not be repeated."""
    try:
        client = chosen.client()
        client.get("ticks", limit=1)
    except NotRunning:
        return None
    return client


def _roll_back_offline(task: str | None, number: int | None, reason: str) -> None:
    from service.care.rollback import roll_back_offline
    from service.cli.root import operator_name

    done = roll_back_offline(
        chosen.settings(), task, number, reason=reason, operator=operator_name()
    )
    print(f"No learner runs. {done.name} serves again on this host.")
    print(
        f"Decision {done.decision.sequence} is in the decision file; the learner takes it over at "
        "its next start, and gateways elsewhere follow then."
    )


@app.command(epilog=examples("flywheel train", "flywheel train --task support"))
def train(task: TaskName = None) -> None:
    """Train a new version now, without waiting for the schedule."""
    client = chosen.client()
    name = task or only_task(client)
    client.post("tasks", name, "train")
    print(f"Training of {name} was asked for; `flywheel status` shows it.")


JobName = Annotated[str, typer.Argument(metavar="JOB", help="relabel, train, evaluate, ...")]


@app.command(epilog=examples("flywheel pause", "flywheel pause train"))
def pause(job: JobName = "all") -> None:
    """Stop all jobs, or one, from the next tick on. Serving goes on."""
    chosen.client().post("jobs", job, "pause")
    print(f"{'All jobs are' if job == 'all' else f'{job} is'} paused.")


@app.command(epilog=examples("flywheel resume", "flywheel resume train"))
def resume(job: JobName = "all") -> None:
    """Let all jobs, or one, run again."""
    chosen.client().post("jobs", job, "resume")
    print(f"{'All jobs run' if job == 'all' else f'{job} runs'} again.")


@app.command("open", epilog=examples("flywheel open", "flywheel open --print"))
def open_console(
    only_print: Annotated[bool, typer.Option("--print", help="Only print the link.")] = False,
) -> None:
    """Open the console, by a link that logs you in once."""
    link = chosen.client().post("login-codes")["link"]
    print(link)
    if not only_print:
        import webbrowser

        webbrowser.open(link)
