"""Fixtures that several test files share."""

from collections.abc import Iterator
from typing import Any

import pytest
from kafka_broker import running_broker


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real Kafka broker: `bootstrap_servers`, `create_topic(name, partitions=…)`, `restart()`."""
    yield from running_broker(tmp_path_factory.mktemp("kafka"))
