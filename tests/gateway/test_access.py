"""Who may ask: names of the host, pages, forms, origins, models and how many a minute."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gateway_rig import (
    RunningGateway,
    settings_for,
)
from http_rig import ASKED, OTHER, Account, other_gateway

from service.care.check import notes
from service.gateway.allowance import Allowance
from service.gateway.turn import Rejected
from service.sections import GatewaySettings

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
