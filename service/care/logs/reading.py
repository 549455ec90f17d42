"""Some files to the calls that they hold, each with where it stands and what it was taken for."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import InvalidMessage, SettingsError
from service.care.logs.batches import BatchAnswers, is_of_answers
from service.care.logs.call import EVERY, LoggedCall, Progress, Row, Shape
from service.care.logs.files import LogFile, open_log
from service.care.logs.mapping import PROMPT, from_columns, has, overlaid
from service.care.logs.shapes import BATCH_ANSWER, COLUMNS, OWN_COLUMNS, SHAPES, rows_in, shape_of
from service.terminal import printable

TOO_DEEP = "nested too deeply"


class Found(NamedTuple):
    """One call, or why there is none: `None` is a row that is no model call."""

    path: Path
    line: int
    shape: str
    call: LoggedCall | InvalidMessage | None


def read_logs(
    paths: Sequence[Path], columns: Mapping[str, str], progress: Progress = lambda _: None
) -> Iterator[Found]:
    """All calls of some files. Raises `SettingsError` before the first where they cannot be read.

    `columns`: what the operator says lies where (`--map`).
    """
    answers = BatchAnswers()
    with_answers = [path for path in paths if len(paths) > 1 and is_of_answers(path)]
    for path in with_answers:
        answers.hold(path, progress)
    for path in paths:
        if path not in with_answers:
            _refuse_unknown_columns(path, columns, progress)
    # Answers last: what is left of them then has no request.
    ordered = [path for path in paths if path not in with_answers] + with_answers
    return _read(ordered, columns, answers)


def _read(
    paths: Sequence[Path], columns: Mapping[str, str], answers: BatchAnswers
) -> Iterator[Found]:
    for path in paths:
        for number, row, problem in open_log(path).lines:
            if problem:
                yield Found(path, number, "", InvalidMessage(problem))
                continue
            try:
                rows = list(rows_in(row))
            except RecursionError:
                yield Found(path, number, "", InvalidMessage(TOO_DEEP))
                continue
            for one in rows:
                yield from _found(path, number, one, columns, answers)


def _found(
    path: Path, number: int, row: Row, columns: Mapping[str, str], answers: BatchAnswers
) -> Iterator[Found]:
    name, none = "", True
    try:
        shape, asked = _shape_of(row, columns)
        name = shape.name
        if shape is BATCH_ANSWER and answers.held:
            if why := answers.why_left(row):
                yield Found(path, number, name, InvalidMessage(why))
            return
        if shape is COLUMNS and columns:
            yield Found(path, number, name, from_columns(row, _own(columns)))
            return
        for call in shape.read(answers.beside(asked)):
            none = False
            if columns and isinstance(call, LoggedCall):
                call = overlaid(call, row, columns)
            yield Found(path, number, name, call)
    except InvalidMessage as problem:
        yield Found(path, number, name, problem)
    except RecursionError:
        yield Found(path, number, name, InvalidMessage(TOO_DEEP))
    else:
        if none:
            yield Found(path, number, name, None)


def _shape_of(row: Row, columns: Mapping[str, str]) -> tuple[Shape, Row]:
    """Where the operator says where the prompt lies, the tool's own place holds it from then on."""
    named = {field: columns[field] for field in PROMPT & columns.keys()}
    if not named:
        return shape_of(row), row
    for shape in SHAPES:
        if shape.prompt and shape.fits(row):
            return shape, {**row, shape.prompt: from_columns(row, named).messages}
    return COLUMNS, row


def _own(columns: Mapping[str, str]) -> dict[str, str]:
    """The columns that were named, and those that carry our own names."""
    prompt = PROMPT & columns.keys() or PROMPT
    own = {field: name for field, name in OWN_COLUMNS.items() if field not in PROMPT - prompt}
    return {**own, **columns}


def _refuse_unknown_columns(path: Path, columns: Mapping[str, str], progress: Progress) -> None:
    """A name that is nowhere is a mistake, and better said before anything is sent."""
    log = open_log(path)
    wanted = dict(columns)
    if log.columns is not None and not PROMPT & wanted.keys():
        _refuse_strange_table(path, log)
        log = open_log(path)
    for at, line in enumerate(log.lines, 1):
        if not wanted:
            return
        for row in rows_in(line.row):
            wanted = {field: name for field, name in wanted.items() if not has(row, name)}
        if at % EVERY == 0:
            progress(at)
    if wanted:
        told = ", ".join(f"{name} (for {field})" for field, name in wanted.items())
        raise SettingsError(f"{path.name}: no record has {told}. Nothing was sent.")


def _refuse_strange_table(path: Path, log: LogFile) -> None:
    """All rows of a table have the same columns: nothing would come of any."""
    columns = log.columns or ()
    rows = [dict.fromkeys(columns, ""), *(line.row for line in islice(log.lines, EVERY))]
    if PROMPT & set(columns) or any(shape.fits(row) for row in rows for shape in SHAPES):
        return
    raise SettingsError(
        f"{path.name}: no shape that is known, and no column text or messages. It has: "
        f"{printable(', '.join(columns), 300) or 'none'}. "
        "Say which holds the prompt: --map text=COLUMN"
    )
