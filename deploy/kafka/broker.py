"""A real Apache Kafka broker for development and tests: fetch it, format its storage, start it."""

import argparse
import base64
import ctypes
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".cache" / "kafka"
START_TIMEOUT_SECONDS = 90.0
STOP_TIMEOUT_SECONDS = 30.0
# A small heap is plenty for one node; the quick compiler alone halves the time to start.
JVM_FLAGS = ("-Xmx384m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


class BrokerProblem(Exception):
    """The broker cannot be fetched or started. The message says what to do."""


def missing_programs() -> str | None:
    """What the broker needs and this machine lacks, in a sentence; None if nothing."""
    missing = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if not missing:
        return None
    return (
        f"{' and '.join(missing)} not found. The Kafka broker needs Java 17 or newer and Maven: "
        "`apt-get install openjdk-17-jre-headless maven`, or `brew install openjdk maven`."
    )


def fetch_jars(cache: Path = CACHE) -> Path:
    """The folder with Kafka's jars, filled by Maven the first time. Keyed by the pom's content."""
    pom = HERE / "pom.xml"
    libs = cache / f"libs-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if libs.is_dir():
        return libs
    if sentence := missing_programs():
        raise BrokerProblem(sentence)
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="fetch-", dir=cache))
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
    done = subprocess.run(
        [*command, f"-DoutputDirectory={unfinished}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise BrokerProblem(
            "Maven could not fetch Kafka's jars. It needs a Maven repository the first time.\n"
            + (done.stdout + done.stderr)[-2000:]
        )
    try:
        unfinished.rename(libs)
    except OSError:  # another process was quicker
        shutil.rmtree(unfinished, ignore_errors=True)
    return libs


def free_port() -> int:
    """None that the system lends to connections: one could take it while the broker is down."""
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _die_with_parent() -> None:
    """A killed test run must not leave a JVM behind. Linux only; elsewhere Ctrl-C does it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Broker:
    """One broker on one port over one data folder, which survive stop and start."""

    def __init__(self, data: Path, *, port: int = 0, quiet: bool = True) -> None:
        self.data = data
        self.port = port or free_port()
        self._controller_port = free_port()
        self._quiet = quiet
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log_file(self) -> Path:
        return self.data / "broker.log"

    def start(self) -> None:
        """Return when the broker accepts connections."""
        if _accepts(self.port):
            raise BrokerProblem(
                f"Port {self.port} is in use. Choose another with --port, or stop what uses it."
            )
        libs = fetch_jars()
        self.data.mkdir(parents=True, exist_ok=True)
        properties = self._write_properties()
        if not (self.data / "log" / "meta.properties").exists():
            self._format(libs, properties)
        command = self._java(libs, "kafka.Kafka", str(properties))
        output = None if not self._quiet else subprocess.DEVNULL
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches us first; we stop it in order
            preexec_fn=_die_with_parent,
        )
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop in order. What was acknowledged is on disk."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop as a power cut would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def wait(self) -> int:
        """Block until the broker ends by itself."""
        return self._process.wait() if self._process else 0

    def create_topic(
        self, name: str, *, partitions: int = 1, settings: dict[str, str] | None = None
    ) -> None:
        topic = {"num_partitions": partitions, "replication_factor": 1, "configs": settings or {}}
        with self._admin() as admin:
            admin.create_topics({name: topic}, wait_for_metadata=True)

    def add_partitions(self, name: str, *, total: int) -> None:
        with self._admin() as admin:
            admin.create_partitions({name: total})
            admin.wait_for_topics([name])

    def delete_topic(self, name: str) -> None:
        """Return when the name is free again."""
        with self._admin() as admin:
            admin.delete_topics([name])
            deadline = time.monotonic() + 20
            while name in admin.list_topics() and time.monotonic() < deadline:
                time.sleep(0.1)

    def delete_records(self, name: str, *, before: dict[int, int]) -> None:
        """What retention does: drop the records below these offsets."""
        from kafka import TopicPartition

        with self._admin() as admin:
            admin.delete_records({TopicPartition(name, p): at for p, at in before.items()})

    def committed_offsets(self, group: str) -> dict[int, int]:
        """What lag tools see. Nothing as long as no group ever committed."""
        from kafka.errors import RetriableError

        try:
            with self._admin() as admin:
                groups = admin.list_group_offsets({group: None})
        except RetriableError:
            return {}
        return {tp.partition: at.offset for tp, at in groups[group].items()}

    def _admin(self) -> Any:
        from kafka import KafkaAdminClient

        return KafkaAdminClient(
            bootstrap_servers=self.bootstrap_servers, bootstrap_timeout_ms=20_000
        )

    def _write_properties(self) -> Path:
        template = Template((HERE / "server.properties").read_text())
        path = self.data / "server.properties"
        path.write_text(
            template.substitute(
                host="127.0.0.1",
                port=self.port,
                controller_port=self._controller_port,
                log_dir=(self.data / "log").as_posix(),
            )
        )
        return path

    def _java(self, libs: Path, main: str, *arguments: str) -> list[str]:
        java = shutil.which("java")
        if java is None:
            raise BrokerProblem(missing_programs() or "java not found.")
        logging = [
            f"-Dlog4j2.configurationFile={HERE / 'log4j2.xml'}",
            f"-Dflywheel.log={self.log_file}",
        ]
        return [java, *JVM_FLAGS, *logging, "-cp", f"{libs}/*", main, *arguments]

    def _format(self, libs: Path, properties: Path) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # In one word: an id may begin with a dash.
        arguments = ["format", f"--cluster-id={cluster}", "-c", str(properties), "--standalone"]
        done = subprocess.run(
            self._java(libs, "kafka.tools.StorageTool", *arguments),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BrokerProblem(
                "Kafka could not format its storage:\n" + (done.stdout + done.stderr)[-2000:]
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if not self.running:
                break
            if _accepts(self.port):
                return
            time.sleep(0.1)
        self.kill()
        tail = self.log_file.read_text()[-2000:] if self.log_file.exists() else "(no log)"
        raise BrokerProblem(f"The broker did not start. Its log {self.log_file} ends:\n{tail}")

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9092, help="where clients connect (9092)")
    parser.add_argument(
        "--data",
        type=Path,
        default=CACHE / "data",
        help="the data folder; kept between starts (.cache/kafka/data)",
    )
    parser.add_argument("--topic", help="create this topic if it is missing")
    parser.add_argument("--partitions", type=int, default=3, help="of that topic (3)")
    arguments = parser.parse_args()
    broker = Broker(arguments.data.resolve(), port=arguments.port, quiet=False)
    # SIGTERM ends us as Ctrl-C does, so that the broker is stopped in order.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        return _run_in_foreground(broker, arguments.topic, arguments.partitions)
    except KeyboardInterrupt:
        print("\nStopping the broker.", flush=True)
        return 0
    except BrokerProblem as problem:
        print(problem, file=sys.stderr)
        return 1
    finally:
        broker.stop()


def _run_in_foreground(broker: Broker, topic: str | None, partitions: int) -> int:
    began = time.monotonic()
    print("Fetching Kafka's jars (only the first time takes long) ...", flush=True)
    fetch_jars()
    print(f"Starting the broker on {broker.bootstrap_servers} ...", flush=True)
    broker.start()
    if topic:
        from kafka.errors import TopicAlreadyExistsError

        try:
            broker.create_topic(topic, partitions=partitions)
        except TopicAlreadyExistsError:
            print(f"The topic {topic} is there already.", flush=True)
    print(
        f"Kafka listens on {broker.bootstrap_servers} after {time.monotonic() - began:.1f} s. "
        f"Data and log: {broker.data}. Ctrl-C stops it.",
        flush=True,
    )
    return broker.wait()


if __name__ == "__main__":
    sys.exit(main())
