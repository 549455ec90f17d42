"""Compressed bodies: read where the gateway reads them, and a bomb costs nothing."""

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import zstandard
from gateway_rig import (
    RunningGateway,
)
from http_rig import ASKED, OTHER, Account


def raw_deflate(body: bytes) -> bytes:
    codec = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return codec.compress(body) + codec.flush()


def in_two_parts(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda body: pack(body[:9]) + pack(body[9:])


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip, twice": ("x-gzip", in_two_parts(gzip.compress)),
    "deflate": ("deflate", zlib.compress),
    "deflate without a header": ("Deflate", raw_deflate),
    "zstd": ("zstd", zstandard.ZstdCompressor().compress),
    "zstd, twice": ("zstd", in_two_parts(zstandard.ZstdCompressor().compress)),
}


@pytest.mark.parametrize("packing", PACKED)
def test_a_packed_body_is_read_wherever_it_goes(
    packing: str, gateway: RunningGateway, account: Account
) -> None:
    coding, pack = PACKED[packing]
    headers = {"content-type": "application/json", "content-encoding": coding}

    def post(path: str, body: dict[str, Any]) -> Any:
        content = pack(json.dumps(body).encode())
        answer = gateway.http.post(path, content=content, headers=headers)
        assert answer.status_code in (200, 202), answer.text
        return answer.json()

    judged = post("/v1/chat/completions", ASKED)["id"]
    post("/v1/feedback", {"id": judged, "verdict": "good"})
    post("/v1/chat/completions", OTHER)
    post("/v1/embeddings", {"model": "desk", "input": "x"})
    sent = [(asked.get("content-encoding"), json.loads(body)) for asked, body in account.requests]
    name = gateway.settings.teacher.model
    assert sent == [
        (None, {**ASKED, "model": name}), (None, OTHER), (None, {"model": name, "input": "x"})
    ]  # fmt: skip
    assert gateway.metric("feedback_total", task="support", verdict="good") > 0


def test_what_passes_unread_stays_packed(gateway: RunningGateway, account: Account) -> None:
    packed = gzip.compress(bytes(range(256)) * 9_000, compresslevel=0)  # too long to be looked at
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert gateway.http.post("/v1/embeddings", content=packed, headers=headers).status_code == 200
    headers["content-encoding"] = "br"  # not ours to read
    assert gateway.http.post("/v1/embeddings", content=b"?", headers=headers).status_code == 200
    told = [(asked["content-encoding"], body) for asked, body in account.requests]
    assert told == [("gzip", packed), ("br", b"?")]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/feedback"])
def test_a_body_that_cannot_be_unpacked_is_told_why(
    path: str, gateway: RunningGateway, account: Account
) -> None:
    whole = gzip.compress(json.dumps(ASKED).encode())
    for coding, content, status, told in (
        ("br", whole, 415, "gzip, x-gzip, deflate, zstd"),
        ("gzip, gzip", whole, 415, "gzip"),
        ("gzip", whole[:-9], 400, "not whole"),
        ("gzip", json.dumps(ASKED).encode(), 400, "not whole"),
        ("zstd", whole, 400, "not whole"),
        ("deflate", zlib.compress(b"{}") + b"?", 400, "not whole"),
    ):
        answer = gateway.http.post(path, content=content, headers={"content-encoding": coding})
        assert answer.status_code == status
        assert told in answer.json()["error"]["message"]
    assert not account.requests


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_bomb_costs_no_more_than_what_is_allowed(coding: str, gateway: RunningGateway) -> None:
    if coding == "gzip":
        bomb = gzip.compress(bytes(1 << 28)) * 4
    else:
        bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30)) * 32
    assert len(bomb) < 1.1 * 2**20
    process = psutil.Process()
    gateway.chat()
    before = process.memory_info().rss
    answer = gateway.http.post(
        "/v1/chat/completions", content=bomb, headers={"content-encoding": coding}
    )
    assert answer.status_code == 413
    # What may be held twice for a moment: the parts, and a piece.
    assert process.memory_info().rss - before < 3 * gateway.settings.gateway.max_body_bytes
