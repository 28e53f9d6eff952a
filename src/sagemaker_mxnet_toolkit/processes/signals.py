"""Signals that stop a program, and reading signals from a file descriptor.

A selector can wait for this descriptor. This is the self-pipe trick with ``signal.set_wakeup_fd``:
the C handler writes the number of each signal to a socket pair.
"""

import contextlib
import signal
import socket
from typing import Any, Dict, Iterator, List, Sequence

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that stop a training job or a server."""


def not_ignored(numbers: Sequence[int]) -> Sequence[int]:
    """Return the signals to catch, without a SIGHUP that is ignored because of ``nohup``."""
    hangup = signal.SIGHUP
    return [n for n in numbers if n != hangup or signal.getsignal(n) is not signal.SIG_IGN]


@contextlib.contextmanager
def blocked_stop_signals() -> Iterator[None]:
    """Block the stop signals until ``unblock_stop_signals``, or until the end of the context.

    Until a program handles SIGTERM, the signal would be lost if the program is PID 1, and would
    otherwise end it with a status other than 0.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_stop_signals() -> None:
    """Unblock the stop signals, and deliver pending ones.

    Call this before starting children, which would inherit the signal mask.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class SignalPipe:
    """Catches signals in a ``with`` block, and restores earlier handlers after it.

    Signals that ``blocked_stop_signals`` has blocked arrive first.

    Use it only in the main thread. A process that is forked in the block without ``exec`` would
    share the pipe.

    Args:
        numbers: the signals to catch; a SIGHUP that is ignored stays ignored.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = not_ignored(numbers)

    def __enter__(self) -> "SignalPipe":
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._handlers: Dict[int, Any] = {
            number: signal.signal(number, lambda *_: None) for number in self._numbers
        }
        self._wakeup_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        unblock_stop_signals()
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
