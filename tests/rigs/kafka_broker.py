"""The broker that the tests talk to: a real one, started on free ports and stopped afterwards."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

BROKER_MODULE = Path(__file__).parents[2] / "deploy" / "kafka" / "broker.py"


def broker_module() -> Any:
    """deploy/kafka/broker.py, the same file that `make kafka` runs."""
    if "flywheel_broker" not in sys.modules:
        spec = importlib.util.spec_from_file_location("flywheel_broker", BROKER_MODULE)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["flywheel_broker"] = module
        spec.loader.exec_module(module)
    return sys.modules["flywheel_broker"]


def running_broker(data: Path) -> Iterator[Any]:
    """Yield a started `Broker`; skip where Java or Maven is missing, but never on CI."""
    module = broker_module()
    if sentence := module.missing_programs():
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    broker = module.Broker(data)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def topic_name(purpose: str = "prompts") -> str:
    """A name that no other test uses."""
    return f"{purpose}-{uuid4().hex[:8]}"
