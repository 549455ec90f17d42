"""What the gateways report: who serves what now, and each change of it, kept as a swap."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import structlog

from pipelines.errors import FlywheelError
from service.operator.board import Board
from service.operator.status import GatewaySeen
from service.planes import EVERYTHING
from storage.database import Database
from storage.swaps import add_swap, last_reported

log = structlog.get_logger()


class Gateways:
    """Puts the last report of each gateway on the board. Safe to use from several threads."""

    def __init__(self, database: Database, board: Board, now: Callable[[], datetime]) -> None:
        self._database = database
        self._board = board
        self._now = now

    def heard(self, said: Mapping[str, Any]) -> None:
        """A report. Logged and stored when something has changed."""
        seen = GatewaySeen(
            name=str(said.get("gateway")),
            heard_at=self._now(),
            serving=_texts(said.get("serving")),
            failed=_texts(said.get("failed")),
        )
        before = self._board.hear(seen)
        if before and (before.serving, before.failed) == (seen.serving, seen.failed):
            return
        log.info("gateway_reported", gateway=seen.name, serving=seen.serving, failed=seen.failed)
        try:
            self._store(seen)
        except FlywheelError as error:  # a full disk: what is served matters more than its record
            log.warning("swap_not_recorded", gateway=seen.name, error=str(error))

    def _store(self, seen: GatewaySeen) -> None:
        with self._database.transaction() as tx:
            before = last_reported(tx, seen.name)
            for task in sorted({*before, *seen.serving, *seen.failed} - {EVERYTHING}):
                said = seen.serving.get(task, ""), seen.failed.get(task, "")
                if said != before.get(task, ("", "")):
                    add_swap(
                        tx,
                        gateway=seen.name,
                        task=task,
                        version=said[0],
                        problem=said[1],
                        now=seen.heard_at,
                    )


def _texts(told: Any) -> dict[str, str]:
    if not isinstance(told, Mapping):
        return {}
    return {str(key): str(value) for key, value in told.items()}
