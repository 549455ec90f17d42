"""The program itself: the options before a verb, and how verbs read settings and print."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.errors import NotRunning, SettingsError
from service.cli.help import SectionedGroup

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
parked = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
app.add_typer(dead_letters, name="dead-letters", help="Records that could not be read.")
app.add_typer(unknown, name="unknown", help="Teacher calls that may have been paid for.")
app.add_typer(parked, name="parked", help="Prompts on which the teacher contradicts itself.")

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
        return LearnerClient(url, token, operator_name())


chosen = Chosen()


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


def tell(text: str) -> None:
    """How far it is, on one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def show_found(found: Any, lines: Any, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    for line in lines(found):
        print(line)


def print_json(found: object) -> None:
    print(json.dumps(found, ensure_ascii=False, indent=2, default=str))


def operator_name() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user id, as in some containers
        return "operator"
