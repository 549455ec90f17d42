"""What the tests of deploy/ share: the tools that check it, and how its files are read."""

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@cache
def tools_module() -> Any:
    """deploy/tools.py, the same file that `make deploy-tools` runs."""
    spec = importlib.util.spec_from_file_location("deploy_tools", DEPLOY / "tools.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["deploy_tools"] = module
    spec.loader.exec_module(module)
    return module


def tools() -> Any:
    """helm, kubeconform, hadolint and schemas; skips where they cannot be had, fails on CI."""
    module = tools_module()
    try:
        return module.fetch_tools()
    except module.ToolProblem as problem:
        missing(str(problem))


def program(name: str, package: str) -> str:
    """A program of Debian's; skips where it is missing, fails on CI."""
    found: str | None = shutil.which(name)
    if found is None:
        missing(f"{name} not found: `apt-get install {package}`.")
    return found


def missing(sentence: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(sentence)
    pytest.skip(sentence)


def said(*command: str | Path, expect: int = 0, **options: Any) -> str:
    """Standard output of a command that ends as expected; both outputs when it should fail."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )
    both = done.stdout + done.stderr
    assert (done.returncode == 0) == (expect == 0), both[-3000:]
    return both if expect else done.stdout
