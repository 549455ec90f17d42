"""Which topic the settings mean: Kafka where a broker is set, else the embedded one."""

from typing import TYPE_CHECKING

from service.settings import Settings
from service.topics import TopicReader, TopicWriter

if TYPE_CHECKING:
    from service.topics.kafka import KafkaOptions


def open_reader(settings: Settings) -> TopicReader:
    """Raises `BrokerUnavailable` or `DataDamaged` with what to do about it."""
    if settings.kafka.bootstrap_servers:
        from service.topics.kafka import KafkaTopicReader

        return KafkaTopicReader(kafka_options(settings))
    from service.topics.embedded import EmbeddedTopicReader

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return EmbeddedTopicReader(settings.folder.topic, name=settings.kafka.topic)


def open_writer(settings: Settings) -> TopicWriter:
    """Raises as `open_reader` does."""
    if settings.kafka.bootstrap_servers:
        from service.topics.kafka import KafkaTopicWriter

        return KafkaTopicWriter(kafka_options(settings))
    from service.topics.embedded import EmbeddedTopicWriter

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return EmbeddedTopicWriter(settings.folder.topic)


def kafka_options(settings: Settings) -> "KafkaOptions":
    from service.topics.kafka import KafkaOptions

    kafka = settings.kafka
    return KafkaOptions(
        bootstrap_servers=kafka.bootstrap_servers,
        topic=kafka.topic,
        group=kafka.group,
        create_topic=kafka.create_topic,
        partitions=kafka.partitions,
        extra=kafka.options,
    )
