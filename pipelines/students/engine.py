"""The engine process: one chat model with adapters by name, so that it blocks nobody else.

`python -m pipelines.students.engine SPEC.json`, the specification being `{"base", "threads"}`.
One JSON object a line: requests on standard input, answers on standard output. Standard input
is also the life line: when it ends, so does the process, whatever it is doing.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from pipelines.errors import ArtifactDamaged, FlywheelError
from pipelines.students.causal import ChatModel

Request = dict[str, Any]
PR_SET_PDEATHSIG = 1


def main() -> None:
    if sys.platform == "linux":  # for an engine that hangs, and would not see its input end
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Libraries print to standard output; the lines of the protocol get a copy of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    requests: SimpleQueue[Request] = SimpleQueue()
    Thread(target=_listen, args=(requests,), daemon=True).start()
    started = time.monotonic()
    try:
        model = _load_base(json.loads(Path(sys.argv[1]).read_text()))
    except Exception as error:  # the top of the process: the reason must reach the gateway
        say(failed=_sentence(error))
        sys.exit(1)
    say(ready={"seconds": round(time.monotonic() - started, 2), "device": model.device})
    while True:
        request = requests.get()
        try:
            say(id=request["id"], result=_do(model, request))
        except MemoryError:
            raise  # what is left in memory is not to be trusted
        except Exception as error:  # this request fails, the next one may not
            damaged = isinstance(error, ArtifactDamaged)
            say(id=request["id"], error=_sentence(error), damaged=damaged)


def _listen(requests: "SimpleQueue[Request]") -> None:
    """Hands requests on. Not through sys.stdin: its lock would be held at exit."""
    rest = b""
    try:
        while part := os.read(0, 1 << 16):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                requests.put(json.loads(line))
    finally:
        os._exit(1)  # also in the middle of a forward pass


def _load_base(spec: dict[str, Any]) -> ChatModel:
    model = ChatModel(Path(spec["base"]), threads=int(spec["threads"]))
    import peft  # noqa: F401 - takes seconds, so now and not with the first adapters

    return model


def _do(model: ChatModel, request: Request) -> Any:
    name: str = request["name"]
    match request["do"]:
        case "load":
            return list(model.load(name, Path(request["folder"])).labels)
        case "unload":
            model.unload(name)
            return None
        case "read":
            return [list(reply) for reply in model.read(name, request["texts"])]
        case unknown:
            raise ValueError(f"there is no request {unknown}")


def _sentence(error: Exception) -> str:
    """Ours say what happened. Messages of others may quote the text: only their name is told."""
    if isinstance(error, FlywheelError | ImportError):
        return str(error)
    return f"{type(error).__name__} in the chat model"


if __name__ == "__main__":
    main()
