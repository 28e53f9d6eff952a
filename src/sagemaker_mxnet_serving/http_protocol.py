"""uvicorn's HTTP protocol, with the time limits and bounds that it leaves to a proxy.

A caller that sends its request, or takes its answer, too slowly is cut off: it would hold a
connection for ever. So is one that sends a head or a body without an end.
"""

import asyncio
from typing import Any, Optional

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

GONE = "sagemaker_mxnet_serving.gone"
"""Key of a scope: a function to be called when the caller is gone before it has its answer."""

HEAD_LIMIT = 64 * 1024
"""Bytes of a request's head."""

KEEP_ALIVE = 75
"""Seconds that a connection may be idle."""

PATIENCE = 20.0
"""Seconds that a head may take, and in which ``PROGRESS`` bytes of a body or an answer must pass.

SageMaker itself sends a request at once.
"""

PROGRESS = 64 * 1024
"""Bytes; the end of a body counts as well."""

_REPLY = (
    "HTTP/1.1 {}\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{}"
)


class GuardedProtocol(HttpToolsProtocol):
    """One connection of a caller.

    Args:
        config: uvicorn's.
        state: what uvicorn knows of all connections.
        max_payload: bytes of a body that the application takes.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState, max_payload: int) -> None:
        super().__init__(config, state, {})
        # A body that is too large is passed over up to here, so that its caller reads the answer.
        self._body_limit = 2 * max_payload + 1024 * 1024
        self._in_head = True
        self._head_bytes = 0
        self._body_bytes = 0
        self._seen = 0
        self._unsent = 0
        self._guard: Optional[asyncio.TimerHandle] = None
        self._write_guard: Optional[asyncio.TimerHandle] = None

    def connection_made(self, transport: Any) -> None:
        """Expect a request."""
        super().connection_made(transport)
        self._watch(KEEP_ALIVE)

    def connection_lost(self, exc: Optional[Exception]) -> None:
        """Tell the application, which may have a request in a queue."""
        for guard in (self._guard, self._write_guard):
            if guard is not None:
                guard.cancel()
        self._guard = self._write_guard = None
        cycle = self.cycle
        super().connection_lost(exc)
        if cycle is not None and not cycle.response_complete:
            gone: Any = cycle.scope.get(GONE)
            if gone is not None:
                gone()

    def data_received(self, data: bytes) -> None:
        """Bound what the parser and the application do not."""
        if self._in_head:
            # A block of data may hold a head and much of its body; more than a few do not.
            self._head_bytes += min(len(data), HEAD_LIMIT // 4)
            if self._head_bytes > HEAD_LIMIT:
                self._refuse(
                    "431 Request Header Fields Too Large",
                    f"the head of the request is longer than {HEAD_LIMIT} bytes",
                )
                return
            if self._guard is None:
                self._watch(PATIENCE)
        else:
            self._body_bytes += len(data)
            if self._body_bytes > self._body_limit:
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Give its head a time limit."""
        super().on_message_begin()
        self._watch(PATIENCE)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, and pass over what follows a body in chunks."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        self._in_head = False
        self._head_bytes = self._body_bytes = self._seen = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the time limit: from now on the server takes its time."""
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None
        self._in_head = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Give a caller a time limit that takes its answer slowly."""
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        if self._write_guard is None:
            self._write_guard = self.loop.call_later(PATIENCE, self._write_overdue)

    def resume_writing(self) -> None:
        """End the time limit: the caller has taken most of it."""
        super().resume_writing()
        if self._write_guard is not None:
            self._write_guard.cancel()
            self._write_guard = None

    def _watch(self, seconds: float) -> None:
        if self._guard is not None:
            self._guard.cancel()
        self._guard = self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        self._guard = None
        progress = not self._in_head and self._body_bytes - self._seen >= PROGRESS
        if progress or self.pipeline:  # nothing is read while an earlier request is under way
            self._seen = self._body_bytes
            self._watch(PATIENCE)
        elif self._in_head and not self._head_bytes:
            self.transport.close()
        elif not self._in_head and self.cycle.response_started:
            # It was refused, and goes on sending.
            self.transport.close()
        else:
            what = "request's head" if self._in_head else "request's body"
            self._refuse(
                "408 Request Timeout",
                f"the {what} does not arrive: expected all of it within {PATIENCE:g} s, or "
                f"{PROGRESS} bytes of a body",
            )

    def _write_overdue(self) -> None:
        left = self.transport.get_write_buffer_size()
        if self._unsent - left >= PROGRESS:
            self._unsent = left
            self._write_guard = self.loop.call_later(PATIENCE, self._write_overdue)
        else:
            self.transport.abort()

    def _refuse(self, status: str, text: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(_REPLY.format(status, len(text), text).encode("ascii"))
            self.transport.close()
