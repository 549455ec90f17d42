"""Writes a benchmark's figures to `benchmarks/results/NAME.json`, with what they depend on."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def write_results(
    name: str, figures: Mapping[str, float], *, seed: int, folder: Path = RESULTS, **more: Any
) -> Path:
    """`figures` maps names to numbers; `more` is whatever else the benchmark found."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {
        "machine": machine(),
        "seed": seed,
        "commit": commit(),
        "figures": dict(figures),
        **more,
    }
    path.write_text(json.dumps(content, indent=1, sort_keys=False) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What a figure's meaning depends on. No host name."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that was measured, marked when the tree differs from it beside the results."""
    others = ("--", ".", f":(exclude){RESULTS.relative_to(ROOT).as_posix()}")
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", *others)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}-dirty" if changed else name


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
