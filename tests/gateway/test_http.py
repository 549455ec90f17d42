"""The gateway speaks HTTP as real apps do: packed bodies, headers, Azure, browsers, ceilings."""

import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import openai
import psutil
import pytest
import uvloop
import zstandard
from gateway_rig import (
    RunningGateway,
    Teacher,
    serving,
    settings_for,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.care.check import notes
from service.gateway.allowance import Allowance
from service.gateway.protocol import Protocol
from service.gateway.server import HTTP, NEW_LOOP
from service.gateway.turn import Rejected
from service.gateway.upstream import KEEPALIVE_SECONDS, proxy_for
from service.sections import GatewaySettings

ASKED: dict[str, Any] = {
    "model": "desk",
    "messages": [{"role": "user", "content": "where is my parcel"}],
}
OTHER = {**ASKED, "model": "another"}


class Account(Teacher):
    """A teacher that answers every path, and remembers what it was asked."""

    def app(self) -> Starlette:
        self.urls: list[str] = []
        routes = [
            Route("/v1/chat/completions", self._noted, methods=["POST"]),
            Route("/v1/{path:path}", self._any, methods=["GET", "POST"]),
        ]
        return Starlette(routes=routes)

    async def _noted(self, request: Request) -> Response:
        self.urls.append(str(request.url))
        return await self._chat(request)

    async def _any(self, request: Request) -> Response:
        self.urls.append(str(request.url))
        self.requests.append((dict(request.headers), await request.body()))
        vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
        return JSONResponse({"object": "list", "data": [vector], "model": "m",
                             "usage": {"prompt_tokens": 1, "total_tokens": 1}},
                            headers=self.headers)  # fmt: skip

    def last(self) -> tuple[dict[str, str], bytes]:
        return self.requests[-1]


@pytest.fixture(scope="module")
def the_account() -> Iterator[Account]:
    account = Account()
    with serving(account.app()) as port:
        account.port = port
        yield account


@pytest.fixture
def account(the_account: Account) -> Account:
    """With nothing asked yet."""
    the_account.requests.clear()
    the_account.urls.clear()
    the_account.headers = {}
    return the_account


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, the_account: Account
) -> Iterator[RunningGateway]:
    """One for all tests of this file that set nothing."""
    running = RunningGateway(settings_for(tmp_path_factory.mktemp("gateway"), the_account))
    yield running
    running.stop()


def other_gateway(folder: Path, account: Account, **gateway: Any) -> RunningGateway:
    return RunningGateway(settings_for(folder, account, gateway=gateway))


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


PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/feedback", "/v1/embeddings", "/v1/assess")
BODY = {**ASKED, "input": "x", "id": "y", "verdict": "bad", "task": "support", "events": []}


@pytest.mark.parametrize("path", [*PATHS, "/v1//chat/completions", "/openai/v1/embeddings"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8700", "127.0.0.1.evil.example",
                                  "0.0.0.0", "localhost.evil.example", "evil.example@localhost.x",
                                  "[::1", ""])  # fmt: skip
def test_on_loopback_another_name_is_a_rebound_one(
    path: str, host: str, gateway: RunningGateway, account: Account
) -> None:
    before = gateway.metric("rejected_total", reason="host")
    answer = gateway.http.post(path, json=BODY, headers={"host": host})
    assert answer.status_code == 421
    assert "gateway.hosts" in answer.json()["error"]["message"]
    assert not account.requests
    assert gateway.metric("rejected_total", reason="host") == before + 1


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.2:80",
                                  "[::1]:8700", "localhost."])  # fmt: skip
def test_this_machines_own_names_are_good(host: str, gateway: RunningGateway) -> None:
    assert gateway.http.get("/v1/models", headers={"host": host}).status_code == 200


def test_a_client_without_a_name_is_no_browser_and_probes_come_by_address(
    gateway: RunningGateway,
) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as raw:
        raw.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert b" 200 " in raw.recv(99)
    for path in ("/healthz", "/readyz", "/metrics"):
        assert gateway.http.get(path, headers={"host": "10.1.2.3"}).status_code == 200


def test_names_can_be_added_and_beyond_loopback_any_is_good(
    tmp_path: Path, account: Account
) -> None:
    def status(name: str, **settings: Any) -> int:
        gateway = other_gateway(tmp_path, account, **settings)
        headers = {"host": name, "authorization": "Bearer right"}
        answer = gateway.http.get("/v1/models", headers=headers)
        gateway.stop()
        return answer.status_code

    inside = {"hosts": ["Models.example"]}
    assert status("models.example", **inside) == 200
    assert status("other.example", **inside) == 421
    open_to_all = {"host": "0.0.0.0", "keys": ["right"]}
    assert status("models.example", **open_to_all) == 200
    assert status("other.example", **open_to_all, **inside) == 421


@pytest.mark.parametrize("kind", ["text/plain", "text/plain;charset=UTF-8", "TEXT/PLAIN",
                                  "application/x-www-form-urlencoded",
                                  "multipart/form-data; boundary=x"])  # fmt: skip
@pytest.mark.parametrize("path", PATHS)
def test_what_a_page_may_send_unasked_is_not_taken_for_json(
    path: str, kind: str, gateway: RunningGateway, account: Account
) -> None:
    if path == "/v1/embeddings" and kind.startswith("multipart"):
        return  # as audio is sent; what passes is not ours to read
    answer = gateway.http.post(path, content=json.dumps(BODY), headers={"content-type": kind})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]
    assert not account.requests


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/json; charset=utf-8"},
                                     {"content-type": "application/octet-stream"}])  # fmt: skip
def test_clients_that_say_nothing_of_the_kind_go_on_working(
    headers: dict[str, str], gateway: RunningGateway
) -> None:
    content = json.dumps(ASKED)
    answer = gateway.http.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 200


def test_whoever_has_a_key_may_call_his_json_what_he_likes(
    tmp_path: Path, account: Account
) -> None:
    gateway = other_gateway(tmp_path, account, keys=["right"])
    headers = {"content-type": "text/plain", "authorization": "Bearer right"}
    content = json.dumps(ASKED)
    answer = gateway.http.post("/v1/chat/completions", content=content, headers=headers)
    gateway.stop()
    assert answer.status_code == 200


PAGE = "https://app.example"


def preflight(gateway: RunningGateway, origin: str) -> httpx2.Response:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    return gateway.http.options("/v1/chat/completions", headers=asked)


def test_pages_of_the_named_origins_may_ask_and_no_others(tmp_path: Path, account: Account) -> None:
    gateway = other_gateway(tmp_path, account, cors_origins=[PAGE, "http://localhost:3000"])
    leave = preflight(gateway, PAGE)
    assert leave.status_code == 200
    assert leave.headers["access-control-allow-origin"] == PAGE
    assert "POST" in leave.headers["access-control-allow-methods"]
    for name in ("authorization", "content-type", "x-stainless-os"):
        assert name in leave.headers["access-control-allow-headers"]
    site = {"origin": PAGE, "sec-fetch-site": "cross-site"}
    good = gateway.chat(headers=site)
    assert good.status_code == 200
    wrong = gateway.http.post("/v1/chat/completions", json={}, headers=site)
    assert wrong.status_code == 400
    for answer in (good, wrong):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "Origin" in answer.headers["vary"]
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    unasked = {**site, "content-type": "text/plain"}
    content = json.dumps(ASKED)
    simple = gateway.http.post("/v1/chat/completions", content=content, headers=unasked)
    asked_before = len(account.requests)
    for origin in (
        "https://evil.example",
        "null",
        "https://app.example.evil",
        "http://app.example",
    ):
        refused = preflight(gateway, origin)
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers
        assert gateway.chat(headers={"origin": origin}).status_code == 403
    gateway.stop()
    assert simple.status_code == 415
    assert len(account.requests) == asked_before


def test_every_page_may_ask_only_with_a_key(tmp_path: Path, account: Account) -> None:
    gateway = other_gateway(tmp_path, account, cors_origins=["*"], keys=["right"])
    assert preflight(gateway, PAGE).headers["access-control-allow-origin"] == "*"
    refused = gateway.chat(headers={"origin": PAGE})
    taken = gateway.chat(headers={"origin": PAGE, "authorization": "Bearer right"})
    gateway.stop()
    assert (refused.status_code, taken.status_code) == (401, 200)
    assert refused.headers["access-control-allow-origin"] == "*"  # so that the page reads why


@pytest.mark.parametrize(
    "wrong", [["*"], ["null"], ["app.example"], ["https://app.example/"], ["https://*.example"]]
)
def test_origins_that_could_never_be_or_must_not_be_are_refused(wrong: list[str]) -> None:
    with pytest.raises(ValueError, match=r"cors_origins|look like"):
        GatewaySettings(cors_origins=wrong)


def test_without_the_setting_a_preflight_names_it(gateway: RunningGateway) -> None:
    refused = preflight(gateway, PAGE)
    assert refused.status_code == 405
    assert "gateway.cors_origins" in refused.json()["error"]["message"]
    assert "access-control-allow-origin" not in refused.headers


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


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"] if answer.is_error else ""


def test_only_the_named_models_pass_beside_those_of_tasks(tmp_path: Path, account: Account) -> None:
    gateway = other_gateway(tmp_path, account, pass_models=["small", "embed"])
    refused = (403, "model_not_allowed")
    chat = "/v1/chat/completions"

    def post(path: str, body: dict[str, Any]) -> tuple[int, str]:
        return code_of(gateway.http.post(path, json=body))

    assert post(chat, ASKED) == (200, "")
    assert post("/v1/embeddings", {"model": "desk", "input": "x"}) == (200, "")
    asked = len(account.requests)
    assert post(chat, OTHER) == refused
    assert post("/v1/responses", {"model": "another", "input": "x"}) == refused
    assert post("/v1/embeddings", {"model": "another", "input": "x"}) == refused
    assert post("/v1/moderations", {"input": "x"}) == refused
    for field in ("models", "fallbacks", "Model"):
        assert post(chat, {**OTHER, "model": "small", field: ["another"]}) == refused
    sound = {"file": ("a.wav", b"x")}
    form = gateway.http.post("/v1/audio/transcriptions", files=sound, data={"model": "another"})
    assert code_of(form) == refused
    assert code_of(gateway.http.get("/v1/models/another")) == refused
    assert len(account.requests) == asked
    for content in (b'{"model": "another", "model": "small", "input": "x"}',
                    b'{"model": "embed", "input": "%s"}' % (b"x" * (1 << 21))):  # fmt: skip
        assert gateway.http.post("/v1/embeddings", content=content).status_code == 200
        assert b"another" not in account.last()[1]
    assert post(chat, {**OTHER, "model": "small"}) == (200, "")
    assert gateway.http.get("/v1/models/small").status_code == 200
    told = gateway.metric("rejected_total", reason="model")
    gateway.stop()
    assert told == 9


def test_no_more_pass_in_a_minute_than_the_ceiling_and_tasks_are_beyond_it(
    tmp_path: Path, account: Account
) -> None:
    gateway = other_gateway(tmp_path, account, pass_requests_per_minute=3)
    found = [
        gateway.http.post(path, json={**OTHER, "input": "x"})
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/embeddings") * 2
    ]
    task = gateway.chat()
    gateway.stop()
    assert [code_of(answer) for answer in found[:3]] == [(200, "")] * 3
    assert [code_of(answer) for answer in found[3:]] == [(429, "rate_limit_exceeded")] * 3
    assert all(0 < int(answer.headers["retry-after"]) <= 60 for answer in found[3:])
    assert task.status_code == 200
    assert len(account.requests) == 4


def test_the_ceiling_holds_in_every_minute_not_in_each_by_the_clock() -> None:
    now = 0.0
    allowance = Allowance([], 2, clock=lambda: now)

    def passes() -> str:
        try:
            allowance.count()
        except Rejected as rejected:
            return rejected.headers["retry-after"]
        return "yes"

    told = {}
    for now in (0.0, 50.0, 59.5, 60.0, 61.0, 110.0):
        told[now] = passes()
    assert told == {0.0: "yes", 50.0: "yes", 59.5: "1", 60.0: "yes", 61.0: "49", 110.0: "yes"}


def test_check_names_what_is_open_where_several_may_come(tmp_path: Path) -> None:
    def said(**gateway: Any) -> str:
        return " ".join(notes(settings_for(tmp_path, gateway=gateway)))

    limits = {"pass_models": ["a"], "pass_requests_per_minute": 9}
    for keys in ([], ["one", "two"]):
        assert "gateway.pass_models and gateway.pass_requests_per_minute" in said(keys=keys)
        assert "gateway.pass_requests_per_minute" in said(keys=keys, pass_models=["a"])
        assert "gateway.pass" not in said(keys=keys, **limits)
    assert "gateway.pass" not in said(keys=["one"])


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
