"""Topics: where prompt events come from and go to. Kafka, or an embedded one for hosts without."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pipelines.types import Headers, Record


class Batch(NamedTuple):
    """What one poll returned, and where the next poll of each partition starts.

    Only partitions that moved are named. A position may move without a record: a broker
    keeps offsets for things that are not handed out, such as the ends of transactions.
    """

    records: Sequence[Record]
    next_offsets: Mapping[int, int]


class Gap(NamedTuple):
    """Offsets [first, last) that retention removed before we read them."""

    partition: int
    first: int
    last: int


class TopicReader(Protocol):
    """Reads all partitions of one topic, from positions that the caller keeps.

    The reader never decides where to start: `seek` is told, and what it cannot
    honour is returned as gaps or raised as `OffsetsLost`.
    """

    name: str

    def identity(self) -> str:
        """An id that changes when the topic is deleted and created again."""
        ...

    def seek(self, next_offsets: Mapping[int, int]) -> Sequence[Gap]:
        """Start at these offsets; partitions that are not named start at their beginning.

        Returns the gaps where retention has passed a stored offset (reading goes on
        behind them). Raises `OffsetsLost` where a stored offset lies beyond the end.
        """
        ...

    def poll(self, *, max_records: int, timeout_seconds: float) -> Batch:
        """The next records, or an empty batch. Notices partitions that were added."""
        ...

    def take_gaps(self) -> Sequence[Gap]:
        """Gaps noticed while polling (retention overtook us) since the last call."""
        ...

    def pause(self) -> None:
        """Fetch nothing, but keep polling so that the connection stays alive."""
        ...

    def resume(self) -> None: ...

    def report_progress(self, next_offsets: Mapping[int, int]) -> None:
        """Tell the broker how far we are. A gauge for lag tools, never read back."""
        ...

    def lag(self) -> Mapping[int, int]:
        """Records between our position and the end, by partition."""
        ...

    def problems(self) -> Sequence[str]:
        """What hinders reading right now, a sentence each. Empty: nothing does."""
        ...

    def close(self) -> None: ...


class TopicWriter(Protocol):
    """Appends records. Safe to use from several threads."""

    def send(self, value: bytes, *, key: bytes | None = None, headers: Headers = ()) -> None:
        """Queue one record, without waiting. Raises `BrokerUnavailable` when the queue is full."""
        ...

    def flush(self, timeout_seconds: float) -> None:
        """Return when all that was sent before is durable.

        Raises `BrokerUnavailable` or `DiskFull` if it is not, or if a record was given up
        since the last flush.
        """
        ...

    def failed(self) -> int:
        """Records that were queued and then given up."""
        ...

    def close(self) -> None:
        """Flush for a few seconds, then let go. Whoever has to know flushes first."""
        ...


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
