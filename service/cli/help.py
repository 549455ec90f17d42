"""How the command line explains itself: verbs in groups, examples, exit codes."""

from typing import Any

from typer.core import TyperGroup

from pipelines.errors import ExitCode

SECTIONS = {
    "Start": ("demo", "run", "learner", "gateway", "check", "recipes", "import"),
    "See": ("status", "versions", "show", "export", "open"),
    "Decide": ("approve", "reject", "rollback"),
    "Steer": ("train", "pause", "resume"),
    "Sort out": ("dead-letters", "unknown", "parked"),
    "Look after": ("doctor", "backup", "restore", "rebuild"),
}

EXIT_CODES = {
    ExitCode.OK: "done",
    ExitCode.FAILURE: "an error nobody foresaw; the log has the traceback",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.SETTINGS: "the settings are wrong or incomplete",
    ExitCode.PORT_IN_USE: "another program listens on the port",
    ExitCode.DATA_LOCKED: "another daemon holds the data folder",
    ExitCode.DATA_DAMAGED: "a file is foreign, torn or changed",
    ExitCode.BROKER_UNAVAILABLE: "the broker cannot be reached",
    ExitCode.TEACHER_REFUSED: "the teacher does not accept our key or model",
    ExitCode.DISK_FULL: "no space left",
    ExitCode.TRAINING_STACK_MISSING: "torch, transformers or peft is not installed",
    ExitCode.NOT_RUNNING: "the verb needs a learner, and none answers",
    ExitCode.OFFSETS_LOST: "the topic is not the one that was read",
    ExitCode.REFUSED: "not allowed, for example approving a failed gate",
    ExitCode.TIMED_OUT: "something did not happen in time",
    ExitCode.PROBLEMS_FOUND: "doctor found a problem that a person has to see to",
    ExitCode.NOT_ALL_TAKEN: "import could not use every line, or no task wants them",
}


def examples(*commands: str) -> str:
    """An epilog whose lines are kept as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


class SectionedGroup(TyperGroup):
    """Lists the verbs by what one wants to do, in the order that one meets them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for section, names in SECTIONS.items():
            rows = []
            for name in names:
                command = self.get_command(ctx, name)
                if command is not None:
                    rows.append((name, command.get_short_help_str(limit=90)))
            with formatter.section(section):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Begin with"):
            formatter.write_dl(
                [
                    ("flywheel demo", "see the loop turn, without key, network or broker"),
                    ("flywheel check", "what your settings mean and what they lack"),
                    ("flywheel VERB --help", "what a verb does, with examples"),
                ]
            )
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), text) for code, text in EXIT_CODES.items()])
