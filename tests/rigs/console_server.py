"""The console on a real port with data worth looking at: for browser tests and screenshots."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn
from operating import TASK, TUNED, Desk, make_history, open_desk
from starlette.routing import BaseRoute

from pipelines.guard import Guard, GuardKind
from pipelines.types import Estimate
from service.console.app import console_app
from service.operator.status import Figures, Progress
from storage.ticks import record_tick

TOKEN = "test-token-of-the-operator"


@dataclass
class Console:
    """Where the console listens, and the desk behind it."""

    url: str
    desk: Desk


@contextmanager
def open_console(folder: Path, *, training: bool = False) -> Iterator[Console]:
    """A champion, a version that waits, ticks, dead letters and held calls."""
    with open_desk(folder) as desk:
        seed(desk)
        if training:
            desk.board.progress = Progress(
                step=312,
                total=480,
                examples_per_second=1280,
                seconds_left=4.1,
                task=TASK,
                loss=0.4312,
            )
        with serve(desk) as url:
            yield Console(url=url, desk=desk)


@contextmanager
def serve(desk: Desk, extra_routes: Sequence[BaseRoute] = ()) -> Iterator[str]:
    """Run the app on a free port until the end of the block."""
    app = console_app(desk.operations, TOKEN, desk.settings, extra_routes, failure_seconds=0.01)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        app.state.stopping.set()
        server.should_exit = True
        thread.join()
        listener.close()


def seed(desk: Desk) -> None:
    """One approved, one rejected, one approved again, one failed, and one that waits."""
    desk.approved()
    desk.candidate()
    desk.operations.reject(TASK, 2, reason="vouchers got worse", operator="grace")
    desk.approved()
    desk.evaluate(desk.train(reason="coverage fell by 9 points"), verdict="better", passed=False)
    desk.evaluate(
        desk.train(reason="the labels have doubled", recipe="encoder-lora", training=TUNED)
    )
    desk.dead_letter(17, b'{"model": "gpt-support"}', "the record has no messages")
    desk.dead_letter(18, b"\xff\xfe\x00", "the record is not UTF-8")
    desk.hold("e-9", detail="the connection was cut after the request was sent", money=0.0031)
    ticks = {
        "relabel": ("done", "12 samples labelled"),
        "train": (
            "nothing",
            "the labels have grown 1.3-fold since the last training; 2-fold is due",
        ),
        "evaluate": ("nothing", "the newest version was evaluated against the present champion"),
        "watch": ("done", "coverage 83.1 %, agreement 97.9 %"),
        "retention": ("failed", "the disk is full"),
    }
    with desk.database.transaction() as tx:
        for job, (outcome, detail) in ticks.items():
            record_tick(
                tx,
                job=job,
                scheduled_at=desk.clock(),
                outcome=outcome,  # type: ignore[arg-type]
                detail=detail,
                now=desk.clock(),
            )
    desk.board.show(
        TASK,
        Figures(
            agreement=Estimate(value=0.952, low=0.938, high=0.964, n=1210),
            served_agreement=Estimate(value=0.979, low=0.968, high=0.988, n=904),
            trusted_coverage=Estimate(value=0.831, low=0.82, high=0.842, n=20_400),
            certified_coverage=0.828,
            labels_bought=1_951,
            labels_given=420,
            labels_by_side={"training": 1_897, "held_out": 474},
            pending_samples=7,
            spend_today=1.318,
            budget_today=20.0,
            saved_total=14.2,
            events_total=48_210,
            served_by_student_share=0.83,
            events_per_day=41_000,
            cost_per_call=0.00061,
            history=make_history(desk.clock.at),
        ),
    )


def show_guarded(desk: Desk, thresholds: tuple[float | None, float | None] = (0.84, 0.7)) -> None:
    """Less is trusted than was approved, and some answers were forced, beside what `seed` shows."""
    why = (
        "The newest prompts are further from the training data.",
        "9 of the last 30 audited answers disagreed.",
        "31% of the newest prompts are beyond its reach.",
    )
    kinds: tuple[GuardKind, ...] = ("mix", "audits", "novel")
    at = desk.clock()
    guards = tuple(
        Guard(
            task=TASK,
            student="a" * 64,
            kind=kind,
            raised_at=at,
            since=at,
            threshold=threshold,
            reason=reason,
            changed_at=at,
        )
        for kind, threshold, reason in zip(kinds, (*thresholds, 0.62), why, strict=True)
    )
    forced = Estimate(value=0.712, low=0.601, high=0.804, n=88)
    before = desk.board.figures(TASK)
    desk.board.show(
        TASK, replace(before, guards=guards, forced_share=0.034, forced_agreement=forced)
    )
    desk.operations.note_change()
