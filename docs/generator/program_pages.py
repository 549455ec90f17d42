"""The reference of the command line and of the exit codes, from the program itself."""

from collections.abc import Iterator
from typing import Any

import typer

import pipelines.errors
from generator.places import NOTE, first_line
from pipelines.errors import ExitCode, FlywheelError
from service.cli import app
from service.cli.help import EXIT_CODES

WIDTH = 96


def command_line_page() -> Iterator[str]:
    yield from (NOTE.format(source="service/cli"), "", "# Command line", "")
    yield "The program is `.venv/bin/flywheel`. What it says about itself:"
    yield from _help(typer.main.get_command(app), None, "flywheel")


def _help(command: Any, parent: Any, name: str) -> Iterator[str]:
    context = command.context_class(
        command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )
    text = command.get_help(context).rstrip()
    yield from ("", f"## `{context.command_path}`", "", "```text")
    yield from (line.rstrip() for line in text.splitlines())
    yield "```"
    for verb, inner in getattr(command, "commands", {}).items():
        yield from _help(inner, context, verb)


def exit_codes_page() -> Iterator[str]:
    yield from (
        NOTE.format(source="pipelines/errors.py"),
        "",
        "# Exit codes",
        "",
        "Every way in which `flywheel` ends has a number of its own, so that a supervisor or a",
        "script can tell them apart. The message on standard error says what to do.",
        "",
        "| code | name | meaning | when |",
        "|---|---|---|---|",
    )
    for code in ExitCode:
        yield f"| {int(code)} | `{code.name}` | {EXIT_CODES[code]} | {_raised(code)} |"


def _raised(code: ExitCode) -> str:
    """What the errors with this code say of themselves."""
    if code is ExitCode.FAILURE:
        return ""
    errors = (
        value
        for value in vars(pipelines.errors).values()
        if isinstance(value, type) and issubclass(value, FlywheelError)
    )
    return " ".join(first_line(error.__doc__) for error in errors if error.exit_code is code)
