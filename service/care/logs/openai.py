"""What OpenAI's own platform hands out: pairs, stored completions, training files, batches."""

from collections.abc import Iterator
from typing import NoReturn

from pipelines.decode import OTHER_SHAPES
from pipelines.errors import InvalidMessage
from pipelines.records.native import SCHEMA
from pipelines.records.openai_pair import MARK
from service.care.logs.call import LoggedCall, Row
from service.care.logs.texts import conversation, first_of, moment, said, table

CALLS = ("chat/completions", "responses", "completions")  # the ends of paths that are model calls


TIMES = ("timestamp", "occurred_at", "created_at", "time")


# Our own records, and pairs of a request and its response


def is_native(row: Row) -> bool:
    """Whether ingest reads it as it is; pairs are read here, because here they can be labels."""
    return row.get("schema") == SCHEMA or any(mark in row for mark in OTHER_SHAPES if mark != MARK)


def read_native(row: Row) -> Iterator[LoggedCall]:
    yield LoggedCall(messages=[], native=row)


def is_pair(row: Row) -> bool:
    return bool(table(row.get("request")))


def is_nvidia(row: Row) -> bool:
    return "workload_id" in row and is_pair(row)


def read_pair(row: Row) -> Iterator[LoggedCall]:
    """Also NVIDIA's flywheel documents, which say when and for which workload."""
    around, response = table(row.get("request")), table(row.get("response"))
    request = table(around.get("body")) or around  # some say the way there, too
    response = table(response.get("body")) or response
    if not response and isinstance(row.get("response"), str):
        response = {"role": "assistant", "content": row["response"]}
    told = {name: row[name] for name in ("client_id", "workload_id") if row.get(name)}
    yield call_of(
        request,
        response,
        metadata={**table(request.get("metadata")), **told},
        user=around.get("user_id"),
        time=first_of(*(row.get(name) for name in TIMES), around.get("created_at")),
    )


def call_of(
    request: Row,
    response: Row,
    *,
    model: object = None,
    user: object = None,
    time: object = None,
    source_id: object = None,
    metadata: object = None,
) -> LoggedCall:
    """A call from the bodies of its request and response; the rest is what the log adds."""
    return LoggedCall(
        messages=conversation(request),
        model=first_of(request.get("model"), model, response.get("model")),
        said=said(response) if response else None,
        user=first_of(request.get("user"), request.get("safety_identifier"), user),
        time=moment(first_of(time, response.get("created"), response.get("created_at"))),
        source_id=first_of(source_id, response.get("id")),
        metadata=first_of(metadata, request.get("metadata")),
        request=request,
    )


# Stored completions and responses: what was asked stands beside what was answered


def is_stored(row: Row) -> bool:
    return isinstance(row.get("choices"), list) or row.get("object") == "response"


def read_stored(row: Row) -> Iterator[LoggedCall]:
    asked = first_of(row.get("messages"), row.get("input"), row.get("input_messages"))
    if asked is None:
        raise InvalidMessage("a completion without its messages: what was asked is not in it")
    yield call_of({**row, "messages": asked}, row)


# Files for fine-tuning: the last turn is the answer, which the importer takes off


def is_training(row: Row) -> bool:
    return bool(
        {"prompt", "completion"} <= set(row)
        or {"input", "preferred_output"} <= set(row)
        or (isinstance(row.get("messages"), list) and set(row) <= TRAINING_FIELDS)
    )


TRAINING_FIELDS = {"messages", "tools", "functions", "parallel_tool_calls", "metadata"}


def read_training(row: Row) -> Iterator[LoggedCall]:
    answer = first_of(row.get("preferred_output"), row.get("completion"))
    asked = row.get("input") if "preferred_output" in row else row
    yield LoggedCall(
        messages=conversation(asked), said=said(answer), metadata=row.get("metadata"),
        model=row.get("model"), request={**row, **table(asked)},
    )  # fmt: skip


# Batches: a file of requests, and a file of responses that names them by `custom_id`


def is_batch_request(row: Row) -> bool:
    return "custom_id" in row and bool(table(row.get("body")))


def read_batch_request(row: Row) -> Iterator[LoggedCall]:
    """With `response` put beside it by the importer, where there is a file of them."""
    path = str(row.get("url", "/v1/chat/completions"))
    if not path.rstrip("/").endswith(CALLS):
        return
    response = batch_answer(row)
    yield call_of(table(row.get("body")), response, metadata=row.get("metadata"))


def is_batch_answer(row: Row) -> bool:
    return "custom_id" in row and "body" not in row and {"response", "error"} & set(row) != set()


def batch_answer(row: Row) -> Row:
    """The body of the response; empty where the call failed."""
    response = table(row.get("response"))
    failed = row.get("error") or response.get("status_code", 200) != 200
    return {} if failed else table(response.get("body"))


def read_batch_answer(_: Row) -> NoReturn:
    raise InvalidMessage(
        "a batch's response without its request: name the batch's input file beside it"
    )
