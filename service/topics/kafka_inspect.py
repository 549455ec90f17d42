"""What a Kafka broker says of the topic, without making it or reading a record."""

from contextlib import closing
from dataclasses import replace
from typing import Any

from kafka import KafkaAdminClient, OffsetSpec, TopicPartition, errors
from kafka.admin import ConfigResource, ConfigResourceType

from service.topics import TopicView
from service.topics.kafka_connection import (
    ADMIN_SETTINGS,
    KafkaOptions,
    check_crc32c,
    check_extra,
    connect,
    describe,
    offsets_at,
    translated,
)

CONNECT_SECONDS = 8.0


def inspect_kafka(options: KafkaOptions, ahead_ms: int) -> TopicView | None:
    """None where the broker has no such topic."""
    check_crc32c()
    check_extra(options.extra)
    options = replace(options, connect_timeout_seconds=CONNECT_SECONDS)
    with closing(connect(KafkaAdminClient, options, ADMIN_SETTINGS)) as admin, translated(options):
        found = describe(admin, options.topic)
        if found is None:
            return None
        partitions = [
            TopicPartition(options.topic, one["partition_index"]) for one in found["partitions"]
        ]
        configured = _configured(admin, options.topic)
        codec = configured.get("compression.type", "")
        retention = configured.get("retention.ms", "")
        later = offsets_at(admin, partitions, ahead_ms, options)
        return TopicView(
            where=options.bootstrap_servers,
            identity=str(found["topic_id"]),
            firsts=offsets_at(admin, partitions, OffsetSpec.EARLIEST, options),
            ends=offsets_at(admin, partitions, OffsetSpec.LATEST, options),
            codec="" if codec == "producer" else codec,
            retention_ms=int(retention) if retention.lstrip("-").isdigit() else None,
            from_the_future=sum(offset >= 0 for offset in later.values()),
        )


def _configured(admin: Any, topic: str) -> dict[str, str]:
    """The topic's configuration, as far as we may see it."""
    wanted = ConfigResource(ConfigResourceType.TOPIC, topic)
    try:
        answer = admin.describe_configs([wanted], config_filter="all")["topic"][topic]
        return {name: str(about["value"]) for name, about in answer.items()}
    except (errors.KafkaError, KeyError, TypeError):
        return {}
