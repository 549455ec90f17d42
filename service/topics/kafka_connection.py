"""Connections to Kafka: options, clients, what the broker says of a topic, errors as ours."""

import importlib.util
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog
from kafka import IsolationLevel, KafkaConsumer, KafkaProducer, OffsetSpec, TopicPartition, errors
from kafka.admin import ConfigResource, ConfigResourceType

from pipelines.errors import BrokerUnavailable, SettingsError

log = structlog.get_logger(__name__)

ADMIN_SETTINGS: Mapping[str, Any] = {
    "request_timeout_ms": 10_000,
    "reconnect_backoff_max_ms": 2_000,
}
CLOSE_SECONDS = 5.0
LARGEST_REQUEST = 1 << 20  # unless the topic takes less
RECORD_OVERHEAD = 200
# What no setting may change, because the promises rest on it.
OURS = frozenset(
    {
        "bootstrap_servers",
        "bootstrap_timeout_ms",
        "group_id",
        "group_instance_id",
        "enable_auto_commit",
        "auto_offset_reset",
        "key_deserializer",
        "value_deserializer",
        "key_serializer",
        "value_serializer",
        "acks",
        "enable_idempotence",
        "transactional_id",
        "allow_auto_create_topics",
        "kafka_client",
    }
)
CHOICES = {
    "security_protocol": ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
    "sasl_mechanism": (
        "PLAIN",
        "SCRAM-SHA-256",
        "SCRAM-SHA-512",
        "GSSAPI",
        "OAUTHBEARER",
        "AWS_MSK_IAM",
    ),
    "isolation_level": ("read_uncommitted", "read_committed"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOptions:
    """Where the topic is. `extra` goes to kafka-python as it is: security, timeouts, sizes."""

    bootstrap_servers: str
    topic: str = "flywheel.prompts"
    group: str = "flywheel"  # under which progress is shown to lag tools
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold passwords
    create_topic: bool = True
    partitions: int = 3
    connect_timeout_seconds: float = 30.0
    watch_seconds: float = 5.0
    stuck_after_seconds: float = 60.0


class Sighting(NamedTuple):
    """What the broker said about the topic."""

    identity: str
    ends: Mapping[int, int]


def connect(make: Callable[..., Any], options: KafkaOptions, settings: Mapping[str, Any]) -> Any:
    """A client that has spoken to a broker. It tries again, with backoff, until the timeout."""
    known = make.DEFAULT_CONFIG  # type: ignore[attr-defined]
    extra = {key: value for key, value in options.extra.items() if key in known}
    networks: list[Any] = []

    def network(**config: Any) -> Any:
        networks.append(known["kafka_client"](**config))
        return networks[-1]

    try:
        return make(
            bootstrap_servers=options.bootstrap_servers.split(","),
            bootstrap_timeout_ms=math.ceil(options.connect_timeout_seconds * 1000),
            kafka_client=network,
            **{"client_id": "flywheel", **settings, **extra},
        )
    except Exception as problem:
        for abandoned in networks:  # a client that could not start leaves its thread running
            with suppress(Exception):
                abandoned.close()
        if isinstance(problem, (errors.RetriableError, OSError)):
            raise BrokerUnavailable(why_unreachable(options, problem)) from problem
        raise SettingsError(
            f"kafka-python does not accept these settings: {type(problem).__name__}: {problem}"
        ) from problem


def ensure_topic(admin: Any, options: KafkaOptions) -> None:
    with translated(options):
        if describe(admin, options.topic) is not None:
            return
        if not options.create_topic:
            raise SettingsError(
                f"The topic {options.topic} does not exist on {options.bootstrap_servers}. Create "
                "it, correct its name, or set create_topic to true."
            )
        wanted = {"num_partitions": options.partitions, "replication_factor": -1}
        with suppress(errors.TopicAlreadyExistsError):
            admin.create_topics({options.topic: wanted})
        admin.wait_for_topics([options.topic])
        log.info("kafka_topic_created", topic=options.topic, partitions=options.partitions)


def describe(admin: Any, topic: str) -> Any:
    """The broker's description of the topic; None if there is no such topic."""
    (description,) = admin.describe_topics([topic])
    error = errors.for_code(description["error_code"])
    if error is errors.UnknownTopicOrPartitionError:
        return None
    if error is not errors.NoError:
        raise error(topic)
    return description


def look(admin: Any, options: KafkaOptions) -> Sighting:
    description = describe(admin, options.topic)
    if description is None:
        raise SettingsError(
            f"The topic {options.topic} is no longer on {options.bootstrap_servers}. Restore it, "
            "or point the settings to another."
        )
    partitions = [
        TopicPartition(options.topic, p["partition_index"]) for p in description["partitions"]
    ]
    ends = offsets_at(admin, partitions, OffsetSpec.LATEST, options)
    return Sighting(str(description["topic_id"]), ends)


def offsets_at(
    admin: Any, partitions: Sequence[Any], spec: Any, options: KafkaOptions
) -> Mapping[int, int]:
    level = IsolationLevel.build_from(options.extra.get("isolation_level", "read_uncommitted"))
    found = admin.list_partition_offsets(
        dict.fromkeys(partitions, spec), isolation_level=level, timeout_ms=10_000
    )
    return {partition.partition: at.offset for partition, at in sorted(found.items())}


def largest_record(admin: Any, options: KafkaOptions) -> int:
    """How large a record the topic takes, if we may know."""
    wanted = ConfigResource(ConfigResourceType.TOPIC, options.topic)
    try:
        answer = admin.describe_configs([wanted], config_filter="all")
        limit = int(answer["topic"][options.topic]["max.message.bytes"]["value"])
    except (errors.KafkaError, KeyError, ValueError):
        return LARGEST_REQUEST
    return max(1, min(limit - RECORD_OVERHEAD, LARGEST_REQUEST))


def check_crc32c() -> None:
    if importlib.util.find_spec("crc32c") is None:
        raise SettingsError(
            "The package crc32c is missing; without it Kafka is read 28 times slower. "
            "Install it: pip install crc32c"
        )


def check_extra(extra: Mapping[str, Any]) -> None:
    known = KafkaConsumer.DEFAULT_CONFIG.keys() | KafkaProducer.DEFAULT_CONFIG.keys()
    if unknown := sorted(extra.keys() - known):
        raise SettingsError(f"kafka-python has no settings named {', '.join(unknown)}.")
    for name, choices in CHOICES.items():  # which kafka-python takes as they come
        if extra.get(name) not in (None, *choices):
            raise SettingsError(f"{name} is {extra[name]}; it can be {', '.join(choices)}.")
    if ours := sorted(extra.keys() & OURS):
        raise SettingsError(f"flywheel decides these Kafka settings itself: {', '.join(ours)}.")


class translated:
    """Errors of the client as ours, with what to do."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options

    def __enter__(self) -> None: ...

    def __exit__(self, _: Any, problem: BaseException | None, __: Any) -> None:
        if isinstance(problem, errors.AuthorizationError):
            raise SettingsError(
                f"{self._options.bootstrap_servers} does not let us use {self._options.topic}: "
                f"{problem}. Give our user the right to READ, WRITE and DESCRIBE it."
            ) from problem
        if isinstance(problem, errors.KafkaError):
            raise BrokerUnavailable(why_unreachable(self._options, problem)) from problem


def why_unreachable(options: KafkaOptions, problem: BaseException) -> str:
    """A sentence with what a plain connection to the servers says, which clients hide."""
    found = "; ".join(
        f"{server}: {_knock(server)}" for server in options.bootstrap_servers.split(",")
    )
    return (
        f"No Kafka broker answers ({type(problem).__name__}: {problem}). Servers tried: {found}. "
        "Check bootstrap_servers, the network, and security_protocol with its sasl_ and ssl_ "
        "settings."
    )


def _knock(server: str) -> str:
    host, _, port = server.strip().rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except (OSError, ValueError) as problem:
        return str(problem)
    return "accepts connections"
