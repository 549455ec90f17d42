"""Approve, reject and roll back by keyboard: a real gateway follows, and the console says so."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browser_rig import (
    focus_is_seen,
    logged_in,
    press_until_at,
    press_until_focused,
    running_chromium,
)
from console_server import serve
from gateway_rig import (
    ALL_TEXTS,
    LABELS,
    TASK,
    RunningGateway,
    settings_for,
    shared_students,
    wait_until,
)
from operating import Desk, open_desk

from pipelines.students.head import save_head
from pipelines.types import StudentVersion
from service.keys import open_keys
from service.learner.gateway_api import gateway_routes
from service.learner.leases import LeaseBook
from service.sections import BudgetSettings, TaskSettings
from storage.durable import write_json
from storage.reports import Golden

pytestmark = pytest.mark.browser


@dataclass
class Office:
    """A console over real students, and the gateway that serves what is approved in it."""

    desk: Desk
    gateway: RunningGateway
    url: str

    def candidate(self) -> StudentVersion:
        """A version that waits."""
        version = self.desk.train()
        self.desk.evaluate(version, threshold=0.0)
        return version

    def answers(self) -> tuple[str | None, str | None]:
        """Which version a customer's answer names: in its header, and as its model."""
        answer = self.gateway.chat(ALL_TEXTS[0])
        return answer.headers.get("x-flywheel-version"), answer.json().get("model")

    def wait_for(self, version: StudentVersion) -> None:
        wait_until(lambda: self.answers() == (version.name, version.name))


def fill_with_heads(desk: Desk) -> None:
    """From here on the desk's students are real: small heads on the installed encoder."""
    students = shared_students()
    students.give_encoder(desk.folder)
    desk.encoder = students.encoder_digest
    head = students.head()
    answers = zip(ALL_TEXTS, head.answer(students.vectors), strict=True)
    desk.golden = [
        Golden(text=text, label=str(answer.label), confidence=float(answer.confidence))
        for text, answer in answers
    ]
    desk.fill = lambda scratch, number: save_head(
        scratch, head, {"encoder": students.encoder_digest, "task": TASK}
    )


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    yield from running_chromium()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    task = TaskSettings(models=["desk"], labels=list(LABELS))
    with open_desk(tmp_path, tasks={TASK: task}) as desk:
        fill_with_heads(desk)
        routes = gateway_routes(
            keys=open_keys(tmp_path),
            artifacts=desk.artifacts,
            live_path=desk.live_path,
            leases=LeaseBook(desk.database, BudgetSettings(), now=desk.clock),
            on_status=desk.gateways.heard,
        )
        with serve(desk, routes) as url:
            folder = tmp_path / "run"
            folder.mkdir(exist_ok=True)
            write_json(folder / "learner.json", {"port": int(url.rsplit(":", 1)[1])})
            gateway = RunningGateway(settings_for(tmp_path))
            yield Office(desk=desk, gateway=gateway, url=url)
            gateway.stop()


def test_a_real_gateway_follows_what_the_keyboard_decides(chromium: Any, office: Office) -> None:
    first = office.candidate()
    with logged_in(chromium, office.url) as page:
        approve(page, first)
        office.wait_for(first)
        second = office.candidate()
        approve(page, second)
        office.wait_for(second)
        page.get_by_text("1 of 1 gateway serves support-v2.").wait_for()

        third = office.candidate()
        reject(page, third, "worse on vouchers")
        assert office.answers() == (second.name, second.name)

        roll_back(page, first, "complaints about refunds")
        office.wait_for(first)
        go_to_overview(page)
        page.get_by_text("1 of 1 gateway serves support-v1.").wait_for()
    told = [entry.sentence for entry in office.desk.operations.activity(50, kind="swap")]
    assert told[0] == "1 gateway began to serve support-v1"
    by_whom = [
        (one.name, one.operator, one.rolled_back) for one in office.desk.operations.champions(TASK)
    ]
    assert by_whom == [
        ("support-v1", "ada", False),
        ("support-v2", "ada", False),
        ("support-v1", "ada", True),
    ]


def press(page: Any, text: str) -> None:
    """Walk to what reads so, see that one sees where one is, and press it."""
    press_until_focused(page, text)
    assert focus_is_seen(page), text
    page.keyboard.press("Enter")


def go_to_overview(page: Any) -> None:
    press(page, "flywheel")
    page.get_by_role("heading", name="The loop").wait_for()


def approve(page: Any, version: StudentVersion) -> None:
    """From the overview, which shows by itself that somebody is needed."""
    page.get_by_role("link", name="Read the report and decide").wait_for()
    press(page, "Read the report and decide")
    page.wait_for_url(f"**/versions/{version.number}")
    press(page, f"Approve support-v{version.number}")
    page.wait_for_url("**done=approved")
    go_to_overview(page)


def reject(page: Any, version: StudentVersion, reason: str) -> None:
    page.get_by_role("link", name="Read the report and decide").wait_for()
    press(page, "Read the report and decide")
    page.wait_for_url(f"**/versions/{version.number}")
    press_until_at(page, "reason")
    page.keyboard.type(reason)
    press(page, f"Reject support-v{version.number}")
    page.wait_for_url("**done=rejected")
    go_to_overview(page)


def roll_back(page: Any, version: StudentVersion, reason: str) -> None:
    press(page, "All versions (3)")
    page.wait_for_url("**/versions")
    press(page, f"Roll back to support-v{version.number}")
    press_until_at(page, f"reason-{version.number}")
    page.keyboard.type(reason)
    press(page, f"Roll back to support-v{version.number}")
    page.wait_for_url("**done=rolled-back")
