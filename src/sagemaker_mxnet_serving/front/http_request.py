"""One HTTP request and its response, on the ASGI interface of uvicorn.

uvicorn owns the connection: it parses requests, answers them in their order, asks for a body that
waits for ``100 Continue``, and reads the rest of one that was rejected.
"""

import itertools
import os
import re
import time
from typing import Any, Awaitable, Callable, List, MutableMapping, Optional, Union

from sagemaker_mxnet_serving.front.dispatcher import QueuedRequest, Rejection
from sagemaker_mxnet_serving.inference import InferenceError, Response

HEAD_LIMIT = 64 * 1024
"""Bytes of the method, the path, the query string and the headers of a request."""

LARGE = 64 * 1024
"""A response of more bytes is sent in pieces, as fast as the client reads them."""

_PIECE = 256 * 1024
"""Bytes of a piece of a large response."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Result = Union[Response, Rejection]

_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_TOKEN = re.compile(r"[^\w!#$%&'*+.^`|~-]", re.ASCII)
_PREFIX = os.urandom(4).hex()
_numbers = itertools.count(1)


class Disconnected(Exception):
    """The client closed the connection before it had a response."""


class HttpRequest(QueuedRequest):
    """A request, from its head to the end of its response.

    Args:
        scope: ASGI's scope, and ``is_closing``, which returns whether its connection is lost or
            about to be closed.
        receive: waits for the next part of the body, or for the end of the response or connection.
        send: sends a part of the response.

    Attributes:
        id: names it in the log and in the header ``X-Request-Id``.
        method: the HTTP method.
        path: the path, still encoded.
        query: the query string.
        headers: names in lower case, and values; the last of several with one name.
        started: when its head was complete (monotonic, seconds).
        pieces: the body so far.
        received: bytes of the body so far.
        more_body: whether more of it is to come.
        status: of the response; 0 before it.
        response_size: bytes of the response's body, as the application counts them.
        sent_bytes: bytes of the response that the client has read, in complete pieces.
        complete: whether the client has read all of it.
        ended: whether the response or the connection has ended.
        model: the model, if it is an invocation.
        on_result: called once with the result of the model.
        sender: the task that sends the result of the model.
    """

    __slots__ = (
        "_is_closing",
        "_receive",
        "_send",
        "complete",
        "ended",
        "headers",
        "id",
        "method",
        "model",
        "more_body",
        "on_result",
        "path",
        "pieces",
        "query",
        "received",
        "response_size",
        "sender",
        "sent_bytes",
        "started",
        "status",
    )

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        raw_headers = scope["headers"]
        method, path, query = scope["method"], scope["raw_path"], scope["query_string"]
        line = len(method) + len(path) + len(query)
        super().__init__(line + sum(map(len, itertools.chain.from_iterable(raw_headers))))
        self._receive = receive
        self._send = send
        self._is_closing: Callable[[], bool] = scope["is_closing"]
        self.headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in raw_headers}
        client_id = self.headers.get("x-request-id", "")
        self.id = client_id if _ID.fullmatch(client_id) else f"{_PREFIX}-{next(_numbers)}"
        self.method: str = method
        self.path: str = path.decode("latin-1")
        self.query: str = query.decode("latin-1")
        self.started = time.monotonic()
        self.pieces: List[bytes] = []
        self.received = 0
        self.more_body = True
        self.status = 0
        self.response_size = 0
        self.sent_bytes = 0
        self.complete = False
        self.ended = False
        self.model: Any = None
        self.on_result: Optional[Callable[[HttpRequest, Result], None]] = None
        self.sender: Any = None

    def check_head(self) -> int:
        """Return the Content-Length; 0 without one.

        Raises:
            InferenceError: the head is too long, or asks for another protocol and has a body.
        """
        if self.size > HEAD_LIMIT:
            raise InferenceError(
                f"the path, the query string and the headers exceed {HEAD_LIMIT} bytes; send less "
                "there, or send it in the body",
                431,
            )
        announced = self.headers.get("content-length", "0")
        size = int(announced) if announced.isdigit() else 0
        if "upgrade" in self.headers and (size or "transfer-encoding" in self.headers):
            # The parser would take the body for the first bytes of the other protocol.
            raise InferenceError(
                "a request with a body cannot be upgraded; send it without the header Upgrade"
            )
        return size

    async def read(self) -> int:
        """Wait for the next part of the body; return its size.

        Raises:
            Disconnected: the client has disconnected.
        """
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body: bytes = message["body"]
        self.more_body = message["more_body"]
        if body:
            self.pieces.append(body)
            self.received += len(body)
            self.size += len(body)
        return len(body)

    async def wait_for_end(self) -> None:
        """Wait until the response is complete, or the client has disconnected."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def resolve(self, result: Result) -> None:
        """Pass on the result of the model, unless the request was cancelled."""
        self.pieces = []
        on_result, self.on_result = self.on_result, None
        if on_result is not None:
            on_result(self, result)

    async def respond(self, response: Response, close: bool) -> None:
        """Send the response; return when the client has read it, or has disconnected.

        Args:
            response: the response.
            close: whether to close the connection after it.
        """
        body = response.body
        size = len(body)
        self.status = response.status
        headers = [
            (b"content-length", b"%d" % size),
            (b"x-request-id", self.id.encode("ascii")),
        ]
        if body:
            headers.append((b"content-type", _header_value(response.content_type)))
        for name, value in response.headers.items():
            headers.append((_NO_TOKEN.sub("_", name).encode("ascii"), _header_value(value)))
        if close or (self.more_body and "expect" in self.headers):
            # The client may send the body anyway, or the next request.
            headers.append((b"connection", b"close"))
        send = self._send
        if self._is_closing():
            return
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if size <= LARGE:
            await send({"type": "http.response.body", "body": body})
        else:
            # Each piece, and the empty one at the end, waits until the client has read most of it.
            view = memoryview(body)
            for start in (*range(0, size, _PIECE), size):
                piece = view[start : start + _PIECE]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                if self._is_closing():
                    return
                self.sent_bytes = start
            await send({"type": "http.response.body"})
        self.sent_bytes = size
        self.complete = True


def _header_value(text: str) -> bytes:
    """Return a text as a header's value, without control characters, which could end the line."""
    return _CONTROL.sub(" ", text).encode("latin-1", "replace")
