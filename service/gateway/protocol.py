"""HTTP on the wire of the gateway: a fast parser, bounded, that lets no upgrade cost a body."""

import httptools
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Of a request's head, or of what is behind its body (bytes): the parser itself knows no end.
LONGEST_HEAD = 1 << 16


class Protocol(HttpToolsProtocol):
    """uvicorn's with httptools, but for what that one does not do.

    It keeps a head as long as it comes, and where an upgrade is offered (Java's client offers
    HTTP/2 with each request) the body is lost, for an upgraded connection would have none. Such
    a connection is handed to uvicorn's other parser, which reads on as if nothing was offered.
    """

    _unread = 0  # bytes since the last that were of a body or ended a head

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._unread += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._hand_over(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        else:
            if self._unread > LONGEST_HEAD:
                self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        self._unread = 0
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return True  # here: to the other parser

    def _hand_over(self, rest: bytes) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # Nobody offers an upgrade while he waits for an answer.
            self.send_400_response("An upgrade in the middle of a pipeline.")
            return
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name != b"connection":  # that is where the upgrade is asked for
                head += [name, b": ", value, b"\r\n"]
        other = H11Protocol(self.config, self.server_state, self.app_state, _loop=self.loop)
        self.connections.discard(self)
        other.connection_made(self.transport)
        self.transport.set_protocol(other)
        other.data_received(b"".join([*head, b"\r\n", rest]))
