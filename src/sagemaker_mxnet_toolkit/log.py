"""The log of the entrypoint and the server: lines on stderr, with host and role.

A thread writes them (``logging.handlers.QueueListener``), since a blocked stderr must not block the
supervisor: the other hosts would consider it lost.
"""

import contextlib
import logging
import os
import queue
import time
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Callable, FrozenSet

from sagemaker_mxnet_toolkit.redaction import redact_text

_CLOSE_SECONDS = 2.0


def write_all(fd: int, data: bytes) -> None:
    """Write all data. A closed file is not an error."""
    view = memoryview(data)
    with contextlib.suppress(OSError):
        while view:
            view = view[os.write(fd, view) :]


class Log:
    """Writes lines such as ``[sagemaker-mxnet-training] 12:00:01 algo-1 worker: started``.

    Args:
        host: the host's name.
        level: the log level, as in ``logging``.
        secrets: values that are masked.
        fd: the file descriptor to write to.
        program: the prefix of every line.
    """

    def __init__(
        self,
        host: str,
        level: int = logging.INFO,
        secrets: FrozenSet[str] = frozenset(),
        fd: int = 2,
        program: str = "sagemaker-mxnet-training",
    ) -> None:
        self.host = host
        self.level = level
        self.secrets = secrets
        self._program = program
        self._listener = LineWriter(queue.SimpleQueue(), fd)
        self._handle: Callable[[logging.LogRecord], Any]
        try:
            self._listener.start()
            self._handle = QueueHandler(self._listener.queue).handle
        except RuntimeError:  # the limit on processes and threads is reached
            self._handle = self._listener.handle

    def __call__(self, role: str, text: str, level: int = logging.INFO) -> None:
        """Log a message about a role of this host."""
        if level < self.level:
            return
        clock = time.strftime("%H:%M:%S", time.gmtime())
        severity = f"{logging.getLevelName(level)}: " if level >= logging.WARNING else ""
        message = self.redact(text).replace("\n", f"\n[{self._program}]   ")
        line = f"[{self._program}] {clock} {self.host} {role}: {severity}{message}"
        self._handle(logging.makeLogRecord({"levelno": level, "msg": line}))

    def redact(self, text: str) -> str:
        """Return a text without the job's secrets."""
        return redact_text(text, self.secrets)

    def debug(self, role: str, text: str) -> None:
        """Log a message at level ``DEBUG``."""
        self(role, text, logging.DEBUG)

    def warning(self, role: str, text: str) -> None:
        """Log a warning."""
        self(role, text, logging.WARNING)

    def error(self, role: str, text: str) -> None:
        """Log a failure."""
        self(role, text, logging.ERROR)

    def close(self) -> None:
        """Write remaining lines, for two seconds at most."""
        self._listener.stop()


class LineWriter(QueueListener):
    """Writes records to a file descriptor, in a thread.

    It has no handler, since Python would wait at exit for the lock of a blocked handler.
    """

    def __init__(self, records: Any, fd: int) -> None:
        super().__init__(records)
        self._fd = fd

    def handle(self, record: logging.LogRecord) -> None:
        """Write a record's message."""
        write_all(self._fd, f"{record.getMessage()}\n".encode("utf-8", "replace"))

    def stop(self) -> None:
        """Wait for the thread, with a timeout, since it may be blocked in a write."""
        thread = self._thread
        if thread is not None and thread.ident is not None:
            self.enqueue_sentinel()
            thread.join(_CLOSE_SECONDS)
