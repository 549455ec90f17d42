"""A webhook for tests: a real HTTP server that keeps what it was told, and can misbehave."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Webhook:
    """Where it listens, what came, and what it answers from now on."""

    url: str
    status: int = 200
    hangs: threading.Event | None = None  # until it is set, no request is answered
    requests: list[dict[str, Any]] = field(default_factory=list)
    accepted: list[dict[str, Any]] = field(default_factory=list)

    def wait_for(self, condition: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"did not come; there are {self.accepted}"
            time.sleep(0.05)


@contextmanager
def running_webhook(path: str = "/hook/secret") -> Iterator[Webhook]:
    """On a free port of this host."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            hook.requests.append(body)
            if hook.hangs is not None:
                hook.hangs.wait(60)
            status = hook.status
            if status == 200:
                hook.accepted.append(body)
            self.send_response(status)
            if status in (301, 302, 307, 308):
                self.send_header("location", hook.url + "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook = Webhook(url=f"http://127.0.0.1:{server.server_port}{path}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hook
    finally:
        if hook.hangs is not None:
            hook.hangs.set()
        server.shutdown()
        thread.join()
        server.server_close()
