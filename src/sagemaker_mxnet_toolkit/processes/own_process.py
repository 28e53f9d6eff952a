"""The current process: its start, its parent, its limits, its crashes, and its stop signals.

``SignalPipe`` reads signals from a file descriptor, which a selector can wait for. This is the
self-pipe trick with ``signal.set_wakeup_fd``: the C handler writes the number of each signal to a
pipe.
"""

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import time
from typing import Any, Dict, Iterator, List, Optional, Sequence

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that stop a training job or a server."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def own_start() -> float:
    """Return when this process started (monotonic, seconds; proc(5), ``starttime``).

    exec(3) does not change the start time.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", "rb") as file:
            # The second field is the program's name in parentheses; it may contain any byte.
            fields = file.read().rsplit(b")", 1)[1].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        # The clocks differ by the time that the machine was suspended. If a busy machine runs
        # something else between the two readings, the difference is too small.
        suspended = max(
            time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic() for _ in range(3)
        )
        return min(started - suspended, time.monotonic())
    return time.monotonic()


def become_subreaper() -> None:
    """Make orphaned descendants of this process its children (Linux 3.4, prctl(2))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Send this process a signal when its parent ends (prctl(2)).

    Args:
        parent: the parent's process id; if it has already ended, this process exits.
        number: the signal.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def raise_file_limit(count: Optional[int] = None) -> None:
    """Raise the soft limit on open files, as far as the hard limit allows.

    Args:
        count: the limit that is needed; as high as possible by default.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or (count is not None and soft >= count):
        return
    wanted = hard
    if count is not None and (hard == resource.RLIM_INFINITY or count < hard):
        wanted = count
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._handlers: Dict[int, Any] = {
            number: signal.signal(number, lambda *_: None) for number in self._numbers
        }
        self._wakeup_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        unblock_stop_signals()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """Return the descriptor that is readable when a signal has arrived."""
        return self._reader

    def read(self) -> List[int]:
        """Return the numbers of the signals since the last call, in the order of arrival."""
        with contextlib.suppress(BlockingIOError):
            return list(os.read(self._reader, 4096))
        return []


def report_native_crashes() -> None:
    """Print the Python stack of a native crash, and end the process by its signal.

    Call this before MXNet is loaded, and again afterwards: the handler that MXNet 1.9.1 installs
    prints no Python stack, and exits with status 255 after a SIGSEGV.
    """
    faulthandler.disable()  # restores the handlers from before MXNet's
    faulthandler.enable()
