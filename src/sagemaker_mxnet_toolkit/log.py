"""The entrypoint's log: one line on stderr for every transition, with host and role.

Lines are written by a thread: a stalled reader of stderr must not stall the supervisor, which the
other hosts would then take for dead.
"""

import contextlib
import os
import queue
import threading
import time
from typing import FrozenSet, Optional

from sagemaker_mxnet_toolkit.redaction import redact_text

# Levels of Python's logging, which has much more to it.
_INFO, _WARNING, _ERROR = 20, 30, 40
_CLOSE_SECONDS = 2.0


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, unless nobody reads it any more: that is no reason for a job to end."""
    view = memoryview(data)
    with contextlib.suppress(OSError):
        while view:
            view = view[os.write(fd, view) :]


class Log:
    """Writes lines such as ``[sagemaker-mxnet-training] 12:00:01 algo-1 worker: started``.

    Args:
        host: named in every line.
        level: lines below it are dropped; a level of ``logging``.
        secrets: values that never appear in a line.
        fd: where lines go.
        program: begins every line.
    """

    def __init__(
        self,
        host: str,
        level: int = _INFO,
        secrets: FrozenSet[str] = frozenset(),
        fd: int = 2,
        program: str = "sagemaker-mxnet-training",
    ) -> None:
        self.host = host
        self.level = level
        self.secrets = secrets
        self._fd = fd
        self._program = program
        self._lines: queue.SimpleQueue[Optional[bytes]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def __call__(self, role: str, text: str, level: int = _INFO) -> None:
        """Log that something happened to a role of this host."""
        if level < self.level:
            return
        clock = time.strftime("%H:%M:%S", time.gmtime())
        head = f"[{self._program}] {clock} {self.host} {role}: "
        if level >= _WARNING:
            head += "ERROR: " if level >= _ERROR else "WARNING: "
        line = head + self.redact(text).replace("\n", f"\n[{self._program}]   ")
        self._lines.put((line + "\n").encode("utf-8", "replace"))

    def redact(self, text: str) -> str:
        """Return a text without the job's secrets."""
        return redact_text(text, self.secrets)

    def warning(self, role: str, text: str) -> None:
        """Log something that is wrong, though the job goes on."""
        self(role, text, _WARNING)

    def error(self, role: str, text: str) -> None:
        """Log a failure."""
        self(role, text, _ERROR)

    def close(self) -> None:
        """Write what is left, unless nobody reads it within two seconds."""
        self._lines.put(None)
        self._thread.join(_CLOSE_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            if line is None:
                return
            write_all(self._fd, line)
