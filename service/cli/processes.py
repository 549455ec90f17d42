"""The verbs that run something, and those that only read the settings."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import ExitCode
from service.cli.help import examples
from service.cli.root import AsJson, app, chosen, print_json, tell


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
def gateway(
    keep_running: Annotated[
        bool,
        typer.Option(
            "--keep-running",
            help="Start it again whatever it ends with: for a container that must not end.",
        ),
    ] = False,
) -> None:
    """Run a gateway alone, beside an app."""
    from service.supervisor import hold_life_line, keep_gateway

    hold_life_line()
    if keep_running:
        raise typer.Exit(keep_gateway(chosen.settings, chosen.arguments()))
    from service.gateway.app import run_gateway
    from service.host.logs import set_up_logs
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

    Ends with 10 when something is missing that the loop needs. It looks at nothing but the
    settings; `flywheel doctor` also looks at what they name.
    """
    from dataclasses import asdict

    from service.care.check import find_problems, lines, masked, notes

    settings = chosen.settings()
    problems = find_problems(settings)
    if as_json:
        found = [asdict(problem) for problem in problems]
        print_json(
            {"settings": masked(settings), "problems": found, "notes": list(notes(settings))}
        )
    else:
        for line in lines(settings):
            print(line)
        for problem in problems:
            print(f"{problem.level}: {problem.setting} {problem.sentence}", file=sys.stderr)
        for note in notes(settings):
            print(f"note: {note}", file=sys.stderr)
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

    from service.care.recipe_needs import needs_lines, recipe_needs, timed_needs

    settings = chosen.settings()
    found = recipe_needs(settings) if quick else list(timed_needs(settings, labels, tell))
    tell("")
    if as_json:
        print_json([asdict(one) for one in found])
        return
    for line in needs_lines(found, labels, settings.trainer.memory_limit_mb):
        print(line)
