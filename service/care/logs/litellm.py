"""LiteLLM: its standard logging payload, as callbacks and buckets get it, and its spend logs."""

from collections.abc import Iterator

from service.care.logs.call import LoggedCall, Row
from service.care.logs.texts import conversation, first_of, moment, said, table

MARKS = {"call_type", "model_group", "litellm_call_id", "hidden_params", "model_map_information"}
WRAPPED = "standard_logging_object"
# Kinds of call in whose names one of these stands have no prompt, or none that a student reads.
OTHERS = ("embed", "moderation", "image", "transcri", "speech", "rerank", "batch", "file", "thread",
          "fine_tun", "assistant", "vector", "video", "ocr", "health")  # fmt: skip
OF_THE_KEY = "user_api_key"  # what LiteLLM adds about its own keys: hashes, e-mail addresses


def is_litellm(row: Row) -> bool:
    return WRAPPED in row or ("messages" in row and "response" in row and bool(MARKS & set(row)))


def read_litellm(row: Row) -> Iterator[LoggedCall]:
    """`model` is the provider's name; the app used that of the `model_group`."""
    told = table(row.get(WRAPPED)) or row
    kind = str(told.get("call_type")).lower()
    if any(other in kind for other in OTHERS):
        return
    about, asked = table(told.get("metadata")), table(told.get("model_parameters"))
    failed = told.get("status") == "failure"
    yield LoggedCall(
        messages=conversation(
            {"messages": told.get("messages"), "instructions": asked.get("instructions")}
        ),
        model=first_of(told.get("model_group"), told.get("model")),
        said=None if failed else said(told.get("response")),
        user=first_of(told.get("end_user"), about.get("user_api_key_end_user_id"),
                      asked.get("user")),
        time=moment(first_of(told.get("startTime"), told.get("start_time"))),
        source_id=first_of(told.get("litellm_call_id"), told.get("id"), told.get("request_id")),
        metadata=_own(about),
        request=asked,
    )  # fmt: skip


def _own(about: Row) -> Row:
    """What the app sent along, and nothing about the proxy's keys."""
    own = table(about.get("requester_metadata"))
    return own or {name: about[name] for name in about if not name.startswith(OF_THE_KEY)}
