"""The shapes that are told apart by themselves, and what a row's own columns are called."""

from collections.abc import Iterator

from pipelines.errors import InvalidMessage
from service.care.logs.call import LoggedCall, Row, Shape
from service.care.logs.helicone import is_helicone, read_helicone
from service.care.logs.langfuse import is_langfuse, read_langfuse
from service.care.logs.litellm import is_litellm, read_litellm
from service.care.logs.mapping import FIELDS, PROMPT, from_columns, lookup
from service.care.logs.openai import (
    is_batch_answer,
    is_batch_request,
    is_native,
    is_nvidia,
    is_pair,
    is_stored,
    is_training,
    read_batch_answer,
    read_batch_request,
    read_native,
    read_pair,
    read_stored,
    read_training,
)
from service.care.logs.otel import is_otel, read_otel
from service.care.logs.texts import table

OWN_COLUMNS = {field: field for field in FIELDS}


def _has_a_prompt(row: Row) -> bool:
    return any(lookup(row, field) not in (None, "") for field in PROMPT)


def _read_columns(row: Row) -> Iterator[LoggedCall]:
    yield from_columns(row, OWN_COLUMNS)


BATCH_REQUEST = Shape("OpenAI batch, input", is_batch_request, read_batch_request)
BATCH_ANSWER = Shape("OpenAI batch, output", is_batch_answer, read_batch_answer)
COLUMNS = Shape("columns", _has_a_prompt, _read_columns)
# The first that fits counts.
SHAPES = (
    Shape("our own record", is_native, read_native),
    Shape("LiteLLM", is_litellm, read_litellm, "messages"),
    Shape("NVIDIA flywheel document", is_nvidia, read_pair),
    BATCH_REQUEST,
    BATCH_ANSWER,
    Shape("OpenAI request and response", is_pair, read_pair),
    Shape("Helicone", is_helicone, read_helicone),
    Shape("OpenTelemetry", is_otel, read_otel),
    Shape("Langfuse", is_langfuse, read_langfuse, "input"),
    Shape("OpenAI stored completion", is_stored, read_stored),
    Shape("OpenAI fine-tuning", is_training, read_training),
    COLUMNS,
)


def shape_of(row: Row) -> Shape:
    """The shape of a row. Raises `InvalidMessage` where it is in none."""
    for shape in SHAPES:
        if shape.fits(row):
            return shape
    raise InvalidMessage(
        "neither text nor messages, and no shape that is known: say where they are with --map"
    )


def rows_in(row: Row) -> Iterator[Row]:
    """The row itself, or those that a database's dump or an API's page has put it around."""
    inner = table(row.get("_source"))
    pages = row.get("data") or table(row.get("hits")).get("hits")
    if inner:
        yield inner
    elif isinstance(pages, list) and not any(shape.fits(row) for shape in SHAPES):
        for one in pages:
            yield from rows_in(one if isinstance(one, dict) else {})
    else:
        yield row
