"""The console for everybody: axe-core finds nothing on any page, wide or small, light or dark."""

from collections.abc import Iterator
from typing import Any

import pytest
from browser_rig import axe_script, logged_in, running_chromium
from console_server import Console, open_console
from operating import TASK

pytestmark = pytest.mark.browser

PAGES = [
    "/",
    "/activity",
    "/activity?kind=decision",
    f"/tasks/{TASK}/versions",
    f"/tasks/{TASK}/versions/4",
    f"/tasks/{TASK}/versions/5",
    "/dead-letters",
    "/unknown-outcomes",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    yield from running_chromium()


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with open_console(tmp_path_factory.mktemp("console"), training=True) as opened:
        yield opened


def violations(page: Any) -> list[str]:
    """What axe finds, each with the elements that it is about."""
    page.evaluate(axe_script())
    found = page.evaluate("axe.run().then((found) => found.violations)")
    return [
        f"{one['impact']} {one['id']}: {[node['html'][:120] for node in one['nodes']][:3]}"
        for one in found
    ]


@pytest.mark.parametrize(
    ("size", "scheme"),
    [((1280, 900), "light"), ((360, 740), "dark")],
    ids=["wide and light", "small and dark"],
)
def test_axe_finds_nothing(
    chromium: Any, console: Console, size: tuple[int, int], scheme: str
) -> None:
    viewport = {"width": size[0], "height": size[1]}
    with logged_in(chromium, console.url, viewport=viewport, color_scheme=scheme) as page:
        for path in PAGES:
            page.goto(console.url + path, wait_until="domcontentloaded")
            for details in page.locator("details").all():
                details.evaluate("(one) => one.open = true")
            assert violations(page) == [], path


def test_axe_finds_nothing_before_one_has_logged_in(chromium: Any, console: Console) -> None:
    context = chromium.new_context()
    page = context.new_page()
    for path in ("/login", "/login?code=used-up"):
        page.goto(console.url + path)
        assert violations(page) == [], path
    context.close()


def test_axe_would_find_something(chromium: Any, console: Console) -> None:
    with logged_in(chromium, console.url) as page:
        page.evaluate("document.querySelector('main').innerHTML += '<button></button>'")
        assert any("button-name" in found for found in violations(page))
