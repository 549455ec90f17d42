"""The ledger of paid calls: its order of steps, its sums, and what damage does to it."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest

from pipelines.errors import DataDamaged
from storage.ledger import NEXT, Amounts, Ledger, Step

NOW = datetime(2026, 3, 1, 23, 59, tzinfo=UTC)
TOMORROW = NOW + timedelta(minutes=2)
RESERVE = Amounts(tokens=100, money=1.0)


def intend(ledger: Ledger, key: str = "k", now: datetime = NOW) -> None:
    ledger.intend(key, event_id=f"event-{key}", request=b"question", reserve=RESERVE, now=now)


def receive(ledger: Ledger, key: str = "k", now: datetime = NOW) -> None:
    spent = Amounts(tokens=40, money=0.25)
    ledger.receive(key, reply=b"the answer", spent=spent, now=now)


STEPS: dict[Step, Callable[[Ledger], None]] = {
    "intent": intend,
    "received": receive,
    "not_sent": lambda ledger: ledger.note("k", "not_sent", detail="429", now=NOW),
    "unknown": lambda ledger: ledger.note("k", "unknown", detail="timeout", now=NOW),
    "released": lambda ledger: ledger.note("k", "released", detail="", now=NOW),
    "dropped": lambda ledger: ledger.note("k", "dropped", detail="", now=NOW),
}
WAYS: dict[str, list[Step]] = {
    "": [],
    "intent": ["intent"],
    "not_sent": ["intent", "not_sent"],
    "unknown": ["intent", "unknown"],
    "released": ["intent", "unknown", "released"],
    "dropped": ["intent", "unknown", "dropped"],
    "received": ["intent", "received"],
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("state", WAYS)
def test_only_the_allowed_steps_follow(state: str, step: Step, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for before in WAYS[state]:
        STEPS[before](ledger)
    lines = (tmp_path / "ledger.jsonl").read_bytes()
    if step in NEXT[state]:
        STEPS[step](ledger)
        call = ledger.call("k")
        assert call is not None
        assert call.step == step
    else:
        with pytest.raises(ValueError, match="not"):
            STEPS[step](ledger)
        assert (tmp_path / "ledger.jsonl").read_bytes() == lines
    ledger.close()


def test_received_is_final() -> None:
    assert NEXT["received"] == NEXT["dropped"] == frozenset()


def test_restart_knows_every_call(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    intend(ledger, "a")
    receive(ledger, "a")
    intend(ledger, "b")
    intend(ledger, "c")
    ledger.note("c", "unknown", detail="timeout", now=NOW)
    before = {key: ledger.call(key) for key in "abc"}, ledger.spent_on(NOW)
    ledger.close()
    again = Ledger(tmp_path)
    assert ({key: again.call(key) for key in "abc"}, again.spent_on(NOW)) == before
    assert [call.event_id for call in again.unfinished()] == ["event-b"]
    assert [call.key for call in again.unknown()] == ["c"]
    assert again.reply("a") == b"the answer"
    again.close()


def test_spend_is_as_reserved_until_it_is_known(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    def spent() -> tuple[int, int, float]:
        day = ledger.spent_on(NOW)
        return day.calls, day.tokens, day.money

    intend(ledger, "a")
    assert spent() == (1, 100, 1.0)
    receive(ledger, "a")
    assert spent() == (1, 40, 0.25)
    intend(ledger, "b")
    ledger.note("b", "not_sent", detail="429", now=NOW)
    assert spent() == (1, 40, 0.25)
    intend(ledger, "c")
    ledger.note("c", "unknown", detail="timeout", now=NOW)
    assert spent() == (2, 140, 1.25), "nobody knows: it counts as spent"
    ledger.note("c", "released", detail="", now=NOW)
    intend(ledger, "c")
    receive(ledger, "c")
    assert spent() == (3, 180, 1.5), "released and asked again: it may have been paid twice"
    ledger.close()


def test_call_counts_to_the_day_of_its_intent(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    intend(ledger, "a", NOW)
    receive(ledger, "a", TOMORROW)
    intend(ledger, "b", TOMORROW)
    assert (ledger.spent_on(NOW).calls, ledger.spent_on(NOW).tokens) == (1, 40)
    assert (ledger.spent_on(TOMORROW).calls, ledger.spent_on(TOMORROW).tokens) == (1, 100)
    ledger.close()


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_torn_last_line_was_never_acknowledged(cut: int, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    intend(ledger, "a")
    intend(ledger, "b")
    ledger.close()
    file = tmp_path / "ledger.jsonl"
    os.truncate(file, file.stat().st_size - cut)
    again = Ledger(tmp_path)
    assert again.call("a") is not None
    assert again.call("b") is None
    intend(again, "b")
    again.close()
    Ledger(tmp_path).close()


@pytest.mark.parametrize("change", [(b'"money":1.0', b'"money":0.0'), (b"intent", b"dropped")])
def test_changed_line_is_refused(change: tuple[bytes, bytes], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    intend(ledger, "a")
    intend(ledger, "b")
    ledger.close()
    file = tmp_path / "ledger.jsonl"
    file.write_bytes(file.read_bytes().replace(*change, 1))
    with pytest.raises(DataDamaged, match=r"line 1 .* does not match its checksum"):
        Ledger(tmp_path)


def test_lines_hold_no_text_and_the_bodies_do(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    intend(ledger)
    receive(ledger)
    ledger.close()
    lines = (tmp_path / "ledger.jsonl").read_bytes()
    assert b"question" not in lines
    assert b"answer" not in lines
    with sqlite3.connect(tmp_path / "bodies.sqlite") as bodies:
        assert bodies.execute("SELECT request, reply FROM bodies").fetchall() == [
            (b"question", b"the answer")
        ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE bodies SET reply = 'another answer'", "was changed"),
        ("DELETE FROM bodies", "is missing"),
    ],
)
def test_reply_that_is_not_the_received_one_is_never_used(
    change: str, reason: str, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path)
    intend(ledger)
    receive(ledger)
    ledger.close()
    with sqlite3.connect(tmp_path / "bodies.sqlite") as bodies:
        bodies.execute(change)
    again = Ledger(tmp_path)
    with pytest.raises(DataDamaged, match=reason):
        again.reply("k")
    again.close()


def test_corrupt_side_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bodies.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(DataDamaged, match=r"bodies\.sqlite cannot be read"):
        Ledger(tmp_path)


FILL = """
import resource, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from pipelines.errors import DiskFull
from storage.ledger import Amounts, Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger(Path(sys.argv[1]))
now = datetime(2026, 3, 1, tzinfo=UTC)
def intend(key):
    ledger.intend(key, event_id="e", request=b"q", reserve=Amounts(tokens=1), now=now)
intend("a")
lines = (Path(sys.argv[1]) / "ledger.jsonl").stat().st_size
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
# The line that is cut: the limit lies in the middle of it.
big = "x" * (1_000_000 - lines - 200)
ledger.note("a", "not_sent", detail=big, now=now)
try:
    intend("b" * 300)
except DiskFull as error:
    print("refused", flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
intend("c")
print("written", flush=True)
"""


def test_line_that_did_not_fit_spoils_nothing(tmp_path: Path) -> None:
    """The disk fills in the middle of a line, and has space again later."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout == "refused\nwritten\n", done.stderr
    again = Ledger(tmp_path)
    assert again.call("c") is not None
    assert again.call("b" * 300) is None
    again.close()


def test_threads_can_look_while_another_writes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    problems: list[Exception] = []
    done = False

    def look() -> None:
        try:
            while not done:
                ledger.unknown()
                ledger.unfinished()
        except Exception as error:
            problems.append(error)

    watcher = Thread(target=look)
    watcher.start()
    for number in range(300):
        intend(ledger, f"k{number}")
    done = True
    watcher.join()
    assert problems == []
    ledger.close()
