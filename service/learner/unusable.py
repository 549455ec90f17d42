"""Paid answers that were no label: told, and not bought any more when they come again and again."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from service.operator.board import Board
from service.operator.status import Unusable
from storage.samples import PendingSample

MANY = 20  # in a row, after which buying for the task rests
RESTS = timedelta(hours=1)
PROBE = 8  # are asked before anything was of use, and after a rest


class UnusableAnswers:
    """What the relabel job notes of each task; begins anew with the learner, as settings do."""

    def __init__(self, board: Board, now: Callable[[], datetime]) -> None:
        self._board = board
        self._now = now
        self._useful: set[str] = set()  # tasks whose last answer was a label

    def note(self, task: str, shapes: Sequence[str], *, useful: int) -> None:
        """Of one batch: what the answers that were no label looked like, and how many were one."""
        if useful:
            self._useful.add(task)
            self._board.note_unusable(task, None)
            return
        if not shapes:
            return
        self._useful.discard(task)
        before = self._board.unusable.get(task)
        count = (before.in_a_row if before else 0) + len(shapes)
        rests_until = self._now() + RESTS if count >= MANY else None
        self._board.note_unusable(task, Unusable(count, shapes[-1], rests_until))

    def rest(self, task: str) -> bool:
        """Whether nothing is bought for the task now."""
        found = self._board.unusable.get(task)
        until = found.rests_until if found else None
        return until is not None and timedelta(0) < until - self._now() <= RESTS

    def few(self, pending: Sequence[PendingSample]) -> list[PendingSample]:
        """Of a task none of whose answers was of use yet, or lately, only the first few."""
        seen: Counter[str] = Counter()
        kept = []
        for sample in pending:
            seen[sample.task] += 1
            if sample.task in self._useful or seen[sample.task] <= PROBE:
                kept.append(sample)
        return kept
