"""Receives the signals of this process, independent of its main thread.

Python's C handler writes the number of each signal to the wake-up descriptor of ``signal``. A
forked child inherits the descriptor, and may get a signal before a hook can reset it. So the
descriptor is a socket whose messages have the process id of the writer (unix(7), SO_PASSCRED), and
messages of other processes are ignored.
"""

import contextlib
import os
import signal
import socket
import struct
import threading
from typing import Iterator, List, Optional, Tuple

_CREDENTIALS = struct.Struct("3i")
"""``struct ucred``: process id, user id, group id (unix(7))."""


def open_socket() -> Optional[socket.socket]:
    """Make Python write the signals of this process to a socket; call it in the main thread.

    Returns:
        The socket, for ``numbers``; ``None`` if the script has set its own wake-up descriptor.
    """
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    writer.setblocking(False)
    descriptor = writer.fileno()
    before = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    if before != -1:
        signal.set_wakeup_fd(before)
        reader.close()
        writer.close()
        return None
    writer.detach()  # keep it open until the process ends

    def leave_child() -> None:
        """Reset the descriptor in a forked child, unless the script has set its own."""
        if threading.current_thread() is threading.main_thread():
            current = signal.set_wakeup_fd(-1)
            if current not in (-1, descriptor):
                signal.set_wakeup_fd(current)

    os.register_at_fork(after_in_child=leave_child)
    return reader


def numbers(reader: socket.socket) -> Iterator[int]:
    """Yield the number of each signal to this process, but not to its children."""
    pid, space = os.getpid(), socket.CMSG_SPACE(_CREDENTIALS.size)
    with contextlib.suppress(OSError):  # the script may close all descriptors, like a daemon
        while True:
            # The kernel does not merge messages of two senders.
            received, ancillary, _, _ = reader.recvmsg(64, space)
            if not received:
                return
            if _sender(ancillary) == pid:
                yield from received


def _sender(ancillary: List[Tuple[int, int, bytes]]) -> Optional[int]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack(data)[0])
    return None
