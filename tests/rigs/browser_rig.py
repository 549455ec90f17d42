"""A real browser for the console's pages: how it starts, logs in, and is used by keyboard."""

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import pytest
from console_server import TOKEN

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def missing(message: str) -> None:
    """What is not there is a skip on a laptop, and a failure on CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def running_chromium() -> Iterator[Any]:
    """The body of a fixture: one browser for a whole file."""
    if CHROMIUM is None:
        missing("Chromium is not installed; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def axe_script() -> str:
    """axe-core, as the development tools bring it."""
    try:
        return (resources.files("axe_playwright_python") / "axe.min.js").read_text()
    except ModuleNotFoundError:
        missing("axe-playwright-python is not installed; `make setup` installs it")
        raise


def one_time_link(url: str) -> str:
    request = urllib.request.Request(
        f"{url}/api/login-codes",
        data=b'{"operator": "ada"}',
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return str(json.loads(answer.read())["link"])


@contextmanager
def logged_in(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page that has logged in by the link that `flywheel open` makes; errors in it fail."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(60_000)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(one_time_link(url))
    page.wait_for_url(f"{url}/")
    yield page
    context.close()
    # 409 is an answer that a test asked for; anything else, CSP violations included, is not.
    assert [problem for problem in problems if "409" not in problem] == []


def press_until_focused(page: Any, text: str, key: str = "Tab") -> None:
    """Walk by keyboard to what reads so."""
    for _ in range(80):
        page.keyboard.press(key)
        if page.evaluate("document.activeElement.textContent").strip() == text:
            return
    raise AssertionError(f"the keyboard does not reach '{text}'")


def press_until_at(page: Any, identifier: str, key: str = "Tab") -> None:
    """Walk by keyboard to the element with this id."""
    for _ in range(80):
        page.keyboard.press(key)
        if page.evaluate("document.activeElement.id") == identifier:
            return
    raise AssertionError(f"the keyboard does not reach #{identifier}")


def focus_is_seen(page: Any) -> bool:
    """Whether the focused element has an outline of its own."""
    style = page.evaluate(
        "(() => { const s = getComputedStyle(document.activeElement);"
        " return [s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
    )
    return bool(style[0] == "solid" and style[1] >= 2)
