"""Detection of files and threads that a test leaves open or running in its process."""

import contextlib
import os
import threading
from typing import Iterator, List, Set

import psutil

from tests.support.jobs import eventually


def _open_files() -> Set[str]:
    """Return this process's open files, without the directory that is read for this."""
    names = os.listdir("/proc/self/fd")
    return {name for name in names if os.path.lexists(f"/proc/self/fd/{name}")}


@contextlib.contextmanager
def no_leaks() -> Iterator[None]:
    """Fail if the block leaves a file open, or a child process or a thread running.

    Only new ones count, because what an earlier test left may end meanwhile. A thread that the
    block has stopped may need a moment to end.
    """
    files, threads = _open_files(), set(threading.enumerate())
    children = set(psutil.Process().children())

    def new() -> List[object]:
        return [
            *(f"file descriptor {name}" for name in _open_files() - files),
            *set(psutil.Process().children()) - children,
            *set(threading.enumerate()) - threads,
        ]

    yield
    with contextlib.suppress(AssertionError):
        eventually(lambda: not new(), "the end of what the block started")
    left = new()
    assert not left, f"left behind: {left}"
