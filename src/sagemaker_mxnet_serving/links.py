"""The front's ends of its sockets to a model process and to the workers."""

import array
import asyncio
import json
import socket
from typing import Any, Callable, List, Mapping, Optional, Sequence, cast

from sagemaker_mxnet_serving import frames
from sagemaker_mxnet_serving.messages import Piece

_MESSAGE_LIMIT = 4096

_JOINED = 64 * 1024
"""Bytes of a frame up to which a copy costs less than another system call."""


class WorkerLink(asyncio.Protocol):
    """The connection to one worker.

    Args:
        pid: the worker's process id.
        on_frame: called with this and what a frame carries.
        on_lost: called with this, once, when the connection is closed.

    Attributes:
        pid: the worker's process id.
        ready: whether the worker has said that it has a model.
    """

    def __init__(
        self,
        pid: int,
        on_frame: "Callable[[WorkerLink, List[frames.Item]], None]",
        on_lost: "Callable[[WorkerLink], None]",
    ) -> None:
        self.pid = pid
        self.ready = False
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = frames.FrameReader()
        self._transport: Optional[asyncio.Transport] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass complete frames on; a worker that sends anything else is cut off."""
        try:
            for items in self._reader.feed(data):
                self._on_frame(self, items)
        except frames.FrameError:
            self.close()

    def connection_lost(self, error: Optional[Exception]) -> None:
        """Tell that the worker is gone."""
        self._on_lost(self)

    def send(self, pieces: Sequence[Piece]) -> None:
        """Send a frame."""
        if self._transport is None:
            return
        if sum(map(len, pieces)) <= _JOINED:
            # One system call, and the worker is woken once.
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    def close(self) -> None:
        """Cut the worker off."""
        if self._transport is not None:
            self._transport.abort()


class ControlLink:
    """The front's end of the control socket of a model process.

    Args:
        loop: the running loop.
        own: the front's end.
        on_message: called with each message, and the socket attached to it, if there is one.
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
        loop.add_reader(own.fileno(), self._hear)

    def order(self, slot: int) -> None:
        """Ask for a worker.

        Args:
            slot: the number of the place that it takes among the workers of its model.
        """
        try:
            self._socket.send(json.dumps({"fork": slot}).encode())
        except OSError:  # closed: then its end is about to be noticed
            return

    def close(self) -> None:
        """Close the socket, at which a model process ends with its workers."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _hear(self) -> None:
        descriptors = array.array("i")
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                _MESSAGE_LIMIT, socket.CMSG_SPACE(descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
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
