"""The operator port: who gets in, from where, and that an approval is bound to its report."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from console_server import TOKEN, seed, show_guarded
from operating import BELOW, LABELS, TASK, Desk, open_desk
from prometheus_client import CollectorRegistry, Counter
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from service.console import auth
from service.console.app import console_app
from service.console.auth import Sessions, safe_path
from service.console.charts import loss_chart
from service.operator.operations import Operations
from service.operator.status import Progress
from service.sections import LearnerSettings

ORIGIN = "http://127.0.0.1"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
READS = [
    "/api/status",
    "/api/activity",
    "/api/ticks",
    f"/api/tasks/{TASK}/versions",
    f"/api/tasks/{TASK}/versions/5",
    f"/api/tasks/{TASK}/versions/5/card",
    "/api/dead-letters",
    "/api/unknown-outcomes",
    "/api/events",
    "/api/openapi.json",
]
WRITES = [
    f"/api/tasks/{TASK}/versions/5/approve",
    f"/api/tasks/{TASK}/versions/5/reject",
    f"/api/tasks/{TASK}/rollback",
    f"/api/tasks/{TASK}/train",
    "/api/jobs/all/pause",
    "/api/jobs/all/resume",
    "/api/dead-letters/flywheel.prompts/0/17/replay",
    "/api/unknown-outcomes/k/release",
    "/api/unknown-outcomes/k/drop",
    "/api/login-codes",
]
PAGES = [
    "/",
    f"/tasks/{TASK}/versions",
    f"/tasks/{TASK}/versions/4",
    f"/tasks/{TASK}/versions/5",
    "/dead-letters",
    "/unknown-outcomes",
]


def never_ready() -> None:
    raise OSError("no space left")


def client_of(desk: Desk, **options: Any) -> TestClient:
    app = console_app(desk.operations, TOKEN, desk.settings, failure_seconds=0.0, **options)
    return TestClient(app, base_url=ORIGIN, follow_redirects=False)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        seed(opened)
        yield opened


@pytest.fixture
def client(desk: Desk) -> TestClient:
    return client_of(desk)


@pytest.fixture
def browser(client: TestClient) -> TestClient:
    """A client that has logged in by a one-time link."""
    link = client.post("/api/login-codes", headers=BEARER, json={"operator": "ada"}).json()["link"]
    assert client.get(link.removeprefix(ORIGIN)).status_code == 200
    return client


def report_of(client: TestClient, number: int) -> str:
    answer = client.get(f"/api/tasks/{TASK}/versions/{number}", headers=BEARER)
    return str(answer.json()["version"]["report"])


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Cookie": "x=y"}])
def test_nothing_of_the_api_opens_without_the_token(
    client: TestClient, headers: dict[str, str]
) -> None:
    for path in READS:
        assert client.get(path, headers=headers).status_code == 401, path
    for path in WRITES:
        assert client.post(path, headers=headers, json={}).status_code == 401, path


def test_no_page_opens_without_a_session(client: TestClient) -> None:
    for path in PAGES:
        answer = client.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/login"), path
        assert "support" not in answer.text


def test_the_token_opens_every_read(client: TestClient) -> None:
    for path in READS:
        if path != "/api/events":
            assert client.get(path, headers=BEARER).status_code == 200, path


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "evil@x:8701"])
def test_a_foreign_host_is_refused_even_with_the_token(client: TestClient, host: str) -> None:
    for path in ("/api/status", "/", "/login", "/static/console.css"):
        answer = client.get(path, headers=BEARER | {"Host": host})
        assert answer.status_code == 421, path


@pytest.mark.parametrize("host", ["localhost:8701", "[::1]:8701", "flywheel.example", "ops.lan"])
def test_loopback_and_named_hosts_are_served(tmp_path: Path, host: str) -> None:
    learner = LearnerSettings(public_url="https://flywheel.example/", allowed_hosts=["ops.lan"])
    with open_desk(tmp_path, learner=learner) as desk:
        answer = client_of(desk).get("/api/status", headers=BEARER | {"Host": host})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {},  # a browser always tells where a form comes from
    ],
)
def test_a_session_cannot_be_ridden_from_another_site(
    desk: Desk, browser: TestClient, headers: dict[str, str]
) -> None:
    paths = [
        f"/api/tasks/{TASK}/versions/5/approve",
        f"/tasks/{TASK}/versions/5/approve",
        "/logout",
        "/jobs/all/pause",
    ]
    for path in paths:
        assert browser.post(path, headers=headers).status_code == 403, path
    assert not desk.operations.status().all_paused


def test_a_foreign_page_cannot_log_somebody_in(client: TestClient) -> None:
    form = {"token": TOKEN}
    foreign = client.post("/login", data=form, headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    own = client.post("/login", data=form, headers={"Origin": ORIGIN})
    assert own.status_code == 200
    assert auth.COOKIE in own.cookies


def test_a_one_time_link_works_once(client: TestClient) -> None:
    made = client.post("/api/login-codes", headers=BEARER).json()
    path = made["link"].removeprefix(ORIGIN)

    first = client.get(path)
    client.cookies.clear()
    second = client.get(path)

    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert second.status_code == 401
    assert "set-cookie" not in second.headers
    assert client.get("/login?code=guess").status_code == 401


def test_codes_and_sessions_expire(tmp_path: Path) -> None:
    clock = [1_000.0]
    sessions = Sessions(TOKEN, lambda: clock[0])
    code, cookie = sessions.make_code("ada"), sessions.make_cookie("ada")
    clock[0] += auth.CODE_SECONDS + 1
    assert sessions.take_code(code) is None
    assert sessions.read_cookie(cookie) == "ada"
    clock[0] += auth.SESSION_SECONDS
    assert sessions.read_cookie(cookie) is None


def test_a_session_is_signed_and_ends_with_its_token() -> None:
    cookie = Sessions(TOKEN).make_cookie("ada")
    other = Sessions("another-token").make_cookie("eve")
    assert Sessions("another-token").read_cookie(cookie) is None
    body, signature = cookie.split(".")
    assert Sessions(TOKEN).read_cookie(f"{other.split('.')[0]}.{signature}") is None
    assert Sessions(TOKEN).read_cookie(f"{body}.{'0' * 64}") is None
    for broken in ("", ".", "ä.ö", f"{body}"):
        assert Sessions(TOKEN).read_cookie(broken) is None


@pytest.mark.parametrize(
    "path", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a\nb"]
)
def test_logging_in_never_leads_to_another_site(path: str) -> None:
    assert safe_path(path) == "/"
    assert safe_path("/dead-letters") == "/dead-letters"


def test_a_wrong_token_is_answered_slowly_and_not_in_parallel(desk: Desk) -> None:
    app = console_app(desk.operations, TOKEN, desk.settings, failure_seconds=0.05)
    client = TestClient(app, base_url=ORIGIN)
    headers = {"Origin": ORIGIN}
    import time

    start = time.monotonic()
    for _ in range(3):
        assert client.post("/login", data={"token": "no"}, headers=headers).status_code == 401
    assert time.monotonic() - start >= 0.15


def test_every_answer_carries_the_strict_headers(browser: TestClient) -> None:
    for path in [*PAGES, "/login", "/static/console.js", "/api/status", "/nowhere", "/healthz"]:
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"


def test_pages_hold_no_inline_script_or_style(browser: TestClient) -> None:
    for path in [*PAGES, "/login"]:
        html = browser.get(path).text
        assert not re.search(r"<script(?![^>]* src=)", html), path
        assert not re.search(r"\sstyle=|\son[a-z]+=|<style", html), path
        assert not re.search(r"(src|href)=\"https?:", html), path


def test_user_text_is_escaped(browser: TestClient, desk: Desk) -> None:
    desk.dead_letter(30, b"<script>alert(1)</script>", "<b>no</b>")
    html = browser.get("/dead-letters").text
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert "<b>no" not in html
    assert "&lt;used&gt;" in browser.get(f"/tasks/{TASK}/versions/5").text


def test_an_approval_through_the_api_is_bound_to_the_report(client: TestClient, desk: Desk) -> None:
    path = f"/api/tasks/{TASK}/versions/5/approve"
    stale = client.post(path, headers=BEARER, json={"report": "0" * 64})
    assert stale.status_code == 409
    assert "look again" in stale.json()["error"]["message"]
    assert client.post(path, headers=BEARER, json={}).status_code == 422

    done = client.post(
        path,
        headers=BEARER | {"X-Flywheel-Operator": "ada%20l"},
        json={"report": report_of(client, 5)},
    )
    assert done.status_code == 200
    assert done.json()["operator"] == "ada l"
    served = desk.live().tasks[TASK].champion
    assert served is not None
    assert served.number == 5


def test_the_page_posts_the_report_that_it_shows(browser: TestClient, desk: Desk) -> None:
    page = browser.get(f"/tasks/{TASK}/versions/5").text
    shown = re.search(r'name="report" value="([0-9a-f]{64})"', page)
    assert shown is not None
    version = next(v for v in desk.operations.versions(TASK) if v.number == 5)
    assert shown[1] == version.report
    with desk.database.snapshot() as tx:
        from storage.versions import version_by_number

        stored = version_by_number(tx, TASK, 5)
    assert stored is not None
    desk.evaluate(stored, threshold=0.9)  # meanwhile

    answer = browser.post(
        f"/tasks/{TASK}/versions/5/approve",
        data={"report": shown[1]},
        headers={"Origin": ORIGIN},
    )
    assert answer.status_code == 409
    assert "look again" in answer.text
    assert desk.operations.status().tasks[0].champion.number == 3  # type: ignore[union-attr]


def test_the_page_says_which_pairs_needed_no_label(browser: TestClient) -> None:
    page = browser.get(f"/tasks/{TASK}/versions/5").text
    assert "2,470 were decided by both giving the same answer" in page
    assert "128 labels were bought where they differ" in page
    assert "No label could be had for 2" in page


def test_what_would_serve_nothing_has_a_box_to_tick(
    browser: TestClient, client: TestClient, desk: Desk
) -> None:
    report = desk.evaluate(desk.train(), threshold=None)
    page = f"/tasks/{TASK}/versions/6"
    assert 'name="serves_nothing" required' in browser.get(page).text
    assert 'name="serves_nothing"' not in browser.get(f"/tasks/{TASK}/versions/5").text

    form = {"report": report}
    unticked = browser.post(f"{page}/approve", data=form, headers={"Origin": ORIGIN})
    assert unticked.status_code == 409
    assert "answers nothing by itself" in unticked.text
    refused = client.post(f"/api{page}/approve", headers=BEARER, json=form)
    assert refused.status_code == 409

    browser.post(
        f"{page}/approve", data={**form, "serves_nothing": "on"}, headers={"Origin": ORIGIN}
    )
    served = desk.live().tasks[TASK].champion
    assert served is not None
    assert served.number == 6


def test_a_target_above_the_ceiling_has_a_box_to_tick(browser: TestClient, desk: Desk) -> None:
    report = desk.evaluate(desk.train(), ceiling=BELOW)
    page = f"/tasks/{TASK}/versions/6"
    shown = browser.get(page).text
    assert 'name="above_ceiling" required' in shown
    assert 'name="above_ceiling"' not in browser.get(f"/tasks/{TASK}/versions/5").text

    form = {"report": report}
    unticked = browser.post(f"{page}/approve", data=form, headers={"Origin": ORIGIN})
    assert unticked.status_code == 409
    assert "more than the teacher agrees with itself" in unticked.text
    browser.post(
        f"{page}/approve", data={**form, "above_ceiling": "on"}, headers={"Origin": ORIGIN}
    )
    served = desk.live().tasks[TASK].champion
    assert served is not None
    assert served.number == 6


def test_a_parked_prompt_waits_for_a_persons_word(browser: TestClient, desk: Desk) -> None:
    desk.park("app-17", "the <b>card</b> was swallowed", LABELS[0], LABELS[1])
    page = f"/tasks/{TASK}/parked"
    shown = browser.get(page).text
    assert "the &lt;b&gt;card&lt;/b&gt; was swallowed" in shown
    form = {"event_id": "app-17", "label": "none of ours"}
    refused = browser.post(page, data=form, headers={"Origin": ORIGIN})
    assert refused.status_code == 409
    assert "is not one of the" in refused.text
    done = browser.post(page, data={**form, "label": LABELS[1]}, headers={"Origin": ORIGIN})
    assert done.status_code == 303
    assert "contradicts itself about no prompt" in browser.get(page).text


def test_verbs_reach_operations(client: TestClient, desk: Desk) -> None:
    def post(path: str, **body: object) -> int:
        return client.post(f"/api/{path}", headers=BEARER, json=body).status_code

    assert post(f"tasks/{TASK}/versions/5/reject", reason="") == 409
    assert post(f"tasks/{TASK}/versions/5/reject", reason="no") == 200
    assert post(f"tasks/{TASK}/rollback", reason="complaints") == 200
    assert post(f"tasks/{TASK}/rollback", to=2, reason="x") == 409
    assert post(f"tasks/{TASK}/train") == 200
    assert post("jobs/train/pause") == 200
    assert post("jobs/lunch/pause") == 409
    assert post("jobs/train/resume") == 200
    assert post("dead-letters/flywheel.prompts/0/17/replay") == 200
    assert post(f"unknown-outcomes/{desk.operations.unknown_outcomes()[0].key}/drop") == 200
    assert desk.board.take_wish(TASK)
    assert len(desk.writer.durable) == 1
    states = {v.number: v.state for v in desk.operations.versions(TASK)}
    assert (states[1], states[5]) == ("champion", "rejected")


def test_a_body_that_is_too_long_is_not_read(client: TestClient) -> None:
    path = f"/api/tasks/{TASK}/versions/5/reject"
    answer = client.post(path, headers=BEARER, json={"reason": "x" * 100_000})
    assert answer.status_code == 413


def test_probes_and_scrapers_need_no_token_and_learn_no_text(desk: Desk) -> None:
    registry = CollectorRegistry()
    Counter("flywheel_things", "Things.", registry=registry).inc()
    client = client_of(desk, registry=registry)
    pod = {"Host": "10.1.2.3:8701"}
    assert client.get("/healthz", headers=pod).text == "ok\n"
    assert client.get("/readyz", headers=pod).status_code == 200
    assert "flywheel_things_total 1.0" in client.get("/metrics", headers=pod).text
    assert client_of(desk, ready=never_ready).get("/readyz").status_code == 503


def test_gateway_routes_keep_their_own_key(desk: Desk) -> None:
    def live(request: Any) -> PlainTextResponse:
        return PlainTextResponse(request.headers.get("authorization", "none"))

    client = client_of(desk, extra_routes=[Route("/gateway/live", live)])
    headers = {"Host": "learner.svc:8701", "Authorization": "Bearer internal"}
    assert client.get("/gateway/live", headers=headers).text == "Bearer internal"


def test_the_status_is_the_same_for_page_and_api(browser: TestClient) -> None:
    status = browser.get("/api/status").json()
    page = browser.get("/").text
    assert status["needs"][0]["sentence"] == "support-v5 waits for your approval"
    assert status["needs"][0]["sentence"] in page
    assert status["teacher"]["scripted"]
    assert "scripted teacher" in page


def test_forced_answers_and_guards_are_shown_when_there_are_any(
    browser: TestClient, desk: Desk
) -> None:
    def text() -> str:
        return " ".join(re.sub(r"<[^>]+>", "", browser.get("/").text).split())

    assert "nobody to ask" not in text()
    assert "Trusted now" not in text()

    show_guarded(desk)
    assert "3.4 % of the last day answered unsure, with nobody to ask" in text()
    assert "of that 71.2 % agrees (60.1 to 80.4 %)." in text()
    assert "Trusted now: confidences from 0.84 on." in text(), "the strictest of the two"
    assert "31% of the newest prompts are beyond its reach." in text()

    show_guarded(desk, thresholds=(0.84, None))
    assert "Trusted now: nothing." in text()

    figures = desk.board.figures(TASK)
    desk.board.show(TASK, replace(figures, guards=figures.guards[-1:]))
    desk.operations.note_change()
    assert "31% of the newest prompts are beyond its reach." in text()
    assert "Trusted now" not in text(), "what is beyond reach raises no threshold"
    assert "Until that is over" not in text()


def test_an_empty_learner_has_pages_too(tmp_path: Path) -> None:
    with open_desk(tmp_path) as desk:
        client = client_of(desk)
        for path in ("/", f"/tasks/{TASK}/versions", "/dead-letters", "/unknown-outcomes"):
            assert client.get(path, headers=BEARER).status_code == 200, path
        desk.train()
        assert client.get(f"/tasks/{TASK}/versions/1", headers=BEARER).status_code == 200
        assert client.get(f"/tasks/{TASK}/versions/9", headers=BEARER).status_code == 409
        assert client.get("/nowhere", headers=BEARER).status_code == 404


def test_the_event_stream_tells_when_something_changed(desk: Desk) -> None:
    from service.console.api import fingerprint

    def look(operations: Operations) -> str:
        operations.note_change()
        return fingerprint(operations.status())

    prints = [look(desk.operations)]
    desk.operations.pause("train", operator="ada")
    prints.append(look(desk.operations))
    desk.dead_letter(99, b"x", "poison")
    prints.append(look(desk.operations))
    assert all(one != other for one, other in itertools.pairwise(prints))


def test_the_page_shows_recipe_training_and_loss_curve(browser: TestClient) -> None:
    page = browser.get(f"/tasks/{TASK}/versions/5").text
    assert "<strong>encoder-lora</strong>: Adapters tune the encoder" in page
    assert "<dt>Weights tuned</dt><dd>1,327,876</dd>" in page
    assert "Loss while training" in page
    assert 'aria-label="The loss fell from 1.73 at step 15 to 0.431 at step 1,463."' in page
    assert f'href="/api/tasks/{TASK}/versions/5/card"' in page


def test_a_head_has_no_loss_curve(browser: TestClient) -> None:
    page = browser.get(f"/tasks/{TASK}/versions/3").text
    assert "<strong>head</strong>" in page
    assert "Loss while training" not in page


def test_the_loss_curve_lies_within_its_axes() -> None:
    chart = loss_chart({"loss_curve": [[10, 4.2], [20, 2.0], [30, 0.5]]})
    assert chart is not None
    assert chart.lines == ("0,16 500,60 1000,90",)
    assert [row.text for row in chart.rows] == ["0", "2.5", "5"]
    assert [column.text for column in chart.columns] == ["step 10", "step 30"]
    assert loss_chart({"loss_curve": [[1, 0.0], [2, 0.0]]}) is not None
    assert loss_chart({"loss_curve": [[1, 0.3]]}) is None
    assert loss_chart({}) is None


def test_the_model_card_is_read_as_text(browser: TestClient) -> None:
    answer = browser.get(f"/api/tasks/{TASK}/versions/5/card")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "# support-v5-" in answer.text


def test_training_shows_its_loss(desk: Desk, browser: TestClient) -> None:
    desk.board.progress = Progress(step=3, total=8, phase="tune", loss=0.4312)
    assert "loss 0.431" in browser.get("/").text
