"""Settings, folders, ports, processes, and the training stack on this host."""

import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psutil

from pipelines.recipes import RECIPES
from service.care.check import find_problems
from service.care.doctor.finding import Finding, ok, problem, warning
from service.care.recipe_needs import needs_of
from service.sections import GatewaySettings, LearnerSettings
from service.settings import Settings
from storage.folder import PRIVATE, DataFolder, Plane

HEALTH_SECONDS = 5.0
TRIAL = ".doctor-trial"
NAMES: tuple[Plane, ...] = ("learner", "gateway")


class Noted(NamedTuple):
    """A process as it noted itself in the data folder."""

    port: int
    pid: int


def look_at_settings(settings: Settings, ask: Callable[..., Any]) -> Iterator[Finding]:
    found = find_problems(settings)
    for one in found:
        make = problem if one.level == "error" else warning
        yield make("settings", f"{one.setting} {one.sentence}", "`flywheel check` prints them all")
    if not found:
        yield ok("settings", "nothing is missing")


def look_at_folders(settings: Settings, ask: Callable[..., Any]) -> Iterator[Finding]:
    data = settings.data_dir
    if not data.is_dir():
        yield problem(
            "folders",
            f"there is no data folder {data}",
            "start the learner once, or give the --data-dir that it has",
        )
        return
    if DataFolder(data).restoring.exists():
        yield problem(
            "folders", f"a restore into {data} did not finish", "run `flywheel restore` again"
        )
    yield _free_space(settings)
    yield _real_write(data)
    yield from _rights(data)


def _free_space(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.data_dir).free // 2**20
    reserve = settings.ingest.min_free_disk_mb
    sentence = f"{free:,} MB are free on the disk of {settings.data_dir}"
    if free < reserve:
        return problem(
            "folders",
            f"{sentence}; below {reserve:,} MB reading is paused",
            "free some; what waits on the topic is read then",
        )
    if free < 3 * reserve:
        return warning(
            "folders", f"{sentence}; at {reserve:,} MB reading pauses", "free some, or grow it"
        )
    return ok("folders", sentence)


def _real_write(data: Path) -> Finding:
    trial = data / TRIAL
    try:
        with trial.open("wb") as file:
            file.write(os.urandom(4096))
            file.flush()
            os.fsync(file.fileno())
        trial.unlink()
    except OSError as error:
        with suppress(OSError):
            trial.unlink(missing_ok=True)
        return problem(
            "folders",
            f"nothing can be written to {data}: {error.strerror}",
            "give the folder to the user that flywheel runs as; look whether its disk is read-only",
        )
    return ok("folders", f"a file was written to {data}, synced and removed")


def _rights(data: Path) -> Iterator[Finding]:
    owner = data.stat().st_uid
    foreign = [path.name for path in data.iterdir() if path.stat().st_uid != owner]
    if foreign:
        yield problem(
            "folders",
            f"{', '.join(sorted(foreign)[:3])} in {data} belong to another user than the folder",
            f"chown -R them to the owner of {data}; run every verb as that user",
        )
    elif owner != os.geteuid():
        yield warning(
            "folders",
            f"{data} belongs to another user than the one who asks",
            "run the verbs that write as the user that the learner runs as",
        )
    for name in PRIVATE:
        path = data / name
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield warning("folders", f"others may read {path}", f"chmod go= {path}")


def look_at_processes(settings: Settings, ask: Callable[..., Any]) -> Iterator[Finding]:
    for name in NAMES:
        noted = noted_process(settings.data_dir, name)
        if noted is None:
            yield warning(
                "processes",
                f"no {name} runs over {settings.data_dir} on this host",
                f"`flywheel run`, or `flywheel {name}`, if one should",
            )
            continue
        yield from _health(name, noted)
    if _holder(settings.data_dir) and noted_process(settings.data_dir, "learner") is None:
        yield warning(
            "processes",
            "something holds the data folder and is no learner that answers",
            "a learner may be starting, or another verb is at work; look again in a minute",
        )


def _health(name: str, noted: Noted) -> Iterator[Finding]:
    for path, meaning in (("healthz", "is alive"), ("readyz", "is ready")):
        url = f"http://127.0.0.1:{noted.port}/{path}"
        try:
            answer = httpx2.get(url, timeout=HEALTH_SECONDS, trust_env=False)
        except httpx2.HTTPError as error:
            yield problem(
                "processes",
                f"the {name} (process {noted.pid}) does not answer at {url}: "
                f"{type(error).__name__}",
                f"look at its log; if it hangs, end process {noted.pid}: it is started again by "
                "whatever supervises it",
            )
            return
        if answer.status_code != 200:
            why = answer.text.strip()[:200]
            yield problem(
                "processes",
                f"the {name} (process {noted.pid}) answers, and not that it {meaning}: {why}",
                "look at its log for why; the findings below may name it",
            )
            return
    yield ok("processes", f"the {name} (process {noted.pid}) is ready")


def look_at_ports(settings: Settings, ask: Callable[..., Any]) -> Iterator[Finding]:
    sections: dict[Plane, GatewaySettings | LearnerSettings] = {
        "gateway": settings.gateway,
        "learner": settings.learner,
    }
    for name, section in sections.items():
        noted = noted_process(settings.data_dir, name)
        if noted is not None and section.port in (0, noted.port):
            yield ok("ports", f"the {name} listens on port {noted.port}")
        elif not section.port:
            yield ok("ports", f"the {name} will take a free port")
        elif _is_free(section.host, section.port):
            yield ok("ports", f"port {section.port} is free for the {name}")
        else:
            yield problem(
                "ports",
                f"another program listens on port {section.port}, which {name}.port names",
                f"stop it, or set {name}.port to another",
            )


def look_at_stack(settings: Settings, ask: Callable[..., Any]) -> Iterator[Finding]:
    used = {
        recipe
        for task in settings.tasks.values()
        for recipe in (task.recipe, task.challenger)
        if recipe is not None
    }
    for recipe in sorted(used):
        needs = needs_of(settings, recipe)
        if needs.problem:
            yield problem("training stack", f"{recipe}: {needs.problem}", "`flywheel recipes`")
        elif needs.warning:
            yield warning("training stack", f"{recipe}: {needs.warning}", "`flywheel recipes`")
        else:
            stack = "the training stack is there" if RECIPES[recipe].tunes else "the core is enough"
            yield ok("training stack", f"{recipe} can be trained here: {stack}")


def noted_process(data: Path, name: Plane) -> Noted | None:
    """Of the learner or the gateway of this folder, where it lives."""
    try:
        told = json.loads(DataFolder(data).note(name).read_text())
        noted = Noted(int(told["port"]), int(told["pid"]))
        alive = psutil.Process(noted.pid).status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return noted if alive else None


def _holder(data: Path) -> bool:
    """Whether somebody has the lock right now."""
    import fcntl

    try:
        with DataFolder(data).lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return False
    return True
