"""Fixtures that several test files share."""

import os
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import structlog
from demo_fixture import RunningDemo, running_demo_in
from gateway_rig import RunningGateway, serving, settings_for
from http_rig import Account
from hypothesis import HealthCheck, settings
from kafka_broker import running_broker
from lived_in import LivedIn
from lived_in import lived_in as living
from xdist.scheduler import LoadScopeScheduling

SERVICES = ("kafka", "prometheus", "browser")
# Not a service, and not everybody has it: the benchmark's data.
MAY_BE_MISSING = "banking77"
# Tests of one group run one after another. What is started for the whole session is then started
# once, and two trainings never share the processor. The longest groups come first.
TRAINING = "training"
SHARED = ("running_demo", "lived_in", "kafka_broker")  # fixtures
TRAINING_FILES = (
    "test_loop_recipes",
    "test_tuning",
    "test_engine",
    "test_gateway_causal",
    "test_families",
)
# Starting them is counted as time of the test that happens to be the first.
FIRST_OF_SHARED_SECONDS = 900

# Slow examples tell of a busy machine.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real Kafka broker: `bootstrap_servers`, `create_topic(name, partitions=…)`, `restart()`."""
    yield from running_broker(tmp_path_factory.mktemp("kafka"))


@pytest.fixture(scope="module")
def the_account() -> Iterator[Account]:
    account = Account()
    with serving(account.app()) as port:
        account.port = port
        yield account


@pytest.fixture
def account(the_account: Account) -> Account:
    """A teacher that answers every path, with nothing asked yet."""
    the_account.requests.clear()
    the_account.urls.clear()
    the_account.headers = {}
    return the_account


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, the_account: Account
) -> Iterator[RunningGateway]:
    """One for all tests of a file that set nothing, before that teacher."""
    running = RunningGateway(settings_for(tmp_path_factory.mktemp("gateway"), the_account))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Whoever runs the tests may have a flywheel of his own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("FLYWHEEL_")]:
            patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A program of ours sets up the logs of its whole process, which here is also the next test's.

    No logger of ours keeps what it was bound to (no `cache_logger_on_first_use`).
    """
    yield
    structlog.reset_defaults()


@cache
def _group(path: Path) -> str:
    """Which files' tests may not run beside those of this one."""
    if path.stem in TRAINING_FILES:
        return TRAINING
    text = path.read_text()
    used = (name for name in SHARED if f"{name}:" in text or f'"{name}"' in text)
    return next(used, path.stem)


class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
    """The workers of `make test` take a group at a time, in the order of collection.

    pytest-xdist has marks for this (loadgroup), which do nothing with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _group(Path(__file__).parent.parent / nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    config.option.loadscopereorder = False  # the longest first, which are not those of most tests
    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {*SHARED} & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.timeout(FIRST_OF_SHARED_SECONDS))
    groups = [TRAINING, *SHARED]
    items.sort(key=lambda item: (*groups, _group(item.path)).index(_group(item.path)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A missing service is a skip on a laptop, and a failure on CI."""
    report = yield
    needs_service = any(item.get_closest_marker(name) for name in SERVICES)
    if report.skipped and needs_service and os.environ.get("CI") == "true":
        reason = str(report.longrepr)
        if MAY_BE_MISSING not in reason:
            report.outcome = "failed"
            report.longrepr = f"skipped, but on CI nothing may be missing: {reason}"
    return report


@pytest.fixture(scope="module")
def running_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDemo]:
    """`flywheel demo --approve` on free ports, for all tests of a file: change nothing in it."""
    yield from running_demo_in(tmp_path_factory.mktemp("running-demo"))


@pytest.fixture(scope="session")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivedIn]:
    """A data folder that really lived, and a backup of its youth: copy it, change nothing in it."""
    with living(tmp_path_factory.mktemp("lived-in")) as lived:
        yield lived
