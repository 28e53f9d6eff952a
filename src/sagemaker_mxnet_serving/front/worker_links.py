"""The front's sockets to a model process and to its workers."""

import array
import asyncio
import json
import socket
from typing import Any, Callable, List, Mapping, Optional, Sequence, cast

from sagemaker_mxnet_serving import worker_frames

_JOINED = 64 * 1024
"""Bytes of a frame up to which a copy costs less than another system call."""


class WorkerLink(asyncio.Protocol):
    """The connection to one worker.

    Args:
        pid: the worker's process id.
        on_frame: called with this link and the items of a frame.
        on_lost: called with this link, once, when the connection is closed.

    Attributes:
        pid: the worker's process id.
        ready: whether the worker has loaded the model.
        fault: what was wrong with a frame, for which the connection was closed.
        unread: whether the worker has died without having read the last frame, so that this
            cannot be the cause.
    """

    def __init__(
        self,
        pid: int,
        on_frame: "Callable[[WorkerLink, List[worker_frames.Item]], None]",
        on_lost: "Callable[[WorkerLink], None]",
    ) -> None:
        self.pid = pid
        self.ready = False
        self.fault = ""
        self.unread = False
        self._sent_bytes = 0
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = worker_frames.FrameReader()
        self._transport: Optional[asyncio.Transport] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass on complete frames; close the connection if the data is not valid."""
        try:
            for items in self._reader.feed(data):
                self._on_frame(self, items)
        except worker_frames.FrameError as error:
            self.fault = str(error)
            self.close()

    def connection_lost(self, error: Optional[Exception]) -> None:
        """Report that the worker is gone.

        The kernel resets the connection, instead of closing it, if a process dies with unread data
        (unix_release_sock). A worker may have read a part of a large frame, and may have died
        because of the memory that it needs.
        """
        self.unread = isinstance(error, ConnectionError) and self._sent_bytes <= _JOINED
        self._on_lost(self)

    def send(self, pieces: Sequence[bytes]) -> None:
        """Send a frame."""
        if self._transport is None:
            return
        self._sent_bytes = sum(map(len, pieces))
        if self._sent_bytes <= _JOINED:
            # One system call, and the worker is woken once.
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    def close(self) -> None:
        """Close the connection, and discard what is not sent."""
        if self._transport is not None:
            self._transport.abort()


class ControlLink:
    """The front's end of the control socket of a model process.

    Args:
        loop: the running loop.
        own: the front's end.
        on_message: called with each message, and the socket attached to it, if any.
        on_closed: called once when the model process has closed its end.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        own: socket.socket,
        on_message: Callable[[Mapping[str, Any], Optional[socket.socket]], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._socket = own
        self._on_message = on_message
        self._on_closed = on_closed
        own.setblocking(False)
        loop.add_reader(own.fileno(), self._on_readable)

    def request(self, slot: int) -> None:
        """Ask for a worker.

        Args:
            slot: its number among the workers of the model.
        """
        try:
            self._socket.send(json.dumps({"fork": slot}).encode())
        except OSError:  # closed, which the loop is about to notice
            return

    def close(self) -> None:
        """Close the socket, at which the model process ends with its workers."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _on_readable(self) -> None:
        descriptors = array.array("i")
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                worker_frames.MESSAGE_LIMIT,
                socket.CMSG_SPACE(descriptors.itemsize),
                socket.MSG_CMSG_CLOEXEC,
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self.close()
            self._on_closed()
            return
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: descriptors.itemsize])
        attached = socket.socket(fileno=descriptors[0]) if descriptors else None
        self._on_message(json.loads(data), attached)
