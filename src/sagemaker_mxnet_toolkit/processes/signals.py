"""Signals as bytes to read from a file descriptor, so that a selector can wait for them.

This is the self-pipe trick, done by ``signal.set_wakeup_fd``: the C handler writes the number of
each signal into a socket pair, and no Python code runs in a signal handler.
"""

import contextlib
import signal
import socket
from typing import Any, Dict, List, Sequence

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that ask a program to stop."""


class SignalPipe:
    """Catches signals within a ``with`` block; the earlier handlers come back after it.

    To be used in the main thread only, as Python requires (``signal``). A process that is forked
    within the block without ``exec`` shares the pipe: start programs with ``subprocess``.

    Args:
        numbers: the signals to catch.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = tuple(numbers)

    def __enter__(self) -> "SignalPipe":
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._handlers: Dict[int, Any] = {
            number: signal.signal(number, lambda *_: None) for number in self._numbers
        }
        self._wakeup_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when a signal has arrived."""
        return self._reader.fileno()

    def read(self) -> List[int]:
        """Return the numbers of the signals since the last call, in the order of arrival."""
        with contextlib.suppress(BlockingIOError):
            return list(self._reader.recv(4096))
        return []
