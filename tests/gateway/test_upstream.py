"""The teacher over HTTP: what is tried again, idle connections, proxies."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from gateway_rig import (
    RunningGateway,
    serving,
    settings_for,
)
from http_rig import OTHER, Account
from starlette.types import Receive, Scope, Send

from service.gateway.upstream import KEEPALIVE_SECONDS, proxy_for


@contextmanager
def breaking_off(answers: Sequence[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers one connection after the other, or hangs up (b""), and what it read."""
    read: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    read.append(connection.recv(1 << 16))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], read


WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"


def asked_at(folder: Path, url: str, method: str, path: str) -> int:
    gateway = RunningGateway(settings_for(folder, upstream={"base_url": url, "model": "m"}))
    answer = gateway.http.request(method, path, json=OTHER if method == "POST" else None)
    gateway.stop()
    return answer.status_code


def test_what_only_reads_is_tried_once_more(tmp_path: Path) -> None:
    with breaking_off([b"", WHOLE]) as (port, read):
        assert asked_at(tmp_path, f"http://127.0.0.1:{port}/v1", "GET", "/v1/models/x") == 200
    assert len(read) == 2
    with breaking_off([b"", b"", WHOLE]) as (port, read):
        assert asked_at(tmp_path, f"http://127.0.0.1:{port}/v1", "GET", "/v1/models/x") == 502
    assert len(read) == 2


def test_what_may_have_been_begun_is_not_tried_again(tmp_path: Path) -> None:
    with breaking_off([b"", WHOLE]) as (port, read):
        asked = asked_at(tmp_path, f"http://127.0.0.1:{port}/v1", "POST", "/v1/chat/completions")
    assert asked == 502
    assert len(read) == 1


def test_what_was_not_sent_at_all_is_tried_once_more(tmp_path: Path) -> None:
    with breaking_off([b"", b"", b""]) as (port, read):  # hangs up in the handshake of TLS
        asked = asked_at(tmp_path, f"https://127.0.0.1:{port}/v1", "POST", "/v1/chat/completions")
    assert asked == 502
    assert len(read) == 2
    assert not any(b"parcel" in part for part in read)


def test_idle_connections_are_left_before_the_teacher_closes_them(tmp_path: Path) -> None:
    """Where both end at the same moment, a request goes into a connection that is being closed."""
    account, taken = Account(), set[int]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        taken.add(scope["client"][1])
        await inner(scope, receive, send)

    inner = account.app()
    with serving(app) as account.port:
        gateway = RunningGateway(settings_for(tmp_path, account))
        for pause in (0.0, 0.3, KEEPALIVE_SECONDS + 0.3):
            time.sleep(pause)
            assert gateway.chat().status_code == 200
            if pause < KEEPALIVE_SECONDS:
                assert len(taken) == 1
        gateway.stop()
    assert len(taken) == 2


def test_a_proxy_of_the_environment_is_for_the_world_outside_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with breaking_off([WHOLE]) as (port, read):
        proxy = f"http://127.0.0.1:{port}"
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy)
        assert proxy_for("http://127.0.0.2:8000/v1") is None
        monkeypatch.setenv("no_proxy", "near.example,127.0.0.1")
        assert proxy_for("https://near.example/v1") is None
        assert proxy_for("https://far.example/v1") == proxy
        far = asked_at(tmp_path, "http://far.example/v1", "POST", "/v1/chat/completions")
    assert far == 200
    assert read[0].startswith(b"POST http://far.example/v1/chat/completions HTTP/1.1\r\n")
