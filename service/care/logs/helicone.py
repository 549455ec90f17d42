"""Helicone: the requests that its export tool and its query API hand out, bodies included."""

from collections.abc import Iterator

from pipelines.errors import InvalidMessage
from service.care.logs.call import LoggedCall, Row
from service.care.logs.openai import call_of
from service.care.logs.texts import first_of, table


def is_helicone(row: Row) -> bool:
    return "request_body" in row or {"request_id", "request_created_at"} <= set(row)


def read_helicone(row: Row) -> Iterator[LoggedCall]:
    request, response = table(row.get("request_body")), table(row.get("response_body"))
    if not request:
        raise InvalidMessage("the export has no bodies (Helicone: --include-body)")
    if str(row.get("request_path", "")).rstrip("/").endswith("embeddings"):
        return
    status = str(first_of(row.get("response_status"), 200))
    yield call_of(
        request,
        response if status.startswith("2") else {},
        model=first_of(row.get("request_model"), row.get("model")),
        user=first_of(row.get("request_user_id"), row.get("user_id")),
        time=first_of(row.get("request_created_at"), row.get("created_at")),
        source_id=row.get("request_id"),
        metadata=first_of(row.get("request_properties"), row.get("properties")),
    )
