"""One non-blocking connection between two hosts.

A link sends and receives frames. Its owner decodes their payloads.
"""

import contextlib
import selectors
import socket
from dataclasses import dataclass
from typing import Any, Callable, Optional

from sagemaker_mxnet_training.control import wire
from sagemaker_mxnet_training.control.wire import WireError

HANDSHAKE_TIMEOUT = 5.0
"""Seconds in which a new connection must authenticate."""

QUEUE_LIMIT = 1024 * 1024
"""Maximum number of unsent bytes; a peer that falls further behind is lost."""

_READ = 64 * 1024
"""Bytes that are read from one connection at once."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Beat:
    """A heartbeat. The follower's first one confirms the welcome."""


@dataclass(frozen=True)
class Dropped:
    """The sender considers the receiver lost."""

    reason: str


@dataclass(frozen=True)
class Goodbye:
    """The follower leaves; it sends and expects no more messages."""


class Link:
    """One connection. No callback is called after its end.

    Args:
        sock: a connected or connecting socket.
        address: the peer's IP address.
        selector: the owner's selector. The ``data`` of each key is a callable.
        on_payload: called with each payload; it may raise ``WireError``, which ends the link.
        on_end: called once with the reason, unless ``close`` was called before.

    Attributes:
        on_payload: the current callback, which the handshake replaces.
        address: the peer's IP address.
        host, version: from the peer's hello.
        hellos: the frames of both hellos, the follower's first.
        inbox: received data of incomplete frames.
        opened: when the link was created.
        last_received: when a complete frame was last received; initially ``opened``.
        closed: whether it has ended.
    """

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
        self.closed = False
        self.opened = self.last_received = clock()
        self.host = ""
        self.version = 0
        self.hellos = b""
        self.inbox = wire.Inbox(wire.HELLO_LIMIT)
        self.on_payload = on_payload
        self._on_end = on_end
        self._clock = clock
        self._outbox = bytearray()
        self._send_error: Optional[OSError] = None
        self._sock = sock
        self._selector = selector
        self._events = selectors.EVENT_READ
        selector.register(sock, self._events, self._on_ready)

    @property
    def local_address(self) -> str:
        """IP address of this host on the connection."""
        return str(self._sock.getsockname()[0])

    @property
    def unsent(self) -> int:
        """Number of bytes that are still queued."""
        return len(self._outbox)

    def send(self, message: Any) -> None:
        """Queue a message, and send as much as possible."""
        self.send_frame(wire.encode(message))

    def send_frame(self, frame: bytes) -> None:
        """Queue an encoded message. It is discarded if the queue is full (see ``fault``)."""
        if not self.closed and self.unsent <= QUEUE_LIMIT:
            self._outbox += frame
            self._flush()

    def fault(self, now: float, timeout: float) -> str:
        """Return why the peer is lost, or an empty string."""
        if now - self.last_received >= timeout:
            return f"silent for {timeout:g} s"
        if self.unsent > QUEUE_LIMIT:
            return f"does not read: {self.unsent} bytes are waiting for it"
        return ""

    def end(self, reason: str) -> None:
        """Close, and call ``on_end`` with the reason."""
        if not self.closed:
            self.close()
            self._on_end(self, reason)

    def close(self) -> None:
        """Close without calling ``on_end``."""
        if not self.closed:
            self.closed = True
            self._selector.unregister(self._sock)
            self._sock.close()
            self._outbox.clear()

    def _on_ready(self, mask: int) -> None:
        # The selector may still call this after a close in the same round.
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
            return self.end(_reason(error))
        if not data:
            return self.end(_reason(self._send_error))
        self.inbox.feed(data)
        try:
            payload = self.inbox.take()
            while payload is not None:
                self.last_received = self._clock()
                self.on_payload(self, payload)
                payload = None if self.closed else self.inbox.take()
        except WireError as error:
            self.end(str(error))

    def _flush(self) -> None:
        try:
            with contextlib.suppress(BlockingIOError, InterruptedError):
                while self._outbox:
                    del self._outbox[: self._sock.send(self._outbox)]
        except OSError as error:
            # Continue reading: the peer's last messages may still be unread.
            self._send_error = error
            self._outbox.clear()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
        if events != self._events:
            self._events = events
            self._selector.modify(self._sock, events, self._on_ready)


class Heartbeats:
    """The schedule of heartbeats, several per ``peer_timeout``, and the check of the peers'.

    Args:
        peer_timeout: seconds of silence after which a peer is lost.
        now: monotonic seconds.

    Attributes:
        next: when the next heartbeat is due.
    """

    def __init__(self, peer_timeout: float, now: float) -> None:
        self._peer_timeout = peer_timeout
        self._period = min(peer_timeout / 5, 3.0)
        self.next = now + self._period
        self._suspended = False

    def due(self, now: float) -> bool:
        """Return whether a heartbeat is due, and schedule the next one."""
        if now < self.next:
            return False
        # Then this process was suspended or starved, and the silence may not be its peers'.
        self._suspended = now - self.next > self._period
        self.next = now + self._period
        return True

    def keep(self, link: Link, now: float) -> bool:
        """Return whether the peer is alive when a heartbeat is due; end the link if it is lost."""
        if self._suspended:
            link.last_received = now
        fault = link.fault(now, self._peer_timeout)
        if fault:
            # If the peer was only suspended, it reads this and considers itself lost.
            link.send(Dropped(fault))
            link.end(fault)
        return not fault


def _reason(error: Optional[OSError]) -> str:
    # The kernel sends a reset for a killed process that had unread data.
    if error is None or isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "its connection closed unexpectedly"
    return f"its connection failed: {error.strerror}"
