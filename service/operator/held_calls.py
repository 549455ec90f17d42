"""Teacher calls of which nobody knows whether they were answered: an operator decides."""

from collections.abc import Callable, Sequence
from datetime import datetime

from pipelines.errors import Refused
from service.operator.status import UnknownOutcome
from storage.database import Database
from storage.ledger import Call, Ledger
from storage.samples import requeue_held, set_status, tasks_of


class HeldCalls:
    """`release` asks the teacher again, `drop` never does."""

    def __init__(self, database: Database, ledger: Ledger, now: Callable[[], datetime]) -> None:
        self._database = database
        self._ledger = ledger
        self._now = now

    def list(self) -> Sequence[UnknownOutcome]:
        calls = self._ledger.unknown()
        with self._database.snapshot() as tx:
            tasks = tasks_of(tx, [call.event_id for call in calls])
        return [
            UnknownOutcome(
                key=call.key,
                event_id=call.event_id,
                sent_at=call.at,
                reserved=call.reserved.money,
                detail=call.detail,
                task=tasks.get(call.event_id, ""),
            )
            for call in calls
        ]

    def release(self, key: str) -> None:
        """Ask again: it may be paid twice, and an operator says that this is fine."""
        self._call(key)
        self._ledger.note(key, "released", detail="by an operator", now=self._now())
        with self._database.transaction() as tx:
            requeue_held(tx)  # samples with an equal prompt were held with it

    def drop(self, key: str) -> None:
        """Do without this label."""
        call = self._call(key)
        self._ledger.note(key, "dropped", detail="by an operator", now=self._now())
        with self._database.transaction() as tx:
            set_status(tx, [call.event_id], "failed", "dropped by an operator")
            requeue_held(tx)

    def _call(self, key: str) -> Call:
        call = self._ledger.call(key)
        if call is None or call.step != "unknown":
            raise Refused(f"no held call has the key {key}")
        return call
