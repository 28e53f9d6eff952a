"""Makes sure that a signal handler of the script runs, and that its ``sys.exit`` ends the script.

Python runs signal handlers in the main thread, between two bytecode instructions. That fails a
script that trains with MXNet in two ways:

- A worker that waits in MXNet for the push of another worker executes no instruction. When the
  other worker has been asked to stop too, the wait never ends, and no checkpoint is written. After
  ``PATIENCE`` seconds the handler is therefore called in a thread of its own. It runs once either
  way.
- Where the instruction belongs to a destructor, such as that of ``NDArray``, Python prints
  "Exception ignored" and drops the handler's ``SystemExit``. Here it ends the script all the same.

The wake-up descriptor of ``signal`` says which signals have arrived. A forked child inherits it
together with Python's C handler, so a signal to the child arrives here too: from a library that
forks without Python's hooks as well, and in the moment before any hook can run. The descriptor is
therefore a socket whose messages carry the process id of the writer (unix(7), SO_PASSCRED), which
the kernel fills in; what another process wrote is ignored.
"""

import contextlib
import os
import signal
import socket
import struct
import sys
import threading
import time
import types
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

PATIENCE = 1.0
"""Seconds that the main thread has to run a handler itself."""

_SLACK = 0.5
"""Seconds by which the main thread may be quicker than the thread that watches it."""

_CREDENTIALS = struct.Struct("3i")
"""``struct ucred``: process id, user id, group id (unix(7))."""


class _Handler:
    """A script's handler that records when it was called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.called = float("-inf")
        self.exit: Optional[SystemExit] = None

    def __call__(self, number: int, frame: Optional[types.FrameType]) -> Any:
        self.called = time.monotonic()
        try:
            return self.function(number, frame)
        except SystemExit as error:
            self.exit = error
            raise


def watch(on_error: Callable[[BaseException], None]) -> None:
    """Watch all handlers that are set from here on in this process, and not in its children.

    Args:
        on_error: called with an exception that a handler raised where Python would drop it;
            usually ``SystemExit``.
    """
    handlers = _wrap_handlers()
    _catch_dropped_exits(handlers, on_error)
    reader, writer = _wakeup_sockets()
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def leave_child() -> None:
        """Take the descriptor from a forked child, unless the script has set its own."""
        if threading.current_thread() is threading.main_thread():
            current = signal.set_wakeup_fd(-1)
            if current not in (-1, writer.fileno()):
                signal.set_wakeup_fd(current)

    os.register_at_fork(after_in_child=leave_child)

    def call_if_missed(number: int, handler: _Handler) -> None:
        since = time.monotonic() - _SLACK
        time.sleep(PATIENCE)
        if handler.called >= since or handlers.get(number) is not handler:
            return
        try:
            handler(number, None)
        except BaseException as error:
            on_error(error)

    def listen() -> None:
        for number in _received(reader):
            handler = handlers.get(number)
            if handler is not None:
                threading.Thread(target=call_if_missed, args=(number, handler), daemon=True).start()

    threading.Thread(target=listen, name="signal-handlers", daemon=True).start()


def _wrap_handlers() -> Dict[int, _Handler]:
    """Wrap each handler that the script sets; return those that are set, by signal number."""
    handlers: Dict[int, _Handler] = {}
    set_handler, get_handler = signal.signal, signal.getsignal

    def unwrapped(handler: Any) -> Any:
        return handler.function if isinstance(handler, _Handler) else handler

    # The script continues to see the handlers that it set.
    def signal_(signalnum: int, handler: Any) -> Any:
        if callable(handler) and handler is not signal.default_int_handler:
            handler = handlers[signalnum] = _Handler(handler)
        else:
            handlers.pop(signalnum, None)
        return unwrapped(set_handler(signalnum, handler))

    def getsignal(signalnum: int) -> Any:
        return unwrapped(get_handler(signalnum))

    signal.signal = signal_
    signal.getsignal = getsignal
    return handlers


def _catch_dropped_exits(
    handlers: Dict[int, _Handler], on_error: Callable[[BaseException], None]
) -> None:
    """Call ``on_error`` with the ``SystemExit`` of a handler that Python is about to drop."""
    pid, drop = os.getpid(), sys.unraisablehook

    def unraisable(dropped: "sys.UnraisableHookArgs") -> None:
        error = dropped.exc_value
        exits = [handler.exit for handler in list(handlers.values())]
        if error is not None and os.getpid() == pid and any(each is error for each in exits):
            on_error(error)
        drop(dropped)

    sys.unraisablehook = unraisable


def _wakeup_sockets() -> Tuple[socket.socket, socket.socket]:
    """Return a socket to read signal numbers from, with their senders, and one to write to."""
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    writer.setblocking(False)
    return reader, writer


def _received(reader: socket.socket) -> Iterator[int]:
    """Yield the number of each signal to this process, and none of those to its children."""
    pid, space = os.getpid(), socket.CMSG_SPACE(_CREDENTIALS.size)
    with contextlib.suppress(OSError):  # the script has closed all descriptors, as daemons do
        while True:
            # The kernel joins no messages of two senders.
            numbers, ancillary, _, _ = reader.recvmsg(64, space)
            if not numbers:
                return
            if _sender(ancillary) == pid:
                yield from numbers


def _sender(ancillary: List[Tuple[int, int, bytes]]) -> Optional[int]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack(data)[0])
    return None
