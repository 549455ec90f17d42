"""The gateway speaks HTTP as real apps do: headers, ids, queries, Azure, paths, one connection."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import openai
import psutil
import pytest
import uvloop
from gateway_rig import (
    RunningGateway,
    settings_for,
)
from http_rig import ASKED, OTHER, Account, other_gateway

from service.gateway.protocol import Protocol
from service.gateway.server import HTTP, NEW_LOOP


def app_of(gateway: RunningGateway, **more: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="app-key", max_retries=0, **more)


def test_what_ties_a_call_to_its_app_travels_and_no_key_of_the_app_does(
    gateway: RunningGateway, account: Account
) -> None:
    travel = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=1,b=2",
        "openai-organization": "org-1",
        "openai-project": "proj-1",
        "x-request-id": "mine",
        "x-client-request-id": "also mine",
    }
    stay = {"authorization": "Bearer app-key", "api-key": "app-key", "cookie": "app-key",
            "x-api-key": "app-key", "proxy-authorization": "app-key",
            "x-forwarded-for": "app-key"}  # fmt: skip
    for path, body in (
        ("/v1/chat/completions", ASKED),
        ("/v1/chat/completions", OTHER),
        ("/v1/embeddings", {"model": "any", "input": "x"}),
    ):
        answer = gateway.http.post(path, json=body, headers={**travel, **stay})
        assert answer.status_code == 200
        headers, _ = account.last()
        assert {name: headers.get(name) for name in travel} == travel
        assert "app-key" not in str(headers)
        assert headers["authorization"] == "Bearer our-own-key"


def test_a_header_in_another_script_breaks_nothing(
    gateway: RunningGateway, account: Account
) -> None:
    headers = {"x-request-id": "é".encode("latin-1"), "tracestate": "日=本".encode()}
    account.headers = {"x-request-id": "ü"}
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        answer = gateway.http.post(path, json=OTHER, headers=headers)  # type: ignore[arg-type]
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "ü"
        assert account.last()[0]["tracestate"].encode("latin-1") == "日=本".encode()


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/chat/completions"), ("POST", "/v1/feedback"), ("POST", "/v1/embeddings"),
     ("GET", "/v1/models"), ("GET", "/v1/files"), ("GET", "/nowhere"), ("GET", "/healthz"),
     ("DELETE", "/v1/models"), ("GET", "/metrics")],
)  # fmt: skip
def test_every_answer_has_an_id_and_no_two_have_the_same(
    method: str, path: str, gateway: RunningGateway, account: Account
) -> None:
    for body in (ASKED, OTHER, None):
        found = [
            gateway.http.request(method, path, json=body).headers["x-request-id"] for _ in range(2)
        ]
        assert found[0] != found[1]


def test_the_teachers_id_comes_back_and_ours_names_the_event(
    gateway: RunningGateway, account: Account
) -> None:
    plain = app_of(gateway).chat.completions.create(**ASKED)
    answer = gateway.chat()
    assert plain._request_id
    assert answer.headers["x-request-id"] == answer.headers["x-flywheel-event-id"]
    judged = {"id": answer.headers["x-request-id"], "verdict": "good"}
    assert gateway.http.post("/v1/feedback", json=judged).status_code == 202
    account.headers = {"x-request-id": "req_theirs"}
    assert app_of(gateway).chat.completions.create(**ASKED)._request_id == "req_theirs"
    refused = {**ASKED, "messages": []}
    account.status = 500
    try:
        with pytest.raises(openai.InternalServerError) as caught:
            app_of(gateway).chat.completions.create(**refused)
    finally:
        account.status = 200
    assert caught.value.request_id == "req_theirs"


def test_queries_travel_with_what_passes_but_no_key_in_them(
    tmp_path: Path, account: Account
) -> None:
    settings = settings_for(tmp_path, account, upstream={"query": {"api-version": "ours"}})
    gateway = RunningGateway(settings)
    asked = "?include[]=a&include[]=b&api-version=theirs&api_key=secret&empty="
    gateway.http.post(f"/v1/embeddings{asked}", json={"model": "any"})
    gateway.http.post(f"/v1/chat/completions{asked}", json=OTHER)
    gateway.http.post(f"/v1/chat/completions{asked}", json=ASKED)
    gateway.stop()
    assert len(account.urls) == 3
    for url in account.urls:
        wanted = [("api-version", "ours"), ("include[]", "a"), ("include[]", "b"), ("empty", "")]
        assert parse_qsl(urlsplit(url).query, keep_blank_values=True) == wanted


def azure_of(gateway: RunningGateway, key: str = "app-key", **more: Any) -> openai.AzureOpenAI:
    return openai.AzureOpenAI(
        azure_endpoint=gateway.url, api_key=key, api_version="2025-01-01", max_retries=0, **more
    )


def test_azures_official_client_reaches_the_same_endpoints(
    gateway: RunningGateway, account: Account
) -> None:
    app = azure_of(gateway)
    answer = app.chat.completions.with_raw_response.create(**ASKED)
    assert answer.headers["x-flywheel-version"] == "teacher"
    assert answer.parse().choices[0].message.content == "refund"
    stream = app.chat.completions.create(**ASKED, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in stream) == "refund"
    found = app.embeddings.create(model="any", input="x", encoding_format="float")
    assert found.data[0].embedding == [0.5, 0.25]
    assert [model.id for model in app.models.list()] == ["desk"]
    paths = [urlsplit(url).path for url in account.urls]
    assert paths == ["/v1/chat/completions"] * 2 + ["/v1/embeddings"]
    assert all("app-key" not in str(headers) for headers, _ in account.requests)


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": ""}])
def test_azures_path_names_the_model_where_the_body_does_not(
    body: dict[str, Any], gateway: RunningGateway, account: Account
) -> None:
    before = gateway.metric("requests_total", task="support", served_by="teacher",
                            outcome="passed_through")  # fmt: skip
    asked = {"messages": ASKED["messages"], **body}
    for path in ("/openai/deployments/desk/chat/completions?api-version=1",
                 "/openai/v1/deployments/desk/chat/completions",
                 "//openai//deployments/desk//chat/completions/"):  # fmt: skip
        assert gateway.http.post(gateway.url + path, json=asked).status_code == 200
        assert json.loads(account.last()[1])["model"] == "big-teacher"
    assert gateway.metric("requests_total", task="support", served_by="teacher",
                          outcome="passed_through") == before + 3  # fmt: skip
    other = {"input": "x", **body}
    gateway.http.post("/openai/deployments/an%2Bother/embeddings", json=other)
    assert json.loads(account.last()[1]) == {"input": "x", "model": "an+other"}


def test_azures_newer_paths_reach_the_same_endpoints(
    gateway: RunningGateway, account: Account
) -> None:
    for path in ("/openai/v1/chat/completions", "/openai/chat/completions?api-version=preview"):
        assert gateway.http.post(path, json=ASKED).status_code == 200
    assert gateway.http.post("/openai/v1/embeddings", json={"model": "any"}).status_code == 200
    assert gateway.http.get("/openai/v1/files").status_code == 404
    assert gateway.http.post("/openai/v1/../v1/files", json={}).status_code == 404
    assert len(account.requests) == 3


def test_azures_header_holds_a_key_as_good_as_the_bearer_token(
    tmp_path: Path, account: Account
) -> None:
    gateway = other_gateway(tmp_path, account, keys=["right"])
    assert azure_of(gateway, "right").chat.completions.create(**ASKED).choices
    with pytest.raises(openai.AuthenticationError):
        azure_of(gateway, "wrong").chat.completions.create(**ASKED)
    empty = gateway.http.post("/v1/chat/completions", json=ASKED, headers={"api-key": ""})
    both = {"api-key": "right", "authorization": "Bearer wrong"}
    answer = gateway.http.post("/v1/chat/completions", json=ASKED, headers=both)
    gateway.stop()
    assert empty.status_code == 401
    assert answer.status_code == 200
    assert len(account.requests) == 2


@pytest.mark.parametrize("path", ["/v1/realtime?model=x", "/v1/responses", "/openai/realtime"])
def test_a_websocket_is_told_that_there_are_none(path: str, gateway: RunningGateway) -> None:
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
               "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    answer = gateway.http.get(path, headers=headers)
    assert answer.status_code == 501
    assert "WebSockets" in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/responses/", "/v1/responses"),
        ("/embeddings", "/v1/embeddings"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/v2/completions", "/v1/completions"),
        ("/audio/speech", "/v1/audio/speech"),
    ],
)
def test_a_path_that_is_a_little_wrong_is_told_the_right_one(
    path: str, right: str, gateway: RunningGateway
) -> None:
    answer = gateway.http.post(path, json=ASKED)
    assert answer.status_code == 404
    assert f"Is it {right} that is meant?" in answer.json()["error"]["message"]
    elsewhere = gateway.http.post("/v1/files", json={}).json()["error"]["message"]
    assert "meant" not in elsewhere


@contextmanager
def connected(gateway: RunningGateway) -> Iterator[Callable[..., tuple[int, bytes]]]:
    """One connection; each call sends something piece by piece and reads an answer."""
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as raw,
        raw.makefile("rb") as file,
    ):

        def say(*parts: bytes) -> tuple[int, bytes]:
            """Status and body; 0 for a connection that was cut."""
            try:
                for part in parts:
                    raw.sendall(part)
                    time.sleep(0.02)
                line = file.readline()
                headers = list(iter(file.readline, b"\r\n")) if line else []
            except (BrokenPipeError, ConnectionResetError):
                return 0, b""
            lengths = [h.split(b":")[1] for h in headers if h.startswith(b"content-length:")]
            return (int(line.split()[1]), file.read(int(lengths[0]))) if line else (0, b"")

        yield say


def request_of(body: bytes, *more: bytes) -> bytes:
    head = [b"POST /v1/chat/completions HTTP/1.1", b"host: localhost", *more,
            b"content-length: %d" % len(body), b"", b""]  # fmt: skip
    return b"\r\n".join(head)


def test_an_offer_of_http_2_costs_no_body(gateway: RunningGateway, account: Account) -> None:
    """Java's own client offers it with each request, and sends the head before the body."""
    body = json.dumps(ASKED).encode()
    offer = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAEAAEAA")
    plain, offers = request_of(body), request_of(body, *offer)
    with connected(gateway) as say:
        for parts in (
            [plain + body],
            [offers[:40], offers[40:], body[:9], body[9:]],
            [plain, body],
            [offers, body],
            [offers + body],
        ):
            status, content = say(*parts)
            assert status == 200
            assert json.loads(content)["choices"]
    assert len(account.requests) == 5


def test_several_requests_of_one_connection_are_answered_in_their_order(
    gateway: RunningGateway,
) -> None:
    body = json.dumps(ASKED).encode()
    whole = request_of(body) + body
    models = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with connected(gateway) as say:
        answers = [say(whole + models + whole), say(), say()]
    kinds = [json.loads(content)["object"] for _, content in answers]
    assert kinds == ["chat.completion", "list", "chat.completion"]


@pytest.mark.parametrize(
    "endless",
    [
        request_of(b"{}", b"x: ")[:-24],
        b"GET /v1/models?",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked"
        b"\r\n\r\n0\r\nx: ",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked"
        b"\r\n\r\n1;",
    ],
)
def test_a_head_without_an_end_is_not_kept(endless: bytes, gateway: RunningGateway) -> None:
    process = psutil.Process()
    with connected(gateway) as say:
        before = process.memory_info().rss
        status, _ = say(endless, *[b"x" * (1 << 20)] * 32)
    assert status in (400, 0)  # or cut off while it still sends
    assert process.memory_info().rss - before < 16 << 20


def test_the_gateway_runs_on_the_fast_loop_and_parser_where_there_are_any() -> None:
    assert HTTP is Protocol
    assert NEW_LOOP is uvloop.new_event_loop
