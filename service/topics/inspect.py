"""A look at the topic from outside, for whoever looks for trouble: nothing is made or changed."""

import time
from contextlib import closing

from service.settings import Settings
from service.topics import TopicView
from service.topics.opening import kafka_options

AHEAD_SECONDS = 300  # a record that claims to be from later than this is from another clock


def inspect_topic(settings: Settings) -> TopicView | None:
    """None where there is no topic yet. Raises `BrokerUnavailable`, `SettingsError`, ..."""
    if settings.kafka.bootstrap_servers:
        from service.topics.kafka_inspect import inspect_kafka

        ahead_ms = int((time.time() + AHEAD_SECONDS) * 1000)
        return inspect_kafka(kafka_options(settings), ahead_ms)
    from service.topics.topic_file import open_file, read_head

    path = settings.folder.topic
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
