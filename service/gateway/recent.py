"""The last requests, so that feedback can name one by its id alone."""

from collections import OrderedDict
from dataclasses import dataclass

from msgspec.structs import replace

from pipelines.records.native import NativeRecord

MOST_REQUESTS = 20_000
MOST_BYTES = 24 << 20


@dataclass(slots=True)
class Answered:
    """A request's record, as far as a verdict on it repeats it, and how often it was judged."""

    record: NativeRecord
    size: int
    verdicts: int = 0


class Recent:
    """Bounded in number and in bytes; the oldest are forgotten first."""

    def __init__(self, *, most: int = MOST_REQUESTS, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._requests: OrderedDict[str, Answered] = OrderedDict()
        self._aliases: OrderedDict[str, str] = OrderedDict()

    def add(self, record: NativeRecord, *, size: int, alias: str | None = None) -> None:
        """Remember; `alias` is the id that the teacher gave the answer, where the app saw that."""
        event_id = record.event_id or ""
        self._requests[event_id] = Answered(_repeated(record), size)
        self._bytes += size
        if alias:
            self._aliases[alias] = event_id
            if len(self._aliases) > self._most:
                self._aliases.popitem(last=False)
        while len(self._requests) > self._most or self._bytes > self._most_bytes:
            _, oldest = self._requests.popitem(last=False)
            self._bytes -= oldest.size

    def find(self, name: str) -> Answered | None:
        """By event id, or by the id of the answer."""
        return self._requests.get(self._aliases.get(name, name))


def _repeated(record: NativeRecord) -> NativeRecord:
    """Without what was said once and for all: the teacher's own word, its price, attributes."""
    return replace(
        record,
        occurred_at=None,
        teacher_answer=None,
        teacher_model=None,
        usage=None,
        attributes={},
    )
