"""What the terminal shows during the demonstration: what to look at first, then live progress."""

import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from service.client import LearnerClient
from service.demo.corpus import Corpus
from service.demo.customers import Seen
from service.terminal import progress_line

PLAIN_SECONDS = 5.0


class Screen:
    """A live panel on a terminal, a line every few seconds elsewhere."""

    def __init__(
        self, data: Path, gateway: str, learner: str, client: LearnerClient, corpus: Corpus
    ) -> None:
        self._data = data
        self._gateway = gateway
        self._learner = learner
        self._client = client
        self._corpus = corpus
        self._console = Console(highlight=False)
        self._live: Live | None = None
        self._started = time.monotonic()
        self._last_line = 0.0
        self._told: set[str] = set()

    def __enter__(self) -> "Screen":
        self._console.print(self._opening())
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.__exit__(None, None, None)

    def say(self, sentence: str) -> None:
        """A line that stays."""
        self._console.print(f"[{self._clock()}] {sentence}", markup=False, soft_wrap=True)

    def show(self, status: dict[str, Any], seen: Seen) -> None:
        """The state of the loop now."""
        task = status["tasks"][0]
        self._tell_once(task, seen)
        if self._live:
            self._live.update(self._panel(status, task, seen))
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(self._line(status, task, seen), markup=False, soft_wrap=True)

    def _opening(self) -> Panel:
        lines = Text()
        lines.append(f"The support desk of {self._corpus.company}\n\n", "bold")
        lines.append(
            "Customers write, and a scripted teacher, a stand-in for a large\n"
            "model, answers. flywheel learns from it: in two or three minutes a\n"
            "first student waits for your approval. Once it serves, customers\n"
            "begin to write about something that it has never seen.\n\n"
        )
        for what, where in (
            ("Watch it, and approve what waits", self._login_link()),
            ("or here", f"{_program()} --config {self._data}/flywheel.toml approve"),
            ("OpenAI endpoint", f"{self._gateway}/v1  model {self._corpus.task}"),
            ("metrics", f"{self._gateway}/metrics  {self._learner}/metrics"),
            ("the log", f"{self._data}/flywheel.log"),
        ):
            lines.append(f"{what}\n", "dim").append(f"  {where}\n")
        lines.append("\nCtrl-C ends it.", "dim")
        return Panel(lines, title="flywheel demo", expand=False)

    def _login_link(self) -> str:
        """Good for one log-in within two minutes, so each time it is shown it is a new one."""
        return str(self._client.post("login-codes")["link"])

    def _tell_once(self, task: dict[str, Any], seen: Seen) -> None:
        if task["waiting"]:
            name = task["waiting"]["name"]
            if f"waiting {name}" not in self._told:
                self._once(
                    f"waiting {name}", f"{name} waits for your approval: {self._login_link()}"
                )
        if task["champion"]:
            name = task["champion"]["name"]
            self._once(f"champion {name}", f"{name} is the champion.")
        if seen.new_intent_at is not None:
            self._once(
                "new intent",
                f"Customers begin to write about something new: {self._corpus.new_intent}. "
                "Watch trusted coverage.",
            )

    def _once(self, key: str, sentence: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self.say(sentence)

    def _panel(self, status: dict[str, Any], task: dict[str, Any], seen: Seen) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, value in self._rows(status, task, seen):
            table.add_row(Text(name, "dim"), value)
        return Group(Panel(table, title=f"{self._clock()}", expand=False))

    def _line(self, status: dict[str, Any], task: dict[str, Any], seen: Seen) -> str:
        parts = [f"{name}: {value}" for name, value in self._rows(status, task, seen)]
        return f"[{self._clock()}] " + " | ".join(parts)

    def _rows(
        self, status: dict[str, Any], task: dict[str, Any], seen: Seen
    ) -> list[tuple[str, str]]:
        figures = task["figures"]
        sides = figures["labels_by_side"]
        champion = task["champion"]["name"] if task["champion"] else "none yet"
        rows = [
            ("prompts", f"{seen.sent:,} sent, {seen.failed} failed"),
            (
                "labels",
                f"{sides.get('training', 0):,} training, {sides.get('held_out', 0):,} held-out "
                "groups",
            ),
            ("champion", champion),
            ("answered by student", _share(seen.served_by_student)),
            ("right, by the student", _share(seen.student_right)),
            ("trusted coverage", _estimate(figures["trusted_coverage"])),
            ("agreement, live", _estimate(figures["agreement"])),
            ("saved", f"{figures['saved_total']:.2f}"),
        ]
        if progress := status["progress"]:
            rows.append(("trainer", progress_line(progress)))
        if task["waiting"]:
            rows.append(("waits for you", task["waiting"]["name"]))
        return rows

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"{seconds // 60}:{seconds % 60:02d}"


def _program() -> str:
    """How this program is called from here: set-up puts it into .venv, not on the path."""
    return "flywheel" if shutil.which("flywheel") else ".venv/bin/flywheel"


def _share(outcomes: Any) -> str:
    return f"{sum(outcomes) / len(outcomes):.0%}" if outcomes else "-"


def _estimate(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate['value']:.1%} ({estimate['low']:.1%} to {estimate['high']:.1%})"
