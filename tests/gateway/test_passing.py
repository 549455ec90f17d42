"""The rest of /v1 passes with the official client; what an account keeps does not."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from gateway_rig import (
    RunningGateway,
    Students,
    Teacher,
    serving,
    settings_for,
    shared_students,
    wait_until,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


class Account(Teacher):
    """A teacher with the other endpoints of its kind."""

    def app(self) -> Starlette:
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/responses", self._responses, methods=["POST"]),
            Route("/v1/{path:path}", self._any, methods=["GET", "POST", "DELETE"]),
        ]
        return Starlette(routes=routes)

    async def _responses(self, request: Request) -> Response:
        asked = json.loads(await request.body())
        self.requests.append((dict(request.headers), json.dumps(asked).encode()))
        if not asked.get("stream"):
            return JSONResponse({"id": "resp_1", "object": "response", "model": asked["model"],
                                 "output": [], "created_at": 1})  # fmt: skip
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[bytes]:
        self.streaming += 1
        try:
            async for event in self._letters():
                yield event
                await asyncio.sleep(self.piece_seconds)
        finally:
            self.streaming -= 1

    async def _letters(self) -> AsyncIterator[bytes]:
        for letter in self.answer:
            yield (
                b'data: {"type": "response.output_text.delta", "delta": "%s"}\n\n' % letter.encode()
            )

    async def _any(self, request: Request) -> Response:
        body = await request.body()
        self.requests.append((dict(request.headers), body))
        if request.url.path == "/v1/embeddings":
            vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
            return JSONResponse({"object": "list", "data": [vector], "model": "m",
                                 "usage": {"prompt_tokens": 1, "total_tokens": 1}})  # fmt: skip
        if request.url.path.startswith("/v1/models/"):
            return JSONResponse({"id": request.url.path.rpartition("/")[2], "object": "model",
                                 "created": 1, "owned_by": "them"})  # fmt: skip
        return JSONResponse({"path": request.url.path, "sha": hashlib.sha256(body).hexdigest(),
                             "results": [], "id": "x", "model": "m"})  # fmt: skip


@pytest.fixture(scope="session")
def students() -> Students:
    return shared_students()


@pytest.fixture
def account() -> Iterator[Account]:
    account = Account()
    with serving(account.app()) as port:
        account.port = port
        yield account


@pytest.fixture
def gateway(tmp_path: Path, account: Account) -> Iterator[RunningGateway]:
    running = RunningGateway(settings_for(tmp_path, account))
    yield running
    running.stop()


def client(gateway: RunningGateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="app-key", max_retries=0)


def test_the_official_clients_other_endpoints_pass(
    gateway: RunningGateway, account: Account
) -> None:
    app = client(gateway)
    found = app.embeddings.create(model="any", input="where is it", encoding_format="float")
    assert found.data[0].embedding == [0.5, 0.25]
    assert app.responses.create(model="any", input="hi").id == "resp_1"
    said = [event.delta for event in app.responses.create(model="any", input="hi", stream=True)]  # type: ignore[union-attr]
    assert said == list("refund")
    assert app.completions.create(model="any", prompt="hi").id == "x"
    assert app.moderations.create(input="hi").id == "x"
    assert app.models.retrieve("any").owned_by == "them"
    assert all("app-key" not in str(headers) for headers, _ in account.requests)


def test_the_teachers_stream_is_closed_when_the_app_leaves(
    gateway: RunningGateway, account: Account
) -> None:
    account.answer = "refund" * 2_000
    asked = {"model": "any", "input": "hi", "stream": True}
    for pieces in (0, 1, 3):
        with gateway.http.stream("POST", "/v1/responses", json=asked) as answer:
            arriving = answer.iter_raw()
            for _ in range(pieces):
                next(arriving)
        wait_until(lambda: account.streaming == 0)


def test_a_large_upload_passes_whole_and_is_not_kept(
    gateway: RunningGateway, account: Account
) -> None:
    sound = bytes(range(256)) * 40_000
    answer = gateway.http.post(
        "/v1/audio/transcriptions", files={"file": ("a.wav", sound)}, data={"model": "whisper"}
    )
    assert answer.status_code == 200
    (headers, body) = account.requests[-1]
    assert headers["content-type"].startswith("multipart/form-data; boundary=")
    assert sound in body
    assert answer.json()["sha"] == hashlib.sha256(body).hexdigest()
    assert answer.headers["x-flywheel-served-by"] == "teacher"


def test_a_tasks_model_gets_the_teachers_name_and_is_counted(
    gateway: RunningGateway, account: Account
) -> None:
    client(gateway).embeddings.create(model="desk", input="x", encoding_format="float")
    assert json.loads(account.requests[-1][1])["model"] == gateway.settings.teacher.model
    assert gateway.metric("unsupported_total", task="support", reason="endpoint") == 1
    wait_until(lambda: [event.past for event in gateway.events()] == ["endpoint"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"), ("POST", "/v1/chat/completions/chatcmpl-1"),
        ("POST", "/v1/batches"), ("POST", "/v1/fine_tuning/jobs"), ("GET", "/v1/vector_stores"),
        ("POST", "/v1/organization/admin_api_keys"), ("POST", "/v1/embeddings/../files"),
        ("POST", "/v1/embeddings/%2e%2e/files"), ("POST", "/v1/embeddings%2f..%2ffiles"),
        ("POST", "/v1/embeddings/..;/files"), ("POST", "/v1/images/a b"), ("POST", "/v1/"),
        ("GET", "/v1/models/x/../../files"), ("GET", "/v1/embeddings"),
    ],
)  # fmt: skip
def test_what_an_account_keeps_does_not_pass(
    method: str, path: str, gateway: RunningGateway, account: Account
) -> None:
    answer = gateway.http.request(method, httpx2.URL(gateway.url + path), json={"model": "any"})
    assert answer.status_code in (404, 405)
    assert not account.requests


def test_an_operator_may_let_more_pass_or_nothing(tmp_path: Path, account: Account) -> None:
    settings = settings_for(tmp_path, account, gateway={"pass_through": ["files"]})
    gateway = RunningGateway(settings)
    assert gateway.http.post("/v1/files", json={}).status_code == 200
    refused = gateway.http.post("/v1/embeddings", json={})
    gateway.stop()
    assert refused.status_code == 404
    assert "gateway.pass_through" in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/v1//chat/completions"])
def test_slashes_make_no_difference(path: str, gateway: RunningGateway) -> None:
    body = {"model": "desk", "messages": [{"role": "user", "content": "hi"}]}
    assert gateway.http.post(path, json=body).status_code == 200


def test_a_wrong_path_is_told_the_right_one(gateway: RunningGateway) -> None:
    for path in ("/chat/completions", "/v1/v1/chat/completions"):
        answer = gateway.http.post(path, json={})
        assert answer.status_code == 404
        assert "/v1/chat/completions" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
     {"sec-fetch-site": "same-site"}],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/feedback"])
def test_no_web_page_uses_our_key(
    headers: dict[str, str], path: str, gateway: RunningGateway, account: Account
) -> None:
    body: dict[str, Any] = {"model": "any", "messages": [], "input": "x"}
    answer = gateway.http.post(path, json=body, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "other_origin"
    assert not account.requests
    assert gateway.metric("rejected_total", reason="origin") == 1


def test_what_passes_may_take_longer_than_a_label(tmp_path: Path, account: Account) -> None:
    account.latency = 1.5
    gateway = RunningGateway(settings_for(tmp_path, account, upstream={"timeout": "1s"}))
    body = {"model": "another", "messages": [{"role": "user", "content": "hi"}]}
    answer = gateway.http.post("/v1/chat/completions", json=body)
    gateway.stop()
    assert answer.status_code == 200
