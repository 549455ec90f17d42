"""`kill -9` of every process, at random and at every failpoint, and what the witnesses say then.

    make chaos                         200 kills, 200,000 events over a real Kafka broker
    make chaos ARGS="--planted"        plant bugs, and see each caught

The witnesses: the producer's synced log of what the topic acknowledged, the teacher's synced
bills, the customers' log of each request, the operator's of what he approved.
"""

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.checks import (
    Logs,
    check_events,
    check_gateway,
    check_money,
    read_database,
    read_topic,
    spread,
)
from benchmarks.chaos.fuzz import fuzz
from benchmarks.chaos.kills import Killer, Victim
from benchmarks.chaos.service import Service
from benchmarks.chaos.witnesses import (
    CUSTOMERS_FROM,
    FIRST_EVENTS,
    LABELS,
    PRODUCER,
    TASK,
    Customers,
    Operator,
    Producer,
    SyncedLog,
    text_of,
)
from benchmarks.results import RESULTS, ROOT, write_results
from benchmarks.running import scripted_teacher
from service.settings import Settings, load_settings

CONCURRENCY = 4
SECONDS_A_KILL = 8.0  # for the producer's rate: the events should last as long as the kills
STUDENT_SECONDS = 900.0
TRAIN_AGAIN_SECONDS = 20.0
# From so many kills on, two students are approved first, so that there is always a swap to be hit.
SWAPPING_KILLS = 40
SECOND_STUDENT_AT = 4_000
CATCH_UP_SECONDS = 600.0
STILL_LOOKS = 24  # the broker's ends are looked at every few seconds
CUSTOMERS_TEXTS = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One chaos run."""

    kills: int
    events: int
    seed: int = 0
    minutes: float = 120.0
    bootstrap_servers: str = ""  # none: the embedded topic
    chosen: Sequence[tuple[Victim | None, str]] = ()  # what to kill; none: drawn by the seed
    # After so many events a student is approved, and another; the rest is for the kills.
    students_at: Sequence[int] = (FIRST_EVENTS,)


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    figures: dict[str, float]
    about: dict[str, Any]


def run(plan: Plan, folder: Path, tell: bool = True) -> Outcome:
    """Kill until the plan is fulfilled or its time is over, then let the witnesses speak."""
    logs = Logs(
        sent=SyncedLog(folder / "sent.jsonl"),
        asked=SyncedLog(folder / "asked.jsonl"),
        approved=SyncedLog(folder / "approved.jsonl"),
        kills=SyncedLog(folder / "kills.jsonl"),
        billing=folder / "billing.jsonl",
    )
    answers = folder / "answers.jsonl"
    write_answers(answers, plan)
    key = secrets.token_hex(16)
    started = time.monotonic()
    with scripted_teacher(f"--answers={answers}", f"--billing-log={logs.billing}") as teacher:
        service = Service(
            folder / "service",
            teacher=teacher,
            broker=plan.bootstrap_servers,
            task=TASK,
            labels=LABELS,
            producer=PRODUCER,
            key=key,
            concurrency=CONCURRENCY,
        )
        service.start()
        try:
            service.wait_until_up()
            settings = load_settings(service.config)
            killer = _campaign(plan, service, settings, logs, key.encode(), tell)
            code = service.stop()
        except BaseException:
            service.stop()
            raise
    about = {"minutes": round((time.monotonic() - started) / 60, 1), "exit_code": code}
    return judge(plan, logs, settings, killer, about)


def write_answers(path: Path, plan: Plan) -> None:
    """The teacher's key: what it would say to every text of the run."""
    numbers = (*range(plan.events), *range(CUSTOMERS_FROM, CUSTOMERS_FROM + CUSTOMERS_TEXTS))
    with path.open("w", encoding="utf-8") as file:
        for text, label in map(text_of, numbers):
            file.write(json.dumps({"text": text, "label": label}) + "\n")


def _campaign(
    plan: Plan, service: Service, settings: Settings, logs: Logs, key: bytes, tell: bool
) -> Killer:
    producer = Producer(settings, logs.sent, events=plan.events, key=key)
    producer.hold_at = plan.students_at[0]
    customers = Customers(service.gateway, logs.asked, seed=plan.seed)
    operator = Operator(service.client, logs.approved)
    killer = Killer(service, customers, operator, logs.kills, seed=plan.seed)
    deadline = time.monotonic() + plan.minutes * 60
    with ExitStack() as stack:
        for worker in (producer, customers, operator):
            stack.enter_context(worker)
        for count, events in enumerate(plan.students_at, start=1):
            producer.hold_at = events
            _await_approval(operator, count)
        producer.hold_at = None
        producer.rate = min(400.0, plan.events / max(1.0, plan.kills * SECONDS_A_KILL))
        wanted = list(plan.chosen or killer.plan(plan.kills))
        total = len(wanted)
        with suppress(KeyboardInterrupt):  # enough: what was done is judged
            while wanted and time.monotonic() < deadline:
                if killer.kill(*killer.next(wanted)) is None:
                    wanted.append(killer.another())  # for the point that was not passed in time
                if tell:
                    sys.stdout.write(
                        f"\r{len(killer.kills)} of {total} kills, {producer.sent:,} events "
                    )
                    sys.stdout.flush()
        producer.rate = 2_000.0  # what is left of them, as fast as it is taken
        _wait(lambda: producer.sent >= plan.events, CATCH_UP_SECONDS, "the events to be sent")
    _catch_up(service)
    return killer


def _await_approval(operator: Operator, count: int) -> None:
    """The program trains the first by itself; for the second it is asked, again and again."""
    asked = time.monotonic()

    def came() -> bool:
        nonlocal asked
        if count > 1 and time.monotonic() - asked > TRAIN_AGAIN_SECONDS:
            operator.train.set()
            asked = time.monotonic()
        return len(operator.approved) >= count

    _wait(came, STUDENT_SECONDS, f"student {count} to approve")


def _wait(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.1)


def _catch_up(service: Service) -> None:
    """Until nothing was left to read for a while: what is counted twice would come now."""
    still = 0
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while still < STILL_LOOKS:
        if time.monotonic() > deadline:
            raise TimeoutError("the learner does not catch up")
        time.sleep(0.5)
        still = 0 if service.is_behind() else still + 1


def judge(
    plan: Plan, logs: Logs, settings: Settings, killer: Killer, about: dict[str, Any]
) -> Outcome:
    """The figures, from the witnesses and the program's files."""
    kills = killer.kills
    topic, stored = read_topic(settings), read_database(settings.data_dir)
    events = check_events(logs, topic, stored)
    money = check_money(logs, settings.data_dir, kills, CONCURRENCY)
    gateway = check_gateway(logs, topic, kills, stored)
    serving, serving_max = spread([kill.serving_seconds for kill in kills])
    ingest, ingest_max = spread([kill.ingest_seconds for kill in kills])
    orphan, orphan_max = spread([kill.orphan_seconds for kill in kills])
    versions = gateway.pop("versions_served")
    figures = {
        "kills": len(kills),
        **events,
        **money,
        **gateway,
        "serving_again_p50_s": serving,
        "serving_again_max_s": serving_max,
        "ingest_again_p50_s": ingest,
        "ingest_again_max_s": ingest_max,
        "orphans_gone_p50_s": orphan,
        "orphans_gone_max_s": orphan_max,
    }
    return Outcome(
        figures,
        {
            **about,
            "topic": "kafka" if plan.bootstrap_servers else "embedded",
            "kills_by_victim": dict(Counter(kill.victim for kill in kills)),
            "kills_by_failpoint": dict(sorted(Counter(k.point for k in kills if k.point).items())),
            "not_reached": sorted(killer.not_reached),
            "versions_served": versions,
            "load_average": [round(value, 1) for value in os.getloadavg()],
        },
    )


def problems(outcome: Outcome) -> list[str]:
    """What breaks a promise, a sentence each. Times are figures, not promises of one run."""
    figures = outcome.figures
    must_be_zero = (
        "lost", "duplicated", "on_topic_twice", "answers_bought_twice", "confidence_error",
        "unapproved_versions_served", "captures_lost_older_than_100_ms",
        "fuzzed_unaccounted",
    )  # fmt: skip
    found = [f"{name} is {figures[name]}" for name in must_be_zero if figures.get(name)]
    if figures["unknown_outcomes"] > figures["unknown_outcomes_at_most"]:
        found.append("more unknown outcomes than calls in flight")
    if outcome.about["exit_code"]:
        found.append(f"the program ended with {outcome.about['exit_code']}")
    return found


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """A real one; its address."""
    sys.path.insert(0, str(ROOT / "deploy" / "kafka"))
    from broker import Broker  # type: ignore[import-not-found]  # a script, not a package

    started = Broker(folder)
    started.start()
    try:
        yield started.bootstrap_servers
    finally:
        started.stop()


def main() -> int:
    """Run, and write `benchmarks/results/chaos.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=120.0, help="stop killing after this")
    parser.add_argument("--fuzz", type=int, default=100_000, help="records to fuzz ingest with")
    parser.add_argument("--embedded", action="store_true", help="without a broker")
    parser.add_argument("--folder", type=Path, help="an empty one, to keep all logs in")
    parser.add_argument("--planted", action="store_true", help="plant bugs, see each caught")
    chosen = parser.parse_args()
    if chosen.planted:
        from benchmarks.chaos.planted import plant_all

        return plant_all()
    with ExitStack() as stack:
        folder = chosen.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-"))
        )
        folder.mkdir(parents=True, exist_ok=True)
        servers = "" if chosen.embedded else stack.enter_context(broker(folder / "kafka"))
        plan = Plan(
            kills=chosen.kills,
            events=chosen.events,
            seed=chosen.seed,
            minutes=chosen.minutes,
            bootstrap_servers=servers,
            students_at=(
                FIRST_EVENTS,
                *([SECOND_STUDENT_AT] if chosen.kills >= SWAPPING_KILLS else []),
            ),
        )
        outcome = run(plan, folder)
        outcome.figures |= fuzz(folder, chosen.fuzz, seed=chosen.seed)
    print()
    for name, value in outcome.figures.items():
        print(f"{name:34} {value:g}")
    keep(outcome, plan)
    found = problems(outcome)
    print("\n".join(found) or "every promise held")
    return 1 if found else 0


def keep(outcome: Outcome, plan: Plan) -> None:
    """Into the results, beside what the planted bugs have shown."""
    path = RESULTS / "chaos.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    planted = {k: v for k, v in before.get("figures", {}).items() if k.startswith("planted_")}
    kept = {name: before[name] for name in ("planted", "planted_commit") if name in before}
    more = {**outcome.about, **kept}
    write_results("chaos", {**outcome.figures, **planted}, seed=plan.seed, **more)
