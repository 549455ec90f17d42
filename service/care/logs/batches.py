"""OpenAI's batches come as two files: the answers are put beside their requests again."""

from pathlib import Path

from pipelines.errors import InvalidMessage
from service.care.logs.call import EVERY, Progress, Row
from service.care.logs.files import open_log
from service.care.logs.shapes import BATCH_ANSWER, BATCH_REQUEST

TWICE = "its custom_id stands in more than one response: import each batch by itself"
NO_REQUEST = "its request is in none of the files"


class BatchAnswers:
    """The responses of some files, by `custom_id`. They are short, so they are held."""

    def __init__(self) -> None:
        self._files = 0
        self._held: dict[str, Row] = {}
        self._taken: set[str] = set()
        self._twice: set[str] = set()

    @property
    def held(self) -> bool:
        """Whether there was a file of responses at all."""
        return bool(self._files)

    def hold(self, path: Path, progress: Progress) -> None:
        """Read a file of responses. A line that is none is said when its file is imported."""
        self._files += 1
        for at, (_, row, problem) in enumerate(open_log(path).lines, 1):
            if at % EVERY == 0:
                progress(at)
            if problem or not BATCH_ANSWER.fits(row):
                continue
            name = str(row["custom_id"])
            if name in self._held:
                self._twice.add(name)
            self._held[name] = {"response": row.get("response"), "error": row.get("error")}

    def beside(self, row: Row) -> Row:
        """A request with its response, where there is exactly one."""
        name = str(row.get("custom_id"))
        if not BATCH_REQUEST.fits(row) or name in self._twice or name not in self._held:
            return row
        if name in self._taken:
            raise InvalidMessage("an earlier request has the same custom_id")
        self._taken.add(name)
        return {**row, **self._held[name]}

    def why_left(self, row: Row) -> str:
        """Of a response, once all requests were seen. Empty: a request has taken it."""
        name = str(row.get("custom_id"))
        if name in self._twice:
            return TWICE
        return "" if name in self._taken else NO_REQUEST


def is_of_answers(path: Path) -> bool:
    """Whether a file begins with a batch's response."""
    first = next(iter(open_log(path).lines), None)
    return first is not None and not first.problem and BATCH_ANSWER.fits(first.row)
