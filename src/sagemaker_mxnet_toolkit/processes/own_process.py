"""Attributes of the current process: start time, parent-death signal, file limit."""

import contextlib
import ctypes
import os
import resource
import signal
import time
from typing import Optional

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
        # The clocks differ by the time that the machine was suspended. Nothing slow stands between
        # the two readings, in which a busy machine could run something else.
        suspended = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
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
