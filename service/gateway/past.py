"""How many of a task's requests went past its student, and why: told to the learner."""

from collections import Counter
from collections.abc import Mapping


class PastStudents:
    """Counts since this gateway started."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._past: dict[str, Counter[str]] = {}

    def claimed(self, task: str) -> None:
        """A request of the task, whoever answers it."""
        self._requests[task] += 1

    def went(self, task: str, reason: str) -> None:
        """One of them that no student may answer."""
        self._past.setdefault(task, Counter())[reason] += 1

    def requests(self) -> Mapping[str, int]:
        return dict(self._requests)

    def reasons(self) -> Mapping[str, Mapping[str, int]]:
        return {task: dict(reasons) for task, reasons in self._past.items()}
