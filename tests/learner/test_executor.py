"""The trainer's children: limits, life line, environment, and what they may say."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from benchmarks.loose_work import loose_executor
from pipelines.errors import TrainingFailed
from pipelines.work import Host
from service.sections import TrainerSettings

HEAD = """
import json, os, subprocess, sys, time
from typing import Any
from pipelines.child import run_child as run_work

def run_child(do):
    run_work(Any, lambda work, host, channel: do({"scratch": host.scratch}, channel))
"""


def told(scratch: Path) -> bytes:
    """A specification of work that says nothing."""
    host = Host(scratch=str(scratch), inputs={}, threads=1)
    return msgspec.json.encode({"work": None, "host": host})


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the body of a child's `work(spec, channel)` under a trainer with these limits."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def run(body: str, module: str = "work", **limits: Any) -> dict[str, Any]:
        code = HEAD + "def work(spec, channel):\n" + textwrap.indent(textwrap.dedent(body), "    ")
        (tmp_path / f"{module}.py").write_text(code + "\nrun_child(work)\n")
        executor = loose_executor(tmp_path, TrainerSettings(threads=1, **limits), {})
        # `python -m` looks in the present folder first.
        monkeypatch.chdir(tmp_path)
        return executor.run_program(module, told(scratch), scratch)

    return run


def test_child_says_what_it_did_and_leaves_no_specification(
    child: Callable[..., Any], tmp_path: Path
) -> None:
    found = child("print('a library prints'); return {'scratch': spec['scratch']}")
    assert found == {"scratch": str(tmp_path / "scratch")}
    assert not list(tmp_path.glob("*.spec.json"))


def test_child_knows_no_secret(child: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYWHEEL_TEACHER__API_KEY", "the teacher's key")
    monkeypatch.setenv("OPENAI_API_KEY", "another key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a third")
    code = "return {'here': open('/proc/self/environ').read()}"
    environment = child(code)["here"]
    assert "key" not in environment.lower()
    assert "a third" not in environment
    assert "OMP_NUM_THREADS=1" in environment
    assert "OMP_WAIT_POLICY=PASSIVE" in environment


@pytest.mark.parametrize(
    ("body", "limits", "reason"),
    [
        ("raise ValueError('no good')", {}, "ValueError: no good"),
        ("os.kill(os.getpid(), 9)", {}, r"killed by SIGKILL \(out of memory\?\)"),
        ("sys.stderr.write('gone wrong'); sys.stderr.flush(); os._exit(3)", {},
         "ended with code 3 and no result: gone wrong"),
        ("os.write(channel._out.fileno(), b'rubbish\\n'); time.sleep(100)", {},
         "not its protocol"),
        ("time.sleep(100)", {"time_limit": "1s"}, "took longer than trainer.time_limit"),
        ("os.kill(os.getpid(), 19); time.sleep(100)", {"heartbeat_timeout": "2s"},
         "no sign of life"),
        ("held = b'x' * 400_000_000; time.sleep(100)", {"memory_limit_mb": 300},
         "out of memory: .* MB resident"),
        ("raise MemoryError", {}, "out of memory"),
    ],
)  # fmt: skip
def test_child_that_fails_says_why(
    body: str, limits: dict[str, Any], reason: str, child: Callable[..., Any]
) -> None:
    started = time.monotonic()
    with pytest.raises(TrainingFailed, match=reason):
        child(body, **limits)
    assert time.monotonic() - started < 90


def test_everything_a_child_started_ends_with_it(child: Callable[..., Any], tmp_path: Path) -> None:
    told = tmp_path / "grandchild"
    child(
        f"""
        other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(200)'])
        open({str(told)!r}, 'w').write(str(other.pid))
        return {{}}
        """
    )
    grandchild = int(told.read_text())
    for _ in range(300):
        if not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie":
            return
        time.sleep(0.1)
    pytest.fail("the grandchild lives on")


PARENT = """
import sys
from pathlib import Path
from benchmarks.loose_work import loose_executor
from service.sections import TrainerSettings
scratch = Path(sys.argv[1])
executor = loose_executor(scratch, TrainerSettings(threads=1), {})
executor.run_program("work", sys.argv[2].encode(), scratch)
"""


def test_child_ends_when_its_learner_is_killed(tmp_path: Path) -> None:
    body = HEAD + (
        "def work(spec, channel):\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(200)\n"
        "run_child(work)\n"
    )
    (tmp_path / "work.py").write_text(body)
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "scratch"), told(tmp_path).decode()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
    )
    noted = tmp_path / "pid"
    wait_for(lambda: noted.exists() and noted.read_text() != "")
    parent.kill()
    parent.wait()
    pid = int(noted.read_text())
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited in vain")


def test_stop_ends_the_child_and_refuses_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work.py").write_text(
        HEAD + "def work(spec, channel):\n    channel.progress('p', 1, 2)\n    time.sleep(200)\n"
        "run_child(work)\n"
    )
    monkeypatch.chdir(tmp_path)
    heard: list[Any] = []
    executor = loose_executor(tmp_path, TrainerSettings(threads=1), {}, heard.append)

    def stop_when_it_works() -> None:
        wait_for(lambda: bool(heard))
        executor.stop()

    stopper = threading.Thread(target=stop_when_it_works)
    stopper.start()
    with pytest.raises(TrainingFailed, match="the learner stops"):
        executor.run_program("work", told(tmp_path), tmp_path / "scratch")
    stopper.join()
    assert (heard[0]["phase"], heard[0]["step"], heard[0]["total"]) == ("p", 1, 2)
    assert set(heard[0]) == {"phase", "step", "total", "examples_per_second", "seconds_left"}
    with pytest.raises(TrainingFailed, match="the learner stops"):
        executor.run_program("work", told(tmp_path), tmp_path / "scratch")


def test_one_child_runs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would append to one cache of vectors."""
    log = tmp_path / "log"
    (tmp_path / "work.py").write_text(
        HEAD + "def work(spec, channel):\n"
        f"    open({str(log)!r}, 'a').write('in ')\n    time.sleep(0.5)\n"
        f"    open({str(log)!r}, 'a').write('out ')\n    return {{}}\nrun_child(work)\n"
    )
    monkeypatch.chdir(tmp_path)
    executor = loose_executor(tmp_path, TrainerSettings(threads=1), {})
    threads = [
        threading.Thread(
            target=executor.run_program, args=("work", told(tmp_path), tmp_path / f"s{n}")
        )
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.read_text() == "in out in out "
