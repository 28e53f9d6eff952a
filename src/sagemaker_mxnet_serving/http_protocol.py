"""HTTP/1.1 for callers: requests by httptools' parser, and time limits and bounds for both ways.

A caller that sends its request, or takes its answer, too slowly is cut off: it would hold a
connection for ever. So is one that sends a head or a body without an end. The server looks at all
connections once a second, so that a request costs no timer.

This is no ASGI server because a request would cost twice as much: a task, an event and a dictionary
for what is here one object (docs/performance.md has the figures).
"""

import asyncio
import enum
import functools
import http
import math
import re
import time
from collections import deque
from email.utils import formatdate
from typing import Any, Deque, Dict, List, Optional, Protocol, Set, Tuple

import httptools

from sagemaker_mxnet_serving.messages import InferenceError, Piece, Response

HEAD_LIMIT = 64 * 1024
"""Bytes of a request's head."""

_LONG_HEAD = f"the head of the request is longer than {HEAD_LIMIT} bytes"

KEEP_ALIVE = 75.0
"""Seconds that a connection may be idle."""

PATIENCE = 20.0
"""Seconds that a head may take, and in which ``PROGRESS`` bytes of a body or an answer must pass.

SageMaker itself sends a request at once.
"""

PROGRESS = 64 * 1024
"""Bytes; the end of a body counts as well."""

_JOINED = 64 * 1024
"""Bytes of an answer up to which a copy costs less than a second write."""

_SMALL = 16 * 1024
"""Bytes of a body up to which a piece is joined to the one before: each costs 100 bytes more."""

_BODIES = frozenset({"content-length", "transfer-encoding"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_TOKEN = re.compile(r"[^\w!#$%&'*+.^`|~-]", re.ASCII)


class Application(Protocol):
    """What answers requests; each method is called on the loop's thread."""

    def begin(self, exchange: "Exchange") -> None:
        """Hear of a request whose head is there. It may be answered at once."""

    def grew(self, exchange: "Exchange", size: int) -> None:
        """Hear that so many bytes more of its body are there. It may be answered at once."""

    def handle(self, exchange: "Exchange") -> None:
        """Answer a request that is complete, now or later."""

    def refuse(self, exchange: "Exchange", status: int, text: str) -> None:
        """Answer a request of which no more can be read with an error, at once."""

    def gone(self, exchange: "Exchange") -> None:
        """Hear that the caller of a request without an answer has gone."""


class Exchange:
    """One request and its answer.

    Attributes:
        head: bytes of its head, without what separates them.
        method: the HTTP method.
        url: what is asked for, as it was sent.
        headers: names in lower case, and values.
        pieces: the body so far, in pieces that may still grow until it is complete.
        received: its bytes.
        complete: whether all of it is there.
        begun: whether the application has heard of it.
        answered: whether there is an answer, or nobody waits for one.
        keep_alive: whether the connection goes on after the answer.
        state: for the application.
    """

    __slots__ = (
        "_connection",
        "answered",
        "begun",
        "complete",
        "head",
        "headers",
        "keep_alive",
        "method",
        "pieces",
        "received",
        "state",
        "url",
    )

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self.head = 0
        self.method = ""
        self.url = b""
        self.headers: Dict[str, str] = {}
        self.pieces: List[Piece] = []
        self.received = 0
        self.complete = False
        self.begun = False
        self.answered = False
        self.keep_alive = True
        self.state: Any = None

    def keep(self, body: bytes) -> None:
        """Keep a piece of the body.

        The first stays what it is, as most bodies are one piece. A body in chunks of two bytes
        would cost thirty times its size, if small ones were not joined.
        """
        pieces = self.pieces
        if len(pieces) > 1 and len(pieces[-1]) < _SMALL:
            pieces[-1] += body
        else:
            small = pieces and len(body) < _SMALL
            pieces.append(bytearray(body) if small else body)
        self.received += len(body)

    def answer(self, response: Response, request_id: str = "") -> None:
        """Answer the request, once.

        Args:
            response: the answer.
            request_id: for the header ``X-Request-Id``; none if empty.
        """
        self.answered = True
        self.pieces = []
        self._connection.send(self, response, request_id)


class Connections:
    """What all connections of a server have in common.

    Args:
        application: answers requests.
        max_payload: bytes of a body that it takes.

    Attributes:
        open: the connections.
        now: the time (monotonic, seconds), a second old at the most.
        date: the header line of this second.
    """

    def __init__(self, application: Application, max_payload: int) -> None:
        self.application = application
        # A body that is too large is passed over up to here, so that its caller reads the answer.
        self.body_limit = 2 * max_payload + 1024 * 1024
        self.open: Set[Connection] = set()
        self.now = 0.0
        self.date = b""
        self.look()

    def look(self) -> None:
        """Cut off who is too slow; to be called once a second."""
        self.date = f"date: {formatdate(usegmt=True)}\r\n".encode("ascii")
        self.now = time.monotonic()
        for connection in list(self.open):
            connection.look(self.now)

    def shut(self) -> None:
        """Close all connections, each after the answer that it waits for."""
        for connection in list(self.open):
            connection.shut()

    def abort(self) -> None:
        """Cut all connections off."""
        for connection in list(self.open):
            connection.abort()


class _Part(enum.Enum):
    """What a connection hears next."""

    NOTHING = "request"
    """A request, if any."""
    HEAD = "request's head"
    """The rest of it."""
    BODY = "request's body"
    """The rest of it."""


# Names of their own: CPython 3.11 takes 0.4 us to find a member of an enumeration.
_NOTHING, _HEAD, _BODY = _Part


class Connection(asyncio.Protocol):
    """The connection of one caller: a protocol of asyncio, and of httptools.

    Args:
        shared: what all connections have in common.
    """

    def __init__(self, shared: Connections) -> None:
        self._shared = shared
        self._application = shared.application
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: Any = None
        # The first is with the application; the others were sent before it was answered.
        self._exchanges: Deque[Exchange] = deque()
        self._incoming = Exchange(self)
        self._part = _NOTHING
        self._deadline = math.inf
        self._bytes = 0
        self._seen = 0
        self._reading = True
        self._advancing = False
        self._unsent = 0
        self._write_deadline = math.inf

    # A protocol of asyncio.

    def connection_made(self, transport: Any) -> None:
        """Expect a request."""
        self._transport = transport
        self._shared.open.add(self)
        self._expect(_NOTHING, KEEP_ALIVE)

    def connection_lost(self, exc: Optional[Exception]) -> None:
        """Tell the application, which may have a request in a queue."""
        self._shared.open.discard(self)
        if self._exchanges:
            self._give_up(self._exchanges[0])
        self._exchanges.clear()

    def eof_received(self) -> None:
        """Close the connection: a caller that has gone looks like one that sends no more."""

    def data_received(self, data: bytes) -> None:
        """Read what a caller sends."""
        if self._part is _BODY:
            self._bytes += len(data)
            if self._bytes > self._shared.body_limit:
                limit = self._shared.body_limit
                self._refuse(413, f"the body, as it is sent, is longer than {limit} bytes")
                return
        else:
            # A block of data may hold a head and much of its body; more than a few do not. What
            # the head is by itself is known when it is complete.
            self._bytes += min(len(data), HEAD_LIMIT // 4)
            if self._bytes > HEAD_LIMIT:
                self._refuse(431, _LONG_HEAD)
                return
        try:
            while data:
                try:
                    self._parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as upgrade:  # to nothing that is spoken here
                    data = data[upgrade.args[0] :]
        except httptools.HttpParserError:
            self._refuse(400, "this is no HTTP request")

    def pause_writing(self) -> None:
        """Give a caller a time limit that takes its answer slowly."""
        self._unsent = self._transport.get_write_buffer_size()
        self._write_deadline = self._shared.now + PATIENCE

    def resume_writing(self) -> None:
        """End the time limit: the caller has taken most of it."""
        self._write_deadline = math.inf
        self._advance()

    # A protocol of httptools.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._incoming = Exchange(self)
        self._expect(_HEAD, PATIENCE)

    def on_url(self, url: bytes) -> None:
        """Take a piece of what is asked for."""
        self._incoming.url += url
        self._incoming.head += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, and pass over what follows a body in chunks."""
        if self._part is _HEAD:
            self._incoming.headers[name.lower().decode("latin-1")] = value.decode("latin-1")
            self._incoming.head += len(name) + len(value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application, if no earlier one waits for its answer."""
        exchange, parser = self._incoming, self._parser
        exchange.method = parser.get_method().decode("ascii")
        exchange.keep_alive = parser.should_keep_alive()
        if exchange.head > HEAD_LIMIT:
            self._refuse(431, _LONG_HEAD)
            return
        if parser.should_upgrade() and not _BODIES.isdisjoint(exchange.headers):
            # The parser would take the body for what follows in the other protocol.
            self._refuse(400, "a body is read in HTTP/1.1 only; send it without the header Upgrade")
            return
        self._bytes = self._seen = 0
        self._expect(_BODY, PATIENCE)
        self._exchanges.append(exchange)
        self._advance()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of a body, unless the request has been answered without it."""
        exchange = self._incoming
        if not exchange.answered:
            exchange.keep(body)
            if exchange.begun:
                self._application.grew(exchange, len(body))

    def on_message_complete(self) -> None:
        """Have the request answered. From now on the server takes its time."""
        exchange = self._incoming
        exchange.complete = True
        self._bytes = 0
        self._expect(_NOTHING, math.inf)
        if exchange.answered:
            self._finish(exchange)
        elif exchange.begun:
            self._application.handle(exchange)

    # What follows.

    def send(self, exchange: Exchange, response: Response, request_id: str) -> None:
        """Send the answer to a request."""
        if self._transport.is_closing():
            return
        unread = not exchange.complete and "expect" in exchange.headers
        if unread:  # whether its body comes, nobody knows
            exchange.keep_alive = False
        head = _head(response, request_id, self._shared.date, exchange.keep_alive)
        body = b"" if exchange.method == "HEAD" else response.body
        if len(body) <= _JOINED:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        if exchange.complete or unread:
            self._finish(exchange)

    def shut(self) -> None:
        """Close the connection, after the answer that it waits for."""
        if self._exchanges:
            self._exchanges[-1].keep_alive = False
        else:
            self._transport.close()

    def abort(self) -> None:
        """Cut the caller off, whatever it waits for."""
        self._transport.abort()

    def look(self, now: float) -> None:
        """Cut the caller off if it is too slow."""
        if now > self._write_deadline:
            left = self._transport.get_write_buffer_size()
            if self._unsent - left < PROGRESS:
                self._transport.abort()
            self._unsent = left
            self._write_deadline = now + PATIENCE
        elif now > self._deadline and self._reading and self._write_deadline == math.inf:
            self._overdue()

    def _overdue(self) -> None:
        if self._part is _BODY and self._bytes - self._seen >= PROGRESS:
            self._seen = self._bytes
            self._expect(_BODY, PATIENCE)
        elif self._part is _NOTHING or self._incoming.answered:
            self._transport.close()
        else:
            self._refuse(
                408,
                f"the {self._part.value} does not arrive: expected all of it within "
                f"{PATIENCE:g} s, or {PROGRESS} bytes of a body",
            )

    def _expect(self, part: _Part, seconds: float) -> None:
        self._part = part
        self._deadline = self._shared.now + seconds

    def _advance(self) -> None:
        """Hand requests to the application, each when the one before it is answered."""
        if self._advancing or self._transport.is_closing():
            return
        self._advancing = True
        while self._exchanges and not self._exchanges[0].begun and self._write_deadline == math.inf:
            exchange = self._exchanges[0]
            exchange.begun = True
            self._application.begin(exchange)
            if exchange.received and not exchange.answered:
                self._application.grew(exchange, exchange.received)
            if exchange.answered:
                continue
            if exchange.complete:
                self._application.handle(exchange)
            elif exchange.headers.get("expect", "").lower() == "100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._advancing = False
        self._read(len(self._exchanges) <= 1)

    def _finish(self, exchange: Exchange) -> None:
        """Go on after a request that is answered and has been read."""
        if not exchange.keep_alive:
            self._transport.close()
            return
        self._exchanges.popleft()
        if self._exchanges:
            self._advance()
        elif self._part is _NOTHING:
            self._expect(_NOTHING, KEEP_ALIVE)

    def _give_up(self, exchange: Exchange) -> None:
        if exchange.begun and not exchange.answered:
            exchange.answered = True
            self._application.gone(exchange)

    def _read(self, wanted: bool) -> None:
        if wanted is not self._reading and not self._transport.is_closing():
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _refuse(self, status: int, text: str) -> None:
        """End a connection on which nothing more can be understood."""
        if self._transport.is_closing():
            return
        broken = self._exchanges.pop() if self._part is _BODY else None
        self._expect(_NOTHING, math.inf)
        if self._exchanges:  # which are answered first
            self._exchanges[-1].keep_alive = False
            self._read(False)
            return
        if broken is None or not broken.begun:  # of which the application knows nothing
            response = Response(status, f"{text}\n".encode())
            self._transport.write(_head(response, "", self._shared.date, False) + response.body)
        elif not broken.answered:
            broken.keep_alive = False
            self._application.refuse(broken, status, text)
        self._transport.close()


@functools.lru_cache(maxsize=64)
def target(url: bytes) -> Tuple[str, str]:
    """Return the path of what is asked for, still encoded, and its query.

    Raises:
        InferenceError: 404 when it has none.
    """
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        raise InferenceError("the request line names no path", 404) from None
    return (parsed.path or b"").decode("latin-1"), (parsed.query or b"").decode("latin-1")


@functools.lru_cache(maxsize=None)
def _status_line(status: int) -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


def _head(response: Response, request_id: str, date: bytes, keep_alive: bool) -> bytes:
    lines = [f"content-length: {len(response.body)}\r\n"]
    if request_id:
        lines.append(f"x-request-id: {request_id}\r\n")
    if response.body:
        lines.append(f"content-type: {_line(response.content_type)}\r\n")
    for name, value in response.headers.items():
        lines.append(f"{_NO_TOKEN.sub('_', name)}: {_line(value)}\r\n")
    lines.append("\r\n" if keep_alive else "connection: close\r\n\r\n")
    return _status_line(response.status) + date + "".join(lines).encode("latin-1", "replace")


def _line(text: str) -> str:
    """Return a text as part of one header line, which a script cannot end early."""
    return _CONTROL.sub(" ", text)
