"""The console in a real browser: what an operator does, by hand and by keyboard."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_rig import (
    focus_is_seen,
    logged_in,
    one_time_link,
    press_until_focused,
    running_chromium,
)
from console_server import Console, open_console, show_guarded
from operating import TASK

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    yield from running_chromium()


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    with open_console(tmp_path, training=True) as opened:
        yield opened


@pytest.fixture
def page(chromium: Any, console: Console) -> Iterator[Any]:
    with logged_in(chromium, console.url) as opened:
        yield opened


def champion(console: Console) -> int:
    found = console.desk.live().tasks[TASK].champion
    assert found is not None
    return found.number


def test_what_waits_is_the_first_thing_one_sees(page: Any) -> None:
    assert page.locator("h1").inner_text() == "support-v5 waits for your approval"
    box = page.locator("h1").bounding_box()
    assert box["y"] < 300
    assert page.title().startswith("(1)")
    assert page.get_by_text("scripted teacher", exact=True).first.is_visible()


def test_a_used_link_opens_nothing(chromium: Any, console: Console) -> None:
    link = one_time_link(console.url)
    for expected in (f"{console.url}/", link):
        context = chromium.new_context()
        page = context.new_page()
        page.goto(link)
        page.wait_for_url(expected)
        context.close()


def test_approving_works_by_keyboard_alone(page: Any, console: Console) -> None:
    press_until_focused(page, "Read the report and decide")
    page.keyboard.press("Enter")
    page.wait_for_url("**/versions/5")
    press_until_focused(page, "Approve support-v5")
    assert focus_is_seen(page)
    page.keyboard.press("Enter")
    page.wait_for_url("**/versions/5?done=approved")
    assert page.get_by_text("Approved and published.").is_visible()
    assert champion(console) == 5


def test_rejecting_requires_a_reason(page: Any, console: Console) -> None:
    page.goto(f"{console.url}/tasks/{TASK}/versions/5")
    page.get_by_role("button", name="Reject support-v5").click()
    assert page.evaluate("document.querySelector('#reason').validity.valueMissing")
    assert page.url.endswith("/versions/5")

    page.get_by_label("Why not?").fill("   ")  # the server asks too
    page.get_by_role("button", name="Reject support-v5").click()
    page.get_by_role("alert").wait_for()
    assert "say why" in page.get_by_role("alert").inner_text()

    page.get_by_label("Why not?").fill("vouchers are worse")
    page.get_by_role("button", name="Reject support-v5").click()
    page.wait_for_url("**done=rejected")
    assert page.get_by_text("Rejected by ada: vouchers are worse").is_visible()
    assert champion(console) == 3


def test_rolling_back_from_the_history(page: Any, console: Console) -> None:
    page.get_by_role("link", name="All versions").click()
    page.locator("#rollback-1 summary").click()
    page.get_by_label("Why go back to support-v1?").fill("complaints about vouchers")
    page.get_by_role("button", name="Roll back to support-v1").click()
    page.wait_for_url("**done=rolled-back")
    assert champion(console) == 1


def test_the_page_follows_the_learner_by_itself(page: Any, console: Console) -> None:
    console.desk.operations.reject(TASK, 5, reason="elsewhere", operator="grace")
    page.get_by_role("heading", name="Nobody is needed").wait_for()
    assert page.get_by_role("link", name="grace rejected support-v5").is_visible()


def test_what_happens_before_the_page_listens_is_not_lost(page: Any, console: Console) -> None:
    def decided_meanwhile(route: Any) -> None:
        console.desk.operations.reject(TASK, 5, reason="elsewhere", operator="grace")
        route.continue_()

    page.route("**/api/events", decided_meanwhile, times=1)
    page.goto(console.url)
    page.get_by_role("heading", name="Nobody is needed").wait_for()


def test_text_that_is_being_typed_is_not_pulled_away(page: Any, console: Console) -> None:
    page.goto(f"{console.url}/tasks/{TASK}/versions/5")
    page.get_by_label("Why not?").fill("half a sent")
    console.desk.operations.pause("train", operator="grace")
    page.wait_for_timeout(4500)
    assert page.get_by_label("Why not?").input_value() == "half a sent"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_small_screen_shows_everything_without_sideways_scrolling(
    page: Any, console: Console, scheme: str
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    paths = [
        "/",
        f"/tasks/{TASK}/versions",
        f"/tasks/{TASK}/versions/5",
        "/dead-letters",
        "/unknown-outcomes",
    ]
    for path in paths:
        page.goto(console.url + path, wait_until="domcontentloaded")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        small = page.evaluate(SMALL_TARGETS)
        assert small == [], path
    page.goto(f"{console.url}/tasks/{TASK}/versions/5")
    page.get_by_role("button", name="Approve support-v5").click()
    page.wait_for_url("**done=approved")
    assert champion(console) == 5


def test_a_small_screen_shows_what_is_trusted_now(page: Any, console: Console) -> None:
    show_guarded(console.desk)
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(console.url, wait_until="domcontentloaded")
    for sentence in ("Trusted now: confidences from 0.84 on.", "with nobody to ask"):
        assert page.get_by_text(sentence).first.is_visible(), sentence
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(CUT_OFF) == []


# Tiles whose text is wider than they are.
CUT_OFF = """
[...document.querySelectorAll(".tile")]
  .filter((one) => one.scrollWidth > one.clientWidth)
  .map((one) => one.textContent.slice(0, 80))
"""

# WCAG 2.2 asks for targets of at least 24 pixels.
SMALL_TARGETS = """
[...document.querySelectorAll("button, summary, input:not([type=hidden]), textarea")]
  .filter((one) => one.getClientRects().length)
  .filter((one) => one.getBoundingClientRect().height < 24)
  .map((one) => one.outerHTML.slice(0, 80))
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(page: Any, console: Console, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    for path in ("/", f"/tasks/{TASK}/versions", f"/tasks/{TASK}/versions/4", "/dead-letters"):
        page.goto(console.url + path, wait_until="domcontentloaded")
        assert page.evaluate(POOR_CONTRAST) == [], (scheme, path)


# Every text against the nearest opaque background, by the formula of WCAG (4.5 to 1).
POOR_CONTRAST = """
(() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    if (element.closest("svg, .hidden, .skip, script, [hidden]")) continue;
    const [a, b] = [light(rgb(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.add(`${ratio.toFixed(2)} ${element.className} ${element.textContent}`);
  }
  return [...poor].map((text) => text.slice(0, 90));
})()
"""


def test_everything_works_without_script(chromium: Any, console: Console) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(one_time_link(console.url))
    page.wait_for_url(f"{console.url}/")
    page.get_by_role("link", name="Read the report and decide").click()
    page.get_by_role("button", name="Approve support-v5").click()
    page.wait_for_url("**done=approved")
    assert champion(console) == 5
    context.close()


def test_every_control_has_a_name_and_every_page_its_landmarks(page: Any, console: Console) -> None:
    for path in ("/", f"/tasks/{TASK}/versions", f"/tasks/{TASK}/versions/5", "/dead-letters"):
        page.goto(console.url + path, wait_until="domcontentloaded")
        assert page.locator("main").count() == 1
        assert page.locator("h1").count() == 1, path
        unnamed = page.evaluate(
            """[...document.querySelectorAll("button, a, summary")]
               .filter((one) => !(one.textContent.trim() || one.getAttribute("aria-label")))
               .map((one) => one.outerHTML)"""
        )
        assert unnamed == [], path
        fields = page.evaluate(
            """[...document.querySelectorAll("input:not([type=hidden]), textarea")]
               .filter((one) => !one.labels.length).map((one) => one.outerHTML)"""
        )
        assert fields == [], path
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
        assert len(ids) == len(set(ids)), path
