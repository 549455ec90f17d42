"""LiteLLM's proxy, in an environment of its own, for the comparison in `benchmarks.passthrough`."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from benchmarks.results import ROOT

VERSION = "1.106.2"
ENVIRONMENT = ROOT / ".cache" / f"bench-litellm-{VERSION}"
UP_SECONDS = 300.0
CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: {upstream}
      api_key: none
litellm_settings:
  telemetry: false
"""


def installed() -> bool:
    return (ENVIRONMENT / "bin" / "litellm").exists()


def install() -> None:
    """Into `.cache`, from the package index; a minute the first time. In none of our lock files."""
    if installed():
        return
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", str(ENVIRONMENT)], check=True)
    python = ENVIRONMENT / "bin" / "python"
    wanted = f"litellm[proxy]=={VERSION}"
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), wanted], check=True)


@contextmanager
def running_litellm(folder: Path, upstream: str, model: str, key: str) -> Iterator[str]:
    """The address of a proxy that passes `model` on to `upstream` for who has `key`."""
    config, log_file = folder / "litellm.yaml", folder / "litellm.log"
    config.write_text(CONFIG.format(model=model, upstream=upstream))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no look-up on the network
        "LITELLM_LOG": "ERROR",
        "LITELLM_MASTER_KEY": key,  # without one it does not start
        "NO_PROXY": "127.0.0.1",
    }
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(ENVIRONMENT / "bin" / "litellm"), "--config", str(config)),
                *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
            ],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        _wait(process, f"{address}/health/liveliness", log_file)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + UP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(url, timeout=2).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"LiteLLM is not up\n{log.read_text(errors='replace')[-2000:]}")
