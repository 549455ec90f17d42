"""Dead letters: records that could not be read, and how one of them goes back on the topic."""

from collections.abc import Callable
from datetime import datetime

from pipelines.errors import Refused
from pipelines.types import DeadLetter
from service.topics import TopicWriter
from storage.database import Database
from storage.dead_letters import dead_letter, dead_letters, mark_replayed

REPLAY_TIMEOUT_SECONDS = 10.0


class Letters:
    """Reads them, and replays one as it came."""

    def __init__(
        self,
        database: Database,
        now: Callable[[], datetime],
        open_writer: Callable[[], TopicWriter],
    ) -> None:
        self._database = database
        self._now = now
        self._open_writer = open_writer
        self._writer: TopicWriter | None = None  # opened for the first replay

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def list(self, limit: int, *, pending_only: bool) -> list[DeadLetter]:
        with self._database.snapshot() as tx:
            return dead_letters(tx, limit=limit, pending_only=pending_only)

    def replay(self, topic: str, partition: int, offset: int) -> None:
        """Marked as replayed only once it is durable on the topic."""
        letter = self._find(topic, partition, offset)
        if letter.payload is None:
            raise Refused("the record was empty; there is nothing to replay")
        writer = self._writer = self._writer or self._open_writer()
        writer.send(letter.payload, headers=letter.headers)
        writer.flush(REPLAY_TIMEOUT_SECONDS)
        with self._database.transaction() as tx:
            mark_replayed(tx, letter, self._now())

    def _find(self, topic: str, partition: int, offset: int) -> DeadLetter:
        with self._database.snapshot() as tx:
            found = dead_letter(tx, topic, partition, offset)
        if found is None:
            raise Refused(f"there is no dead letter at {topic}/{partition}/{offset}")
        if found.replayed_at is not None:
            raise Refused(f"the dead letter at {topic}/{partition}/{offset} was replayed already")
        return found
