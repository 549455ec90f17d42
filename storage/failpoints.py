"""Failpoints: named places where a test has the process end. When off, one comparison each.

Only the variable CHAOS_FAILPOINTS switches them on, for a process and its life. It is no setting:
no file, no command line and no variable of flywheel's own can name it. It holds a folder; a
file `armed/POINT` in it says which signal the process sends itself at which passing, for
example `SIGKILL 3`.
"""

import os
import signal
import time
from pathlib import Path

VARIABLE = "CHAOS_FAILPOINTS"
ARMED = "armed"
PASSED = "passed"
FIRED = "fired"

_folder: Path | None = Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None
_passed: set[str] = set()
_counted: dict[str, int] = {}  # passings since a point was armed


def passing(point: str) -> None:
    """Called at the place that `point` names."""
    if _folder is not None:
        _pass(_folder, point)


def watch(folder: Path) -> None:
    """Obey this folder from here on: for a process that a test has forked."""
    global _folder
    _folder = folder


def _pass(folder: Path, point: str) -> None:
    if point not in _passed:
        _passed.add(point)
        (folder / PASSED).mkdir(exist_ok=True)
        (folder / PASSED / point).touch()
    armed = folder / ARMED / point
    try:
        name, wanted = armed.read_text().split()
    except FileNotFoundError:
        _counted.pop(point, None)
        return
    count = _counted[point] = _counted.get(point, 0) + 1
    if count < int(wanted):
        return
    try:
        armed.unlink()  # once, whichever process or thread is first
    except FileNotFoundError:
        return
    line = f"{time.time():.6f} {os.getpid()} {point} {name}\n"
    with (folder / FIRED).open("a") as file:
        file.write(line)
    os.kill(os.getpid(), signal.Signals[name])
