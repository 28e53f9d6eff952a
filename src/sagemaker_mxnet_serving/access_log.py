"""One line for each request. Lines are collected, and written together by a thread."""

import asyncio
import json
import queue
import threading
import time
from typing import List, Optional, Tuple

from sagemaker_mxnet_toolkit.log import write_all

_FLUSH_SECONDS = 0.1
_PENDING = 100
"""Blocks that may wait for a reader of our output that stalls; more are dropped, and counted."""


class AccessLog:
    """Writes lines such as ``POST /invocations 200 3.1 ms (0.2 queued) in 784 out 63 id 1f-7``.

    Args:
        form: ``text``, ``json`` or ``off``.
        fd: where lines go.
    """

    def __init__(self, form: str, fd: int = 1) -> None:
        self._form = form
        self._fd = fd
        self._loop = asyncio.get_event_loop()
        self._lines: List[str] = []
        self._clock: Tuple[int, str] = (0, "")
        self._dropped = 0
        self._blocks: queue.Queue[Optional[bytes]] = queue.Queue(_PENDING)
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()

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
        """Note an answered request.

        Args:
            method: the HTTP method.
            path: the path, without what follows a question mark.
            status: the HTTP status; 499 where the caller had gone.
            seconds: from its head to its answer.
            queued: seconds of these that it waited for a worker.
            received: bytes of its body.
            sent: bytes of the answer's body.
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
        """Write what is left, unless nobody reads it."""
        self._flush()
        try:
            self._blocks.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(1.0)

    def _now(self) -> str:
        second = int(time.time())
        if self._clock[0] != second:
            self._clock = second, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
        return self._clock[1]

    def _flush(self) -> None:
        if not self._lines:
            return
        count = len(self._lines)
        if self._dropped:
            self._lines.append(self._notice())
        block = ("\n".join(self._lines) + "\n").encode("utf-8", "replace")
        self._lines = []
        try:
            self._blocks.put_nowait(block)
            self._dropped = 0
        except queue.Full:
            self._dropped += count

    def _notice(self) -> str:
        """Return a line about those that were dropped."""
        if self._form == "json":
            fields = {"time": self._now(), "dropped": self._dropped}
            return json.dumps(fields, separators=(",", ":"))
        return f"{self._dropped} lines of the access log were dropped"

    def _write(self) -> None:
        while True:
            block = self._blocks.get()
            if block is None:
                return
            write_all(self._fd, block)
