"""Does a plane of this host answer? For health checks of containers, and for the supervisor.

It finds the planes by the notes in the data folder, and needs no settings:

    python -m service.host.probe --data-dir FOLDER
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from storage.folder import DataFolder, Plane

PLANES: tuple[Plane, ...] = ("gateway", "learner")
TIMEOUT_SECONDS = 5.0
AGAIN_SECONDS = 0.2
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}

# A proxy of the environment is for the world outside this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(data_dir: Path, plane: Plane, *, pid: int | None = None) -> bool:
    """Whether the plane that left its note there says that it is alive; only `pid`, if given."""
    try:
        noted = json.loads(DataFolder(data_dir).note(plane).read_text())
        if pid is not None and noted["pid"] != pid:
            return False
        host = ANY_ADDRESS.get(noted["host"], noted["host"])
        address = f"[{host}]" if ":" in host else host
        url = f"http://{address}:{int(noted['port'])}/healthz"
        with _opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def silent(data_dir: Path, planes: list[Plane]) -> list[Plane]:
    """Which of these planes do not answer; of all that left a note, when none is named."""
    noted = [name for name in PLANES if DataFolder(data_dir).note(name).exists()]
    wanted = planes or noted or list(PLANES)
    return [name for name in wanted if not answers(data_dir, name)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m service.host.probe", description=__doc__)
    parser.add_argument("planes", nargs="*", help="gateway, learner; none: those that started")
    parser.add_argument("--data-dir", type=Path, required=True, help="where they keep their data")
    parser.add_argument("--within", type=float, default=0.0, help="seconds to keep asking (0)")
    parser.add_argument(
        "--let-pass", action="store_true", help="end with 0 all the same, once the time is up"
    )
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.within
    while missing := silent(options.data_dir, options.planes):
        if time.monotonic() >= deadline:
            print(f"no answer from the {' and the '.join(missing)}", file=sys.stderr)
            return 0 if options.let_pass else 1
        time.sleep(AGAIN_SECONDS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
