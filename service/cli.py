"""The command line: every verb of the flywheel.

Nothing heavy is imported before a verb needs it, so that `--help` answers at once.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.errors import ExitCode, FlywheelError, NotRunning, Refused, SettingsError
from service.cli_help import SectionedGroup, examples
from service.cli_names import only_task, parse_version, version_or_waiting

if TYPE_CHECKING:
    from service.client import LearnerClient
    from service.settings import Settings

app = typer.Typer(
    name="flywheel",
    cls=SectionedGroup,
    help="Keep a small student model good where the traffic really is, and prove it.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
)
dead_letters = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
unknown = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.add_typer(dead_letters, name="dead-letters", help="Records that could not be read.")
app.add_typer(unknown, name="unknown", help="Teacher calls that may have been paid for.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
TaskName = Annotated[str | None, typer.Option("--task", help="Needed when there are several.")]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; recorded with the decision.")]
VersionName = Annotated[str | None, typer.Argument(metavar="VERSION", show_default=False)]


@dataclass
class Chosen:
    """The options that stand before the verb."""

    config: Path | None = None
    data_dir: Path | None = None

    def settings(self) -> "Settings":
        from service.settings import load_settings

        overrides = {"data_dir": self.data_dir} if self.data_dir else {}
        return load_settings(self.config, **overrides)

    def arguments(self) -> list[str]:
        """The same options, for a child process."""
        config = ["--config", str(self.config)] if self.config else []
        return config + (["--data-dir", str(self.data_dir)] if self.data_dir else [])

    def client(self) -> "LearnerClient":
        from service.client import LearnerClient, find_learner
        from service.keys import read_operator_token

        settings = self.settings()
        url = find_learner(settings.data_dir, settings.learner_url)
        try:
            token = read_operator_token(settings.data_dir)
        except SettingsError as error:
            raise NotRunning(str(error)) from None
        return LearnerClient(url, token, _operator())


chosen = Chosen()


def main() -> None:
    """Run the command line. A `FlywheelError` becomes one message and its exit code."""
    try:
        app()
    except FlywheelError as error:
        print(f"flywheel: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"flywheel {version('flywheel')}")
        raise typer.Exit


@app.callback()
def _options(
    config: Annotated[
        Path | None, typer.Option(help="Settings file. Default: flywheel.toml, if it is here.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder, instead of the one in the settings.")
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and end."
        ),
    ] = False,
) -> None:
    chosen.config, chosen.data_dir = config, data_dir


@app.command(epilog=examples("flywheel run", "flywheel --config support.toml run"))
def run() -> None:
    """Run a gateway and a learner on this host, until stopped."""
    from service.supervisor import hold_life_line
    from service.supervisor import run as supervise

    hold_life_line()
    raise typer.Exit(supervise(chosen.settings(), chosen.arguments()))


@app.command()
def learner(
    reset_offsets: Annotated[
        bool,
        typer.Option(
            "--reset-offsets", help="Forget how far the topic was read; start at its beginning."
        ),
    ] = False,
) -> None:
    """Run the learner alone: one a data folder."""
    from service.supervisor import hold_life_line

    hold_life_line()
    from service.learner.daemon import run_learner

    raise typer.Exit(run_learner(chosen.settings(), reset_offsets=reset_offsets))


@app.command()
def gateway() -> None:
    """Run a gateway alone, beside an app."""
    from service.supervisor import hold_life_line

    hold_life_line()
    from service.gateway.app import run_gateway
    from service.logs import set_up_logs
    from service.topics.opening import open_writer

    set_up_logs("gateway")
    settings = chosen.settings()
    raise typer.Exit(run_gateway(settings, open_writer=lambda: open_writer(settings)))


@app.command(
    epilog=examples(
        "flywheel demo", "flywheel demo --approve --until-promoted", "flywheel demo --rate 80"
    )
)
def demo(
    approve: Annotated[
        bool, typer.Option("--approve", help="Approve what waits, unasked.")
    ] = False,
    until_promoted: Annotated[
        bool, typer.Option("--until-promoted", help="End when an approved student has answered.")
    ] = False,
    data: Annotated[Path, typer.Option(help="Where the demo keeps its data.")] = Path("demo-data"),
    rate: Annotated[float, typer.Option(help="Prompts a second.", min=0.1)] = 40.0,
    seed: Annotated[int, typer.Option(help="Of the traffic.")] = 0,
    port_gateway: Annotated[int, typer.Option(help="0 takes a free one.", min=0)] = 8700,
    port_learner: Annotated[int, typer.Option(help="0 takes a free one.", min=0)] = 8701,
    error_rate: Annotated[
        float, typer.Option(help="Share of the scripted teacher's calls that fail.", min=0, max=1)
    ] = 0.0,
    duration: Annotated[
        float | None, typer.Option(help="End after so many seconds.", min=1, show_default=False)
    ] = None,
) -> None:
    """Watch the whole loop turn, on a support desk's traffic.

    The teacher is scripted: no key, network or broker is needed.
    """
    from service.demo.run import run_demo

    code = run_demo(
        approve=approve,
        until_promoted=until_promoted,
        data=data,
        rate=rate,
        seed=seed,
        port_gateway=port_gateway,
        port_learner=port_learner,
        error_rate=error_rate,
        duration=duration,
    )
    raise typer.Exit(code)


@app.command(epilog=examples("flywheel check", "flywheel --config support.toml check --json"))
def check(as_json: AsJson = False) -> None:
    """Print the settings in effect, secrets masked, and what is missing.

    Ends with 10 when something is missing that the loop needs.
    """
    from dataclasses import asdict

    from service.check import find_problems, lines, masked

    settings = chosen.settings()
    problems = find_problems(settings)
    if as_json:
        found = [asdict(problem) for problem in problems]
        _print_json({"settings": masked(settings), "problems": found})
    else:
        for line in lines(settings):
            print(line)
        for problem in problems:
            print(f"{problem.level}: {problem.setting} {problem.sentence}", file=sys.stderr)
        if not problems:
            print("Nothing is missing.", file=sys.stderr)
    if any(problem.level == "error" for problem in problems):
        raise typer.Exit(int(ExitCode.SETTINGS))


@app.command(
    epilog=examples("flywheel recipes", "flywheel recipes --labels 800", "flywheel recipes --quick")
)
def recipes(
    labels: Annotated[int, typer.Option(help="For how many the time is estimated.", min=20)] = 2000,
    quick: Annotated[bool, typer.Option("--quick", help="Do not time anything.")] = False,
    as_json: AsJson = False,
) -> None:
    """How students can be made, and what each recipe needs on this machine.

    Times a batch of each, under the trainer's limits, which takes a minute or more.
    """
    from dataclasses import asdict

    from service.recipe_needs import needs_lines, recipe_needs, timed_needs

    settings = chosen.settings()
    found = recipe_needs(settings) if quick else list(timed_needs(settings, labels, _tell))
    _tell("")
    if as_json:
        _print_json([asdict(one) for one in found])
        return
    for line in needs_lines(found, labels, settings.trainer.memory_limit_mb):
        print(line)


@app.command("import", epilog=examples("flywheel import prompts.jsonl", "flywheel import log.csv"))
def import_log(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)],
    model: Annotated[
        str | None, typer.Option(help="For lines that name no model.", show_default=False)
    ] = None,
    task: TaskName = None,
    as_json: AsJson = False,
) -> None:
    """Put a recorded log (JSONL, CSV or Parquet) onto the topic."""
    from contextlib import closing
    from dataclasses import asdict

    from service.import_log import ImportPolicy, import_file
    from service.topics.opening import open_writer

    settings = chosen.settings()
    policy = ImportPolicy(model=model, task=task, max_bytes=settings.ingest.max_record_bytes)
    with closing(open_writer(settings)) as writer:
        found = import_file(file, writer, policy=policy, progress=_count_lines)
    if as_json:
        _print_json(asdict(found))
        return
    print(f"{found.sent:,} of {found.lines:,} lines are on the topic")
    for reject in found.rejects:
        print(f"line {reject.line}: {reject.reason}", file=sys.stderr)
    if found.rejected > len(found.rejects):
        print(f"... and {found.rejected - len(found.rejects):,} more", file=sys.stderr)


@app.command(epilog=examples("flywheel status", "flywheel status --json"))
def status(as_json: AsJson = False) -> None:
    """What is served, whether it is good, and what waits for you."""
    from service.terminal import status_lines

    found = chosen.client().get("status")
    _show(found, status_lines, as_json)


@app.command(epilog=examples("flywheel versions", "flywheel versions --task support"))
def versions(task: TaskName = None, as_json: AsJson = False) -> None:
    """All student versions and what became of them."""
    from service.terminal import versions_lines

    client = chosen.client()
    found = client.get("tasks", task or only_task(client), "versions")
    _show(found, versions_lines, as_json)


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
    _show(found, report_lines, as_json)


@app.command(epilog=examples("flywheel export support-v3 support-v3"))
def export(
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new one, or empty.")],
    task: TaskName = None,
) -> None:
    """Write a version's files and model card into a folder, in Hugging Face's layout."""
    from service.export import export_version, refuse_to_overwrite

    refuse_to_overwrite(folder)
    client = chosen.client()
    name, number = version_or_waiting(client, version, task)
    place = ("tasks", name, "versions", str(number))
    found = client.get(*place)["version"]
    export_version(found, client.text(*place, "card"), chosen.settings().data_dir, folder)
    print(f"{found['name']} is in {folder}.")


@app.command(epilog=examples("flywheel approve", "flywheel approve support-v3 --yes"))
def approve(version: VersionName = None, task: TaskName = None, yes: Yes = False) -> None:
    """Let a version serve. Default: the one that waits. Shows its report and asks first."""
    from service.terminal import report_lines

    client = chosen.client()
    name, number = version_or_waiting(client, version, task)
    found = client.get("tasks", name, "versions", str(number))
    for line in report_lines(found):
        print(line)
    if not found["version"]["can_approve"]:
        raise Refused(f"{name}-v{number} cannot be approved: {found['version']['sentence']}")
    if not yes:
        typer.confirm(f"Approve {name}-v{number}?", abort=True)
    seen = {"report": found["version"]["report"]}
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
    """Serve a formerly approved version again. Default: the one approved before."""
    client = chosen.client()
    name, number = parse_version(version) if version else (task, None)
    name = name or task or only_task(client)
    if not yes:
        to = f"{name}-v{number}" if number is not None else "the version approved before"
        typer.confirm(f"Roll {name} back to {to}?", abort=True)
    done = client.post("tasks", name, "rollback", body={"to": number, "reason": reason})
    print(f"{done['name']} serves again.")


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


@dead_letters.command("list")
def list_dead_letters(
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50, as_json: AsJson = False
) -> None:
    """What could not be read, newest first, and why."""
    from service.terminal import dead_letters_lines

    _show(chosen.client().get("dead-letters", limit=limit), dead_letters_lines, as_json)


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

    _show(chosen.client().get("unknown-outcomes"), unknown_lines, as_json)


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


def _count_lines(lines: int) -> None:
    _tell(f"{lines:,} lines")


def _tell(text: str) -> None:
    """How far it is, on one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _show(found: Any, lines: Any, as_json: bool) -> None:
    if as_json:
        _print_json(found)
        return
    for line in lines(found):
        print(line)


def _print_json(found: object) -> None:
    print(json.dumps(found, ensure_ascii=False, indent=2, default=str))


def _operator() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user id, as in some containers
        return "operator"
