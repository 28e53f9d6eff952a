"""One connection of the control channel: frames in and frames out, never blocking.

Knows nothing of hosts or handshakes: a channel tells it who gets the next payload.
"""

import itertools
import selectors
import socket
from collections import deque
from typing import Any, Callable, Deque, Mapping, Optional, Tuple

from sagemaker_mxnet_training.cluster import frames
from sagemaker_mxnet_training.cluster.frames import FrameError, Kind, Packed, Signer

QUEUE_LIMIT = 1024 * 1024
"""Bytes waiting for one peer to read them, from which on it counts as lost."""

_READ = 64 * 1024
"""Bytes read from one connection before the others have their turn."""

_PIECES = 64
"""Pieces of frames given to the kernel in one call."""

Clock = Callable[[], float]


class Link:
    """One connection. Nothing comes out of it after its end.

    Attributes:
        on_payload: who gets the next payload; replaced as the handshake goes on.
        on_end: called once with the reason, unless ``close`` was called before.
        address: the peer's IP address.
        host, version: what the peer's opening says, once it came.
        openings: the payloads of both openings, the follower's first, once they are exchanged.
        last_received: when a whole frame last came in; at first ``opened``.
        unsent: bytes that the kernel did not take yet.
    """

    __slots__ = (
        "_events", "_on_end", "_outbox", "_selector", "_send_error", "_sock", "address", "clock",
        "closed", "host", "inbox", "incoming", "last_received", "on_payload", "opened", "openings",
        "outgoing", "unsent", "version",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        selector: selectors.BaseSelector,
        clock: Clock,
        on_payload: "Callable[[Link, bytes], None]",
        on_end: "Callable[[Link, str], None]",
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address = address
        self.clock = clock
        self.closed = False
        self.opened = self.last_received = clock()
        self.host = ""
        self.openings = (b"", b"")
        self.version = 0
        self.unsent = 0
        self.inbox = frames.Inbox(frames.OPENING_LIMIT)
        self.incoming: Optional[Signer] = None
        self.outgoing: Optional[Signer] = None
        self.on_payload = on_payload
        self._on_end = on_end
        self._outbox: Deque[bytes] = deque()
        self._send_error: Optional[OSError] = None
        self._sock = sock
        self._selector = selector
        self._events = selectors.EVENT_READ
        selector.register(sock, self._events, self._ready)

    @property
    def local_address(self) -> str:
        """Our IP address on the connection."""
        return str(self._sock.getsockname()[0])

    def send_unsigned(self, *pieces: bytes) -> None:
        """Queue a frame and send what the kernel takes."""
        self._outbox.extend(pieces)
        self.unsent += sum(map(len, pieces))
        self._flush()

    def send(self, packed: Packed) -> None:
        """Sign and queue a frame. Too full a queue takes nothing more; ``fault`` tells."""
        assert self.outgoing is not None
        if not self.closed and self.unsent <= QUEUE_LIMIT:
            self.send_unsigned(*self.outgoing.seal(packed))

    def receive(self, payload: bytes) -> Tuple[Kind, Mapping[str, Any]]:
        """Check and read a signed frame."""
        assert self.incoming is not None
        return self.incoming.open(payload)

    def fault(self, now: float, timeout: float) -> str:
        """Return what makes this peer count as lost, if anything does."""
        if now - self.last_received >= timeout:
            return f"silent for {timeout:g} s"
        if self.unsent > QUEUE_LIMIT:
            return f"does not read: {self.unsent} bytes are waiting for it"
        return ""

    def end(self, reason: str) -> None:
        """Close, and say why."""
        if not self.closed:
            self.close()
            self._on_end(self, reason)

    def close(self) -> None:
        """Close without a word."""
        if not self.closed:
            self.closed = True
            self._selector.unregister(self._sock)
            self._sock.close()
            self._outbox.clear()
            self.unsent = 0

    def _ready(self, mask: int) -> None:
        # A callable of a connection that closed earlier in the same round may still be called.
        if mask & selectors.EVENT_READ and not self.closed:
            self._read()
        if mask & selectors.EVENT_WRITE and not self.closed:
            self._flush()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            return self.end(_why(error))
        if not data:
            return self.end(_why(self._send_error))
        self.inbox.feed(data)
        try:
            payload = self.inbox.take()
            while payload is not None:
                self.last_received = self.clock()
                self.on_payload(self, payload)
                payload = None if self.closed else self.inbox.take()
        except FrameError as error:
            self.end(str(error))

    def _flush(self) -> None:
        try:
            while self._outbox:
                sent = self._sock.sendmsg(list(itertools.islice(self._outbox, _PIECES)))
                self.unsent -= sent
                while sent:
                    piece = self._outbox.popleft()
                    if sent < len(piece):
                        self._outbox.appendleft(piece[sent:])
                    sent -= min(sent, len(piece))
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            # What the peer said last may still be unread: the reading side goes on to the end.
            self._send_error = error
            self._outbox.clear()
            self.unsent = 0
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
        if events != self._events:
            self._events = events
            self._selector.modify(self._sock, events, self._ready)


def _why(error: Optional[OSError]) -> str:
    # A reset is what the kernel sends for a killed process that had something left to read.
    if error is None or isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "its connection closed without a goodbye"
    return f"its connection failed: {error.strerror}"
