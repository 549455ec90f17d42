"""What lies outside: the topic's broker and the teacher. The teacher is not asked anything paid."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from pipelines.errors import BrokerUnavailable, DataDamaged, NotRunning, SettingsError
from service.care.doctor.finding import Finding, ok, problem, warning
from service.care.doctor.places import noted_process
from service.settings import Settings
from service.topics import TopicView
from service.topics.inspect import inspect_topic
from storage.database import look_inside

TEACHER_SECONDS = 10.0
CODEC_LIBRARIES = {"lz4": "lz4", "snappy": "snappy", "zstd": "zstandard"}
CLOCK_WARNING, CLOCK_PROBLEM = timedelta(seconds=60), timedelta(minutes=5)
NO_SPENDING = "GET models, which costs nothing"

Ask = Callable[..., Any]


def look_at_broker(settings: Settings, ask: Ask) -> Iterator[Finding]:
    try:
        topic = inspect_topic(settings)
    except (BrokerUnavailable, SettingsError, DataDamaged) as error:
        yield problem("topic", str(error), "check [kafka], the broker, and our rights there")
        return
    name = settings.kafka.topic
    if topic is None:
        kafka = bool(settings.kafka.bootstrap_servers)
        if kafka and not settings.kafka.create_topic:
            yield problem("topic", f"there is no topic {name}", "create it, or set create_topic")
        else:
            yield warning(
                "topic", f"there is no topic {name} yet", "the first who needs it makes it"
            )
        return
    records = sum(topic.ends.values()) - sum(topic.firsts.values())
    yield ok(
        "topic",
        f"{name} at {topic.where} has {len(topic.ends)} partitions and {records:,} records",
    )
    yield from _codec(topic)
    yield from _offsets(topic, name, _stored(settings, ask).get(name, {}))
    if topic.from_the_future:
        yield problem(
            "clock",
            f"{topic.from_the_future} partitions hold records from more than five minutes ahead: "
            "a producer's, the broker's or this clock is wrong",
            "set all of them by NTP",
        )


def _codec(topic: TopicView) -> Iterator[Finding]:
    library = CODEC_LIBRARIES.get(topic.codec)
    if library and importlib.util.find_spec(library) is None:
        yield problem(
            "topic",
            f"its records are compressed with {topic.codec}, and the package {library} is missing",
            f"install {library} beside flywheel",
        )
    elif topic.codec:
        yield ok("topic", f"its compression, {topic.codec}, can be read")


def _stored(settings: Settings, ask: Ask) -> Mapping[str, Mapping[str, int]]:
    """Where each topic was read to: from the learner, or from the database that nobody holds."""
    if noted_process(settings.data_dir, "learner") is not None:
        try:
            found: Mapping[str, Mapping[str, int]] = ask("offsets")
        except NotRunning:
            return {}
        return found
    path = settings.folder.database
    try:
        return look_inside(path).offsets if path.is_file() else {}
    except DataDamaged:
        return {}


def _offsets(topic: TopicView, name: str, stored: Mapping[str, int]) -> Iterator[Finding]:
    lag = gone = 0
    for partition, offset in stored.items():
        first, end = topic.firsts.get(int(partition)), topic.ends.get(int(partition))
        if first is None or end is None or offset > end:
            yield problem(
                "topic",
                f"partition {partition} of {name} was read to {offset:,}, and ends at "
                f"{end or 0:,}: it was created again, or restored",
                "`flywheel learner --reset-offsets` reads it from its beginning, once you have "
                "decided that this is right",
            )
            continue
        lag, gone = lag + end - max(offset, first), gone + max(0, first - offset)
    if gone:
        yield problem(
            "topic",
            f"retention has removed {gone:,} records that were not read",
            "the learner counts them as a gap; lengthen the topic's retention, or read sooner",
        )
    elif stored:
        kept = f"; it keeps {_days(topic.retention_ms)}" if topic.retention_ms else ""
        yield ok("topic", f"{lag:,} records wait to be read, and none was lost to retention{kept}")


def _days(milliseconds: int) -> str:
    if milliseconds < 0:
        return "them for ever"
    hours = milliseconds / 3_600_000
    return f"them for {hours / 24:.1f} days" if hours >= 24 else f"them for {hours:.1f} hours"


def look_at_teacher(settings: Settings, ask: Ask) -> Iterator[Finding]:
    teacher = settings.teacher
    if not teacher.base_url:
        yield warning("teacher", "none is set: nothing is labelled", "set [teacher]")
        return
    url = f"{teacher.base_url}/models"
    try:
        answer = httpx2.get(
            url,
            params=teacher.query,
            headers=teacher.http_headers,
            timeout=TEACHER_SECONDS,
            follow_redirects=False,
        )
    except httpx2.HTTPError as error:
        yield problem(
            "teacher",
            f"{teacher.base_url} cannot be reached ({type(error).__name__}: {error})",
            "check teacher.base_url, the network and its proxy; students go on answering",
        )
        return
    yield _judged(settings, answer)
    yield from _clock(answer)


def _judged(settings: Settings, answer: httpx2.Response) -> Finding:
    teacher, said = settings.teacher, f"({NO_SPENDING})"
    lets_in = "accepts our key" if teacher.api_key.get_secret_value() else "asks for no key"
    if answer.status_code in (401, 403):
        return problem(
            "teacher",
            f"it answers and does not accept our key: {answer.status_code} {said}",
            "set teacher.api_key, or ask for its rights",
        )
    if answer.status_code != 200:
        return warning(
            "teacher",
            f"it answers, and has no listing of models: {answer.status_code} {said}; whether it "
            "accepts our key is not known",
            "the first call will tell; `flywheel status` shows what came of it",
        )
    try:
        names = {str(one["id"]) for one in answer.json()["data"]}
    except (ValueError, KeyError, TypeError):
        names = set()
    if names and teacher.model not in names:
        return problem(
            "teacher",
            f"it {lets_in}, and lists no model {teacher.model} {said}",
            f"set teacher.model to one of {', '.join(sorted(names)[:5])}",
        )
    return ok("teacher", f"it {lets_in} and lists {teacher.model or 'its models'} {said}")


def _clock(answer: httpx2.Response) -> Iterator[Finding]:
    try:
        theirs = parsedate_to_datetime(answer.headers["date"])
        off = abs(theirs - datetime.now(UTC))
    except (KeyError, ValueError, TypeError):
        return
    sentence = f"our clock and the teacher's differ by {off.total_seconds():,.0f} s"
    if off >= CLOCK_PROBLEM:
        yield problem("clock", sentence, "set this host's clock by NTP: budgets and days go by it")
    elif off >= CLOCK_WARNING:
        yield warning("clock", sentence, "look whether NTP runs on this host")
    else:
        yield ok("clock", sentence)
