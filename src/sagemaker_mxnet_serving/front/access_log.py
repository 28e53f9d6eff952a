"""The access log: one line for each request. A thread writes the lines in blocks."""

import asyncio
import contextlib
import json
import logging
import queue
import time
from logging.handlers import QueueHandler
from typing import Any, List, Tuple

from sagemaker_mxnet_toolkit.log import LineWriter

_FLUSH_SECONDS = 0.1
_PENDING = 100
"""Blocks that may wait while the reader of stdout stalls; further ones are dropped and counted."""


class AccessLog:
    """Writes lines such as ``POST /invocations 200 3.1 ms (0.2 queued) in 784 out 63 id 1f-7``.

    Args:
        form: ``text``, ``json`` or ``off``.
        fd: the file descriptor to write to.
    """

    def __init__(self, form: str, fd: int = 1) -> None:
        self._form = form
        self._loop = asyncio.get_event_loop()
        self._lines: List[str] = []
        self._clock: Tuple[int, str] = (0, "")
        self._handler = _DroppingHandler(queue.Queue(_PENDING))
        self._writer = LineWriter(self._handler.queue, fd)
        self._writer.start()

    def __call__(
        self,
        method: str,
        path: str,
        status: int,
        seconds: float,
        queued: float,
        received: int,
        sent: int,
        request_id: str,
    ) -> None:
        """Log an answered request.

        Args:
            method: the HTTP method.
            path: the path, without the query string.
            status: the HTTP status; 499 if the client disconnected before the end of the response.
            seconds: from its head to the end of its response.
            queued: how many of these it waited for a worker.
            received: bytes of its body.
            sent: bytes of the response's body.
            request_id: its id.
        """
        if self._form == "off":
            return
        if not self._lines:
            self._loop.call_later(_FLUSH_SECONDS, self._flush)
        clock = self._now()
        if self._form == "json":
            fields = {
                "time": clock,
                "method": method,
                "path": path,
                "status": status,
                "ms": round(seconds * 1e3, 2),
                "queued_ms": round(queued * 1e3, 2),
                "bytes_in": received,
                "bytes_out": sent,
                "id": request_id,
            }
            self._lines.append(json.dumps(fields, separators=(",", ":")))
        else:
            shown = path if path.isprintable() and " " not in path else repr(path)
            self._lines.append(
                f"{clock} {method} {shown} {status} {seconds * 1e3:.1f} ms "
                f"({queued * 1e3:.1f} queued) in {received} out {sent} id {request_id}"
            )

    def close(self) -> None:
        """Write the remaining lines, unless the reader stalls."""
        self._flush()
        with contextlib.suppress(queue.Full):
            self._writer.stop()

    def _now(self) -> str:
        second = int(time.time())
        if self._clock[0] != second:
            self._clock = second, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
        return self._clock[1]

    def _flush(self) -> None:
        if not self._lines:
            return
        count, dropped = len(self._lines), self._handler.dropped
        if dropped:
            self._lines.append(self._notice(dropped))
        block, self._lines = "\n".join(self._lines), []
        self._handler.dropped = 0
        self._handler.handle(logging.makeLogRecord({"msg": block, "lines": count + dropped}))

    def _notice(self, dropped: int) -> str:
        """Return a line that says how many were dropped."""
        if self._form == "json":
            return json.dumps({"time": self._now(), "dropped": dropped}, separators=(",", ":"))
        return f"{dropped} lines of the access log were dropped"


class _DroppingHandler(QueueHandler):
    """Puts blocks of lines into a queue; drops and counts those that do not fit."""

    dropped = 0

    def handleError(self, record: Any) -> None:
        """Count the lines of a block."""
        self.dropped += record.lines
