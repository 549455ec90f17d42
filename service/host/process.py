"""What makes a process of ours one: port, lock on the data folder, signals, environment."""

import errno
import fcntl
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from threading import Event
from types import FrameType
from typing import IO

from pipelines.errors import DataDamaged, DataLocked, PortInUse, SettingsError
from storage.folder import DataFolder

BACKLOG = 2048
# All that a child may know of our environment. No secret is in it.
PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SYSTEMROOT",
    "CUDA_VISIBLE_DEVICES",
)


def bind(host: str, port: int, setting: str) -> socket.socket:
    """The listening socket, or `PortInUse` with what to do. `setting`: gateway or learner."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only for sockets that name their protocol: without it
    # every answer of a kept-alive connection takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Listening at once, so that nobody else can bind in between.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is in use: stop what listens there, or set {setting}.port"
            ) from error
        raise SettingsError(
            f"cannot listen on {setting}.host = '{host}', port {port}: {error.strerror}"
        ) from error
    return listener


def lock_data_folder(data_dir: Path) -> IO[str]:
    """One learner a data folder. The lock goes with the process, however it ends."""
    if DataFolder(data_dir).restoring.exists():
        raise DataDamaged(
            f"a restore into {data_dir} did not finish: run `flywheel restore` again, with the "
            "same backup or another"
        )
    return lock_empty_folder(data_dir)


def lock_empty_folder(data_dir: Path) -> IO[str]:
    """As `lock_data_folder`, for who is about to fill it."""
    lock = DataFolder(data_dir).lock
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+")
    except OSError as error:
        raise SettingsError(
            f"{data_dir} cannot be written: {error.strerror}. Look whether its disk is full or "
            "read-only, and whom it belongs to"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise DataLocked(
            f"a learner (process {holder}) already uses {data_dir}; stop it, or set another "
            "data_dir"
        ) from error
    with suppress(OSError):  # without space for it the lock holds too
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), str(os.getpid()).encode())
    return file


def drain_on_signals(stop: Event) -> None:
    """The first signal drains, the second ends at once."""

    def drain(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    with suppress(ValueError):  # not in the main thread: a test
        signal.signal(signal.SIGTERM, drain)
        signal.signal(signal.SIGINT, drain)


def child_environment(threads: int) -> dict[str, str]:
    """The environment of a child that computes: it knows no secret, and asks no network."""
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return passed_on | {
        "OMP_NUM_THREADS": str(threads),
        # Threads that wait for each other must not spin: beside the app's own load a step of a
        # tuning took 30 to 40 s instead of 6 on two cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
