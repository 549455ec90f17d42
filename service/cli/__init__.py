"""The command line: every verb of the flywheel.

Nothing heavy is imported before a verb needs it, so that `--help` answers at once.
"""

import sys

from pipelines.errors import FlywheelError
from service.cli import care, importing, processes, records, versions
from service.cli.root import app

__all__ = ["app", "care", "importing", "main", "processes", "records", "versions"]


def main() -> None:
    """Run the command line. A `FlywheelError` becomes one message and its exit code."""
    try:
        app()
    except FlywheelError as error:
        print(f"flywheel: {error}", file=sys.stderr)
        sys.exit(int(error.exit_code))
