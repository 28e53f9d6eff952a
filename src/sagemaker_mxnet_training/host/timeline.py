"""What happened when on one host, in the Chrome trace event format.

The file opens in Perfetto and ``chrome://tracing``, beside MXNet's own profiler output. The format
is Google's "Trace Event Format": complete events (``X``) with a start and a duration, instants
(``i``), counters (``C``) whose value holds until the next, and metadata (``M``) that names the
rows; times are microseconds. A host is a process there, and a process of ours a thread.

``cat`` says what an event is: ``phase``, ``process``, ``usage``, ``signal``, ``failure``, ``stop``,
``checkpoint``, ``restart``, ``resume`` or ``verdict``. ``otherData`` says whose timeline it is, and
how the job ended.
"""

import contextlib
import json
import os
import time
import zlib
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.failure import Failure, Role, signal_name
from sagemaker_mxnet_training import __version__
from sagemaker_mxnet_training.host.phase import HostPhase

if TYPE_CHECKING:
    from sagemaker_mxnet_toolkit.processes.usage import Track
    from sagemaker_mxnet_training.cluster.coordination import Verdict

PROGRAM = "sagemaker-mxnet-training"
"""Value of ``otherData.program``, by which a timeline of ours is known."""

CPU = "% of a core"
"""Key of a CPU counter's value. The counter's name is that of its process, and `` CPU``."""

MEMORY = "MB"
"""Key of a memory counter's value, in 10**6 bytes. The counter is called ``<process> memory``."""


class Timeline:
    """Records phases, lives of processes and instants of one host.

    Args:
        host: names the file and the rows.
        clock: returns the time as ``time.monotonic`` does.
        wall_clock: returns the time as ``time.time`` does; called once.
    """

    def __init__(
        self,
        host: str,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.host = host
        self._clock = clock
        self.current: Optional[HostPhase] = None
        """The phase in progress."""
        # Wall time once, and the monotonic clock from there: hosts share only the former.
        self._offset = wall_clock() - clock()
        # The entrypoint is process 1 in every container; hosts in one view need ids of their own.
        self._id = zlib.crc32(host.encode("utf-8", "replace")) & 0x7FFFFFFF
        self._job_row = os.getpid()
        self._events: List[Dict[str, Any]] = []
        self._rows = 0
        self._began = 0.0
        self._describe("process_name", self._job_row, name=host)
        self._name(self._job_row, "job")

    def phase(
        self,
        phase: Optional[HostPhase],
        since: Optional[float] = None,
        ended_as: Optional[HostPhase] = None,
    ) -> None:
        """Begin a phase of the job, which ends the one before; ``None`` only ends it.

        Args:
            phase: the new phase.
            since: when it began (monotonic, seconds); now by default.
            ended_as: what the phase before was, where only its end tells.
        """
        now = self._clock() if since is None else since
        if self.current is not None:
            ended = ended_as or self.current
            self._span("phase", self._job_row, ended.value, self._began, now)
        self.current, self._began = phase, now

    def process(
        self,
        pid: int,
        name: str,
        role: Role,
        started: float,
        status: Optional[int],
        signals: Sequence[Tuple[float, int]] = (),
        track: "Optional[Track]" = None,
    ) -> None:
        """Record the life of a process until now, its signals and what it used.

        Args:
            pid: its id, and its row.
            name: its name, unique on this host.
            role: what it was for.
            started: when it was started (monotonic, seconds).
            status: its exit status, in the shell's convention; ``None`` while it lives.
            signals: what it was sent: when (monotonic, seconds), and the signal's number.
            track: its CPU and memory, if they were sampled.
        """
        now = self._clock()
        self._name(pid, name)
        told = {"role": role.value, "exit status": status}
        self._span("process", pid, name, started, now, **told)
        for when, number in signals:
            self._mark("signal", pid, signal_name(number), when, detail="sent")
        if track is not None:
            self._count(f"{name} CPU", CPU, track.cpu_percent(), now)
            megabytes = [(point.when, point.memory / 1e6) for point in track.points[1:]]
            self._count(f"{name} memory", MEMORY, megabytes, now)

    def instant(self, kind: str, name: str, detail: str = "", when: Optional[float] = None) -> None:
        """Record something that took no time, such as a signal, on the job's row.

        Args:
            kind: what sort of thing.
            name: what it was.
            detail: more about it.
            when: when it happened (monotonic, seconds); now by default.
        """
        stamp = self._clock() if when is None else when
        self._mark(kind, self._job_row, name, stamp, detail=detail)

    def failure(self, failure: Failure, when: float, pid: Optional[int] = None) -> None:
        """Record what failed on this host, on the job's row and on that of the process.

        Args:
            failure: what is recorded, without secrets.
            when: when that happened (monotonic, seconds).
            pid: the process that failed, if it was one of this host.
        """
        for row in (self._job_row, *([] if pid is None else [pid])):
            self._mark("failure", row, "failure", when, **failure.to_json())

    def write(
        self, directory: str, verdict: "Optional[Verdict]" = None, about: Mapping[str, Any] = {}
    ) -> None:
        """Write ``timeline-<host>.json``, whole or not at all. A full disk is ignored.

        Args:
            directory: where to; it is made.
            verdict: how the job ended, without secrets.
            about: more entries of ``otherData``.
        """
        ending = {} if verdict is None else verdict.to_json()
        other = {"program": PROGRAM, "version": __version__, "host": self.host, **about, **ending}
        trace = {"traceEvents": self._events, "displayTimeUnit": "ms", "otherData": other}
        final = path(directory, self.host)
        try:
            text = json.dumps(trace, allow_nan=False)
            os.makedirs(directory, exist_ok=True)
            with open(final + ".tmp", "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(final + ".tmp", final)
        except (OSError, ValueError, TypeError):
            with contextlib.suppress(OSError):
                os.unlink(final + ".tmp")

    def _span(self, kind: str, row: int, name: str, start: float, end: float, **args: Any) -> None:
        self._add("X", kind, row, name, start, dur=round((end - start) * 1e6), args=args)

    def _mark(self, kind: str, row: int, name: str, when: float, /, **args: Any) -> None:
        scope = "p" if row == self._job_row else "t"
        self._add("i", kind, row, name, when, s=scope, args=args)

    def _count(self, name: str, unit: str, values: List[Any], end: float) -> None:
        for when, value in [*values, (end, 0.0)]:
            self._add("C", "usage", self._job_row, name, when, args={unit: round(value, 2)})

    def _name(self, row: int, name: str) -> None:
        self._rows += 1
        self._describe("thread_name", row, name=name)
        self._describe("thread_sort_index", row, sort_index=self._rows)

    def _describe(self, what: str, row: int, **args: Any) -> None:
        self._events.append(
            {"ph": "M", "pid": self._id, "tid": row, "name": what, "ts": 0, "args": args}
        )

    def _add(self, ph: str, kind: str, row: int, name: str, when: float, **more: Any) -> None:
        stamp = round((when + self._offset) * 1e6)
        event = {"ph": ph, "cat": kind, "pid": self._id, "tid": row, "name": name, "ts": stamp}
        self._events.append({**event, **more})


def path(directory: str, host: str) -> str:
    """Return the path of a host's timeline in a directory."""
    return os.path.join(directory, f"timeline-{host}.json")
