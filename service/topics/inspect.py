"""A look at the topic from outside, for whoever looks for trouble: nothing is made or changed."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

from service.settings import Settings
from service.topics.opening import EMBEDDED_FILE, kafka_options

AHEAD_SECONDS = 300  # a record that claims to be from later than this is from another clock


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicView:
    """What the broker (or the file) says of the topic. `codec` empty: each producer's own."""

    where: str
    identity: str
    firsts: Mapping[int, int]
    ends: Mapping[int, int]
    codec: str = ""
    retention_ms: int | None = None
    from_the_future: int = 0  # partitions that hold a record with a time still to come


def inspect_topic(settings: Settings) -> TopicView | None:
    """None where there is no topic yet. Raises `BrokerUnavailable`, `SettingsError`, ..."""
    if settings.kafka.bootstrap_servers:
        from service.topics.kafka_inspect import inspect_kafka

        ahead_ms = int((time.time() + AHEAD_SECONDS) * 1000)
        return inspect_kafka(kafka_options(settings), ahead_ms)
    from service.topics.topic_file import open_file, read_head

    path = settings.data_dir / EMBEDDED_FILE
    if not path.is_file():
        return None
    with closing(open_file(path)) as connection:
        head = read_head(connection)
    return TopicView(
        where=str(path),
        identity=head.identity,
        firsts={0: head.first_offset},
        ends={0: head.next_offset},
    )
