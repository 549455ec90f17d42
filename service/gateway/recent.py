"""The last requests, so that feedback can name one by its id alone."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.records.native import NativeStudent
from pipelines.types import Message, ServedBy

MOST_REQUESTS = 20_000
MOST_BYTES = 24 << 20


@dataclass(slots=True, kw_only=True)
class Answered:
    """One request and what became of it."""

    event_id: str
    task: str
    model: str
    messages: Sequence[Message]
    answer: str | None
    served_by: ServedBy
    student: NativeStudent | None
    user: str | None
    size: int
    feedback: int = 0  # how often it was judged


class Recent:
    """Bounded in number and in bytes; the oldest are forgotten first."""

    def __init__(self, *, most: int = MOST_REQUESTS, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._requests: OrderedDict[str, Answered] = OrderedDict()
        self._aliases: OrderedDict[str, str] = OrderedDict()

    def add(self, answered: Answered, alias: str | None = None) -> None:
        """Remember; `alias` is the id that the teacher gave the answer, where the app saw that."""
        self._requests[answered.event_id] = answered
        self._bytes += answered.size
        if alias:
            self._aliases[alias] = answered.event_id
            if len(self._aliases) > self._most:
                self._aliases.popitem(last=False)
        while len(self._requests) > self._most or self._bytes > self._most_bytes:
            _, oldest = self._requests.popitem(last=False)
            self._bytes -= oldest.size

    def find(self, name: str) -> Answered | None:
        """By event id, or by the id of the answer."""
        return self._requests.get(self._aliases.get(name, name))
