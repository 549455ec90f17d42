"""What is kept: database, decisions, ledger, artifacts, and whether time went on as it should."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry

from pipelines.errors import DataDamaged, NotRunning
from pipelines.students.families import FAMILIES
from service.care.doctor.finding import Finding, ok, problem, warning
from service.care.doctor.places import noted_process
from service.keys import open_keys
from service.settings import Settings
from storage.artifacts import KINDS, Artifacts
from storage.database import look_inside
from storage.decisions import read_file, verify_chain
from storage.ledger import check_ledger
from storage.live import Live, LiveStudent, read_live
from storage.migrate import MIGRATIONS

REBUILD = "`flywheel rebuild` makes it anew; or restore a backup"
RESTORE = "restore it from a backup: `flywheel restore`"
AHEAD = timedelta(minutes=1)

Ask = Callable[..., Any]


def look_at_database(settings: Settings, ask: Ask) -> Iterator[Finding]:
    path = settings.folder.database
    if noted_process(settings.data_dir, "learner") is not None:
        try:
            ask("ticks", limit=1)
            yield ok("database", "the learner holds it, and reads from it")
        except NotRunning as error:
            yield problem("database", f"the learner does not say: {error}", "see the processes")
        return
    if not path.is_file():
        yield warning("database", "there is none yet", "the learner makes it at its first start")
        return
    try:
        inside = look_inside(path)
    except DataDamaged as error:
        yield problem("database", str(error), REBUILD)
        return
    files = {one.name for one in MIGRATIONS.glob("*.sql")}
    if newer := sorted(set(inside.migrations) - files):
        yield problem(
            "database", f"a newer flywheel wrote it ({', '.join(newer)})", "install that version"
        )
    elif waiting := sorted(files - set(inside.migrations)):
        yield ok("database", f"the next start brings it up to date ({', '.join(waiting)})")
    if inside.commits < inside.noted:
        yield problem(
            "database",
            f"it ends at commit {inside.commits:,}, and {inside.noted:,} were acknowledged",
            REBUILD,
        )
    else:
        yield ok("database", f"it opens, and none of its {inside.commits:,} commits is missing")


def look_at_decisions(settings: Settings, ask: Ask) -> Iterator[Finding]:
    try:
        links = read_file(settings.folder.decisions)
        verify_chain(links)
    except DataDamaged as error:
        yield problem("decisions", str(error), RESTORE)
        return
    yield ok("decisions", f"the chain of {len(links):,} decisions is whole")


def look_at_ledger(settings: Settings, ask: Ask) -> Iterator[Finding]:
    try:
        found = check_ledger(settings.folder.ledger)
    except DataDamaged as error:
        yield problem("ledger", str(error), RESTORE)
        return
    if found.damaged_replies:
        yield problem(
            "ledger",
            f"{found.damaged_replies:,} of {found.received:,} paid answers are missing from the "
            "side store or were changed",
            RESTORE,
        )
    else:
        yield ok(
            "ledger",
            f"{found.lines:,} lines match their checksums, {found.received:,} paid answers are "
            "there",
        )
    if found.torn and noted_process(settings.data_dir, "learner") is None:
        yield ok("ledger", "half a line at its end was never acknowledged; the next start cuts it")
    if found.unknown:
        yield warning(
            "ledger",
            f"{found.unknown:,} calls have an unknown outcome, and are held with their money",
            "`flywheel unknown list`",
        )


def look_at_artifacts(settings: Settings, ask: Ask) -> Iterator[Finding]:
    artifacts = Artifacts(settings.folder.artifacts, create=False)
    whole, damaged = 0, []
    for kind in KINDS:
        for digest in artifacts.digests(kind):
            try:
                artifacts.open(kind, digest)
                whole += 1
            except DataDamaged as error:
                damaged.append(str(error))
    for sentence in damaged:
        yield problem("artifacts", sentence, RESTORE)
    yield ok("artifacts", f"{whole:,} artifacts are what their names say")
    yield from _served(settings, artifacts)


def _served(settings: Settings, artifacts: Artifacts) -> Iterator[Finding]:
    path = settings.folder.live
    token = settings.gateway.learner_token.get_secret_value()
    if not token and not settings.folder.internal_key.is_file():
        yield problem(
            "artifacts",
            "the internal key is not there: nothing that it signed can be served",
            "restore secrets/internal.key, or set gateway.learner_token",
        )
        return
    try:
        live = read_live(path, open_keys(settings.data_dir, token).live)
    except DataDamaged as error:
        yield problem(
            "artifacts", str(error), "start the learner: it publishes anew from the decisions"
        )
        return
    if not any(task.champion for task in live.tasks.values()):
        yield ok("artifacts", "no student is published; the teacher answers")
    yield from _golden(settings, artifacts, live)


def _golden(settings: Settings, artifacts: Artifacts, live: Live) -> Iterator[Finding]:
    """Load each champion as a gateway does, and ask what was asked at its evaluation."""
    from service.gateway.generations import Generations
    from service.metrics.gateway import GatewayMetrics

    tasks = {name: settings.task_of(name) for name in settings.tasks}
    heads = {
        name: task
        for name, task in live.tasks.items()
        if task.champion is not None
        and not FAMILIES[task.champion.family].needs_stack
        and name in tasks
    }
    generations = Generations(tasks, artifacts, GatewayMetrics(CollectorRegistry()), threads=1)
    try:
        generations.apply(Live(serial=live.serial, tasks=heads))
        for name, task in live.tasks.items():
            if task.champion is not None and name in tasks:
                yield _champion(name, task.champion, name in heads, generations.failures.get(name))
    finally:
        generations.close()


def _champion(name: str, student: LiveStudent, asked: bool, failure: str | None) -> Finding:
    if failure is not None:
        return problem(
            "artifacts",
            f"the champion of {name} cannot be served: {failure}",
            "roll back to another version, which works without the learner too; or restore",
        )
    if not asked:
        return ok("artifacts", f"{student.name} is a chat model; its golden prompts were not asked")
    return ok("artifacts", f"{student.name} loads and answers its golden prompts as evaluated")


def look_at_clock(settings: Settings, ask: Ask) -> Iterator[Finding]:
    now = datetime.now(UTC)
    written = [link.decided_at for link in read_file(settings.folder.decisions)] + check_ledger(
        settings.folder.ledger
    ).last
    counter = settings.folder.database.with_suffix(".commits")
    if counter.exists():
        written.append(datetime.fromtimestamp(counter.stat().st_mtime, UTC))
    latest = max(written, default=now)
    if latest > now + AHEAD:
        yield problem(
            "clock",
            f"the learner wrote at {latest:%Y-%m-%d %H:%M:%S} UTC, which is still to come: the "
            "clock was set back",
            "set the clock by NTP; the day's budget and the windows of estimates go by it",
        )
    else:
        yield ok("clock", f"it is {now:%Y-%m-%d %H:%M:%S} UTC; nothing was written later than that")
