"""What the program weighs after minutes of work, and how quickly it is there.

    make bench BENCHMARKS=footprint      (ARGS=--quick for a short run)

The demonstration runs as it is: a scripted teacher, customers, a first student that is approved,
and then minutes of traffic that it answers. The memory of learner and gateway is read at the end of
it. Then a gateway alone starts over what the demonstration left on the disk, and `flywheel --help`
is timed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import psutil

from benchmarks.results import write_results

FLYWHEEL = [sys.executable, "-m", "service"]
UP_SECONDS = 120.0
CHAMPION_SECONDS = 900.0
LOOK_SECONDS = 0.005
TELL_SECONDS = 10.0
PARTS = ("learner", "gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long a student answers before we look, and how often what is quick is timed."""

    seconds: float = 150.0
    rate: float = 40.0
    champion: bool = True
    starts: int = 5


QUICK = Plan(seconds=0.0, champion=False, starts=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Of one process, in MB: resident, and with shared pages divided among those who share them."""

    resident: float
    proportional: float
    imports_torch: bool


def run(plan: Plan, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures, and what they were measured on."""
    data = folder / "demo"
    with demonstration(plan, data) as look:
        memory, events = look()
    figures = {f"{name}_mb": round(memory[name].resident, 1) for name in PARTS}
    figures |= {f"{name}_pss_mb": round(memory[name].proportional, 1) for name in PARTS}
    if plan.champion:
        ready = [gateway_ready(data) for _ in range(plan.starts)]
        figures["gateway_ready_s"] = round(statistics.median(ready), 2)
    helps = [help_seconds() for _ in range(plan.starts)]
    figures["help_s"] = round(statistics.median(helps), 2)
    about = {
        "imports_torch": {name: memory[name].imports_torch for name in PARTS},
        "seconds": plan.seconds,
        "events": events,
    }
    return figures, about


@contextmanager
def demonstration(
    plan: Plan, data: Path
) -> Iterator[Callable[[], tuple[Mapping[str, Memory], int]]]:
    """`flywheel demo --approve`, run for its time; what it yields then looks at its processes."""
    command = [
        *(*FLYWHEEL, "demo", "--approve", "--data", str(data), "--rate", f"{plan.rate:g}"),
        *("--port-gateway", "0", "--port-learner", "0"),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        addresses = {name: _wait_for_address(process, data, name) for name in PARTS}
        if plan.champion:
            _wait(process, lambda: _has_champion(data), seconds=CHAMPION_SECONDS, look=1.0)
            print("a student answers", flush=True)
        _watch(process, data, plan.seconds)
        yield lambda: (
            {name: memory_of(_pid(data, name)) for name in PARTS},
            _events(addresses["learner"]),
        )
    finally:
        process.terminate()
        process.wait(90)


def _watch(process: "subprocess.Popen[bytes]", data: Path, seconds: float) -> None:
    """Let it run, and tell now and then how large its parts are."""
    started = told_at = time.monotonic()
    while time.monotonic() - started < seconds:
        if process.poll() is not None:
            raise RuntimeError(f"the demonstration ended with {process.returncode}")
        time.sleep(0.5)
        if time.monotonic() - told_at > TELL_SECONDS:
            told_at = time.monotonic()
            sizes = (f"{name} {memory_of(_pid(data, name)).resident:.0f} MB" for name in PARTS)
            print(f"{told_at - started:.0f} s: {', '.join(sizes)}", flush=True)


def _has_champion(data: Path) -> bool:
    if not (data / "live.json").exists():
        return False
    live = json.loads(json.loads((data / "live.json").read_text())["live"])
    return any(task.get("champion") for task in live["tasks"].values())


def memory_of(pid: int) -> Memory:
    """As the kernel counts it."""
    found = psutil.Process(pid).memory_full_info()
    mapped = {Path(one.path).name for one in psutil.Process(pid).memory_maps()}
    return Memory(
        resident=found.rss / 1e6,
        proportional=found.pss / 1e6,
        imports_torch=any(name.startswith("libtorch") for name in mapped),
    )


def gateway_ready(data: Path) -> float:
    """Seconds from the start of `flywheel gateway` until it is ready, with its champion."""
    note = data / "run" / "gateway.json"
    note.unlink(missing_ok=True)
    started = time.monotonic()
    process = subprocess.Popen(
        [*FLYWHEEL, "--config", str(data / "flywheel.toml"), "gateway"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = _wait_for_address(process, data, "gateway")
        _wait(process, lambda: httpx2.get(f"{address}/readyz").status_code == 200)
        seconds = time.monotonic() - started
        models = httpx2.get(f"{address}/v1/models").json()["data"]
        if all(model["version"] == "teacher" for model in models):
            raise RuntimeError("the gateway was ready without its champion")
        return seconds
    finally:
        process.terminate()
        process.wait(30)


def help_seconds() -> float:
    """Of `flywheel --help`, from start to end."""
    started = time.monotonic()
    subprocess.run([*FLYWHEEL, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def _events(learner: str) -> int:
    """Events that the learner has counted, by its metrics."""
    lines = httpx2.get(f"{learner}/metrics").text.splitlines()
    return round(
        sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("flywheel_events_total{")
        )
    )


def _pid(data: Path, name: str) -> int:
    return int(json.loads((data / "run" / f"{name}.json").read_text())["pid"])


def _wait_for_address(process: "subprocess.Popen[bytes]", data: Path, name: str) -> str:
    note = data / "run" / f"{name}.json"
    _wait(process, note.exists)
    address = f"http://127.0.0.1:{json.loads(note.read_text())['port']}"
    _wait(process, lambda: httpx2.get(f"{address}/healthz").status_code == 200)
    return address


def _wait(
    process: "subprocess.Popen[bytes]",
    happened: Callable[[], bool],
    *,
    seconds: float = UP_SECONDS,
    look: float = LOOK_SECONDS,
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode}")
        try:
            if happened():
                return
        except (httpx2.HTTPError, OSError):
            pass
        time.sleep(look)
    raise TimeoutError(f"it did not happen within {seconds:g} seconds")


def main() -> None:
    """Run the benchmark and write `benchmarks/results/footprint.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a few seconds; writes no results")
    parser.add_argument(
        "--seconds", type=float, default=Plan().seconds, help="that the student answers"
    )
    chosen = parser.parse_args()
    plan = QUICK if chosen.quick else replace(Plan(), seconds=chosen.seconds)
    with tempfile.TemporaryDirectory(prefix="footprint-") as folder:
        figures, about = run(plan, Path(folder))
    for name, value in figures.items():
        print(f"{name}: {value:g}")
    if not chosen.quick:
        write_results("footprint", figures, seed=0, **about)


if __name__ == "__main__":
    main()
