"""What happened when on one host, in the Chrome trace event format.

The file opens in Perfetto and ``chrome://tracing``, beside MXNet's own profiler output. The format
is Google's "Trace Event Format": complete events (``X``) with a start and a duration, instants
(``i``), and metadata (``M``) that names processes; times are microseconds.
"""

import contextlib
import json
import os
import time
from typing import Any, Dict, List, Mapping, Optional, Tuple

_HOST_ROW = 0


class Timeline:
    """Records phases, lives of processes and instants of one host.

    Args:
        host: names the file and the rows.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        # Wall time once, and the monotonic clock from there: hosts share only the former.
        self._offset = time.time() - time.monotonic()
        self._events: List[Dict[str, Any]] = []
        self._phase: Optional[Tuple[str, float]] = None
        self._name(_HOST_ROW, "job")

    def phase(self, name: Optional[str]) -> None:
        """Begin a phase of the job, which ends the one before; ``None`` only ends it."""
        now = time.monotonic()
        if self._phase is not None:
            self._span(_HOST_ROW, self._phase[0], self._phase[1], now, {})
        self._phase = None if name is None else (name, now)

    def process(self, pid: int, name: str, started: float, status: Optional[int]) -> None:
        """Record the life of a process that has ended.

        Args:
            pid: its id, and its row.
            name: its name on this host.
            started: when it was started (monotonic, seconds).
            status: its exit status, in the shell's convention.
        """
        self._name(pid, name)
        self._span(pid, name, started, time.monotonic(), {"exit status": status})

    def instant(self, name: str, detail: str = "") -> None:
        """Record something that took no time: a signal, a failure, an order."""
        self._add("i", _HOST_ROW, name, time.monotonic(), s="p", args={"detail": detail})

    def phases(self) -> Mapping[str, float]:
        """Return the seconds that each ended phase took, in their order."""
        return _phases(self._events)

    def write(self, directory: str) -> None:
        """Write ``timeline-<host>.json``, whole or not at all; a full disk is no failure."""
        path = _path(directory, self.host)
        with contextlib.suppress(OSError):
            os.makedirs(directory, exist_ok=True)
            with open(path + ".tmp", "w", encoding="utf-8") as file:
                json.dump({"traceEvents": self._events, "displayTimeUnit": "ms"}, file)
            os.rename(path + ".tmp", path)

    def _span(self, row: int, name: str, start: float, end: float, args: Dict[str, Any]) -> None:
        self._add("X", row, name, start, dur=round((end - start) * 1e6), args=args)

    def _name(self, row: int, name: str) -> None:
        self._add("M", row, "thread_name", 0.0, args={"name": name})

    def _add(self, kind: str, row: int, name: str, when: float, **more: Any) -> None:
        stamp = round((when + self._offset) * 1e6) if when else 0
        self._events.append(
            {"ph": kind, "pid": self.host, "tid": row, "name": name, "ts": stamp, **more}
        )


def read_phases(directory: str, host: str) -> Mapping[str, float]:
    """Return what ``Timeline.phases`` did when it was written; nothing where it cannot be read."""
    try:
        with open(_path(directory, host), encoding="utf-8") as file:
            return _phases(json.load(file)["traceEvents"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _path(directory: str, host: str) -> str:
    return os.path.join(directory, f"timeline-{host}.json")


def _phases(events: List[Dict[str, Any]]) -> Mapping[str, float]:
    return {
        event["name"]: event["dur"] / 1e6
        for event in events
        if event["ph"] == "X" and event["tid"] == _HOST_ROW
    }
