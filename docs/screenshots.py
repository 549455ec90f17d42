"""Takes the console's pictures for the documentation, from a real demo run; needs Chromium.

`make screenshots` starts `flywheel demo`, decides as an operator would, and waits for the moments
worth showing: a first student that waits, and a second one that has won the traffic back.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
OPERATOR = "ada"
WIDE, SMALL = (1240, 860), (360, 740)
MOST_BYTES = 150_000
COLOURS = (128, 64, 32, 16)
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
POINTS = 12  # of history after a promotion, so that there is a curve to see


class Demo:
    """A running demonstration, seen through its operator API."""

    def __init__(self, data: Path, rate: float) -> None:
        self._data = data
        command = ["demo", "--data", str(data), "--rate", str(rate)]
        command += ["--port-gateway", "0", "--port-learner", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service", *command], stdout=subprocess.DEVNULL
        )

    @property
    def url(self) -> str:
        noted = json.loads((self._data / "run" / "learner.json").read_text())
        return f"http://127.0.0.1:{noted['port']}"

    def ask(self, path: str, body: object | None = None) -> Any:
        token = (self._data / "secrets" / "operator.token").read_text().strip()
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def task(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")["tasks"][0]
        return found

    def wait_for(self, what: str, holds: Callable[[dict[str, Any]], Any], seconds: float) -> bool:
        """Until the task is as wanted; False when it took too long."""
        print(f"Waiting until {what} ...", flush=True)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise SystemExit(f"the demo has ended with {self.process.returncode}")
            try:
                if holds(self.task()):
                    return True
            except (OSError, ValueError):
                pass  # it has not started, or is restarting
            time.sleep(1.0)
        return False

    def approve(self) -> None:
        waiting = self.task()["waiting"]
        path = f"tasks/{waiting['task']}/versions/{waiting['number']}/approve"
        self.ask(
            path, {"report": waiting["report"], "serves_nothing": waiting["threshold"] is None}
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(90)


def open_page(browser: Browser, demo: Demo, size: tuple[int, int], scheme: str) -> Page:
    """A page that has logged in by a one-time link."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if scheme == "dark" else "light",
        device_scale_factor=2,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(demo.ask("login-codes", {"operator": OPERATOR})["link"])
    page.wait_for_url(f"{demo.url}/")
    return page


def take(
    browser: Browser,
    demo: Demo,
    path: str,
    name: str,
    *,
    size: tuple[int, int] = WIDE,
    show: str = "",
) -> None:
    """One page in light and in dark, from its top or from the element `show`."""
    for scheme in ("light", "dark"):
        page = open_page(browser, demo, size, scheme)
        page.goto(demo.url + path, wait_until="domcontentloaded")
        if show:
            page.evaluate(
                "([shown]) => window.scrollTo(0, document.querySelector(shown)"
                ".getBoundingClientRect().top + window.scrollY - 12)",
                [show],
            )
        write_small(page.screenshot(), IMAGES / f"console-{name}-{scheme}.png")
        page.context.close()


def write_small(png: bytes, path: Path) -> None:
    """As few colours as it takes to stay small: the pages are flat."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in COLOURS:
        reduced = image.quantize(colours, dither=Image.Dither.NONE)
        content = io.BytesIO()
        reduced.save(content, "PNG", optimize=True)
        if content.tell() < MOST_BYTES:
            break
    path.write_bytes(content.getvalue())
    print(f"{path.name}: {content.tell() // 1000} kB, {colours} colours", flush=True)


def judged(task: dict[str, Any], number: int) -> bool:
    """Whether the gate has said something about this version or a newer one."""
    newest = task["newest"]
    return newest is not None and newest["number"] >= number and newest["verdict"] is not None


def points_of(task: dict[str, Any], name: str) -> int:
    """How many moments of the history have a measured figure of this name."""
    return sum(point[name] is not None for point in task["figures"]["history"])


def run(browser: Browser, demo: Demo, patience: float, second: float) -> None:
    waits = demo.wait_for("a first student waits", lambda task: task["waiting"], patience)
    if not waits:
        raise SystemExit("no student was made in time; raise --patience")
    first = demo.task()["waiting"]
    take(browser, demo, "/", "waiting")
    take(browser, demo, f"/tasks/{first['task']}/versions/{first['number']}", "report")
    demo.approve()
    demo.wait_for(
        "it has served for a while",
        lambda task: points_of(task, "coverage") >= POINTS,
        patience,
    )
    if demo.wait_for("a second one was judged", lambda task: judged(task, 2), second):
        decide_about_second(browser, demo, patience)
    else:
        print("No second student yet: the pictures are of the first.", flush=True)
    task = demo.task()["task"]
    take(browser, demo, "/", "overview")
    take(browser, demo, "/", "charts", show=".charts")
    take(browser, demo, f"/tasks/{task}/versions", "versions")
    take(browser, demo, "/activity", "activity")
    take(browser, demo, "/", "small", size=SMALL)


def decide_about_second(browser: Browser, demo: Demo, patience: float) -> None:
    """Approve it where the gate lets it through, and give it time to show itself."""
    waiting = demo.task()["waiting"]
    if waiting is None:
        return
    page = f"/tasks/{waiting['task']}/versions/{waiting['number']}"
    take(browser, demo, page, "flips", show="[aria-labelledby=flips]")
    demo.approve()
    wanted = points_of(demo.task(), "coverage") + POINTS
    demo.wait_for(
        "it has served for a while", lambda task: points_of(task, "coverage") >= wanted, patience
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=40.0, help="prompts a second")
    parser.add_argument(
        "--patience", type=float, default=900.0, help="seconds to wait for each moment"
    )
    parser.add_argument(
        "--second", type=float, default=900.0, help="seconds to wait for a second student"
    )
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("Chromium is not installed; on Debian: apt-get install chromium")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        demo = Demo(Path(folder) / "demo", options.rate)
        try:
            run(browser, demo, options.patience, options.second)
        finally:
            demo.stop()
            browser.close()


if __name__ == "__main__":
    main()
