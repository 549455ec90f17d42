"""The protocols that apps speak with a student: what each must be able to read and write."""

from typing import Literal, Protocol

from pipelines.chat_request import ChatRequest
from pipelines.replies import Completion, read_object, read_reply
from service.gateway.wire import (
    ID_PREFIX,
    Envelope,
    StreamReader,
    chunks,
    completion,
    error_body,
    read_request,
    replace_fields,
)


class Listener(Protocol):
    """Listens to a teacher's stream that is passed on, and puts its answer together."""

    @property
    def ended(self) -> bool: ...

    def feed(self, data: bytes) -> None: ...

    def close(self) -> None: ...

    def completion(self) -> Completion: ...


class Dialect(Protocol):
    """One endpoint's protocol. A request is read as a chat, whatever it looks like."""

    @property
    def path(self) -> str: ...  # of the teacher's endpoint

    def read_request(self, body: bytes) -> tuple[ChatRequest | None, Envelope | None]: ...

    def state(self, request: ChatRequest) -> Literal["needed", "kept", ""]: ...

    def bounded(
        self, body: bytes, request: ChatRequest, *, model: str, limit: tuple[str, int], told: str
    ) -> bytes: ...

    def read_reply(self, body: bytes) -> Completion | None: ...

    def listener(self) -> Listener: ...

    def whole(
        self, said: Completion, request: ChatRequest | None, *, name: str, model: str, created: int
    ) -> bytes: ...

    def streamed(
        self, said: Completion, request: ChatRequest | None, *, name: str, model: str, created: int
    ) -> bytes: ...

    def broken(self, message: str, code: str) -> bytes: ...


class ChatDialect:
    """`POST /v1/chat/completions`."""

    path = "/chat/completions"

    def read_request(self, body: bytes) -> tuple[ChatRequest | None, Envelope | None]:
        return read_request(body)

    def state(self, request: ChatRequest) -> Literal[""]:
        """Nothing that is kept elsewhere is part of a chat."""
        return ""

    def bounded(
        self, body: bytes, request: ChatRequest, *, model: str, limit: tuple[str, int], told: str
    ) -> bytes:
        """The app's request with our model, a bounded answer, and never as a stream.

        `limit`: what the teacher calls it, and how much it is; `told`: a system message of ours,
        where the app has none.
        """
        field, most = limit
        new: dict[str, object] = {"model": model, field: most}
        if told:
            said = {"role": "system", "content": told}
            new["messages"] = [said, *(read_object(body) or {}).get("messages", [])]
        limits = ("max_tokens", "max_completion_tokens")
        return replace_fields(body, new, drop=("stream", "stream_options", *limits))

    def read_reply(self, body: bytes) -> Completion | None:
        return read_reply(body)

    def listener(self) -> StreamReader:
        return StreamReader()

    def whole(
        self, said: Completion, request: ChatRequest | None, *, name: str, model: str, created: int
    ) -> bytes:
        return completion(said, event_id=name, model=model, created=created)

    def streamed(
        self, said: Completion, request: ChatRequest | None, *, name: str, model: str, created: int
    ) -> bytes:
        counts = request is not None and request.wants_usage
        return chunks(said, event_id=name, model=model, created=created, with_usage=counts)

    def broken(self, message: str, code: str) -> bytes:
        """What a client reads in a stream that ends badly."""
        return b"data: " + error_body(message, type="server_error", code=code) + b"\n\n"


CHAT = ChatDialect()
ANSWER_PREFIXES = (ID_PREFIX, "resp_")  # of the ids of our answers, before the event's own
