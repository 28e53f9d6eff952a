"""Records the timeline of one host, in the Chrome trace event format.

The file can be opened in Perfetto and ``chrome://tracing``, together with the output of MXNet's
profiler. The format is Google's "Trace Event Format": complete events (``X``) with a start and a
duration, instants (``i``), counters (``C``), and metadata (``M``) with the names of rows; times are
microseconds. A host is a process in the trace, and a process of the job is a thread.

``cat`` is the kind of an event: ``phase``, ``process``, ``usage``, ``signal``, ``failure``,
``stop``, ``checkpoint``, ``restart``, ``resume`` or ``verdict``. ``otherData`` has the host and the
outcome of the job.
"""

import contextlib
import enum
import json
import os
import time
import zlib
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.atomic_files import write_text
from sagemaker_mxnet_toolkit.failure import Failure, Role, signal_name
from sagemaker_mxnet_training import __version__

if TYPE_CHECKING:
    from sagemaker_mxnet_training.cluster.events import Verdict
    from sagemaker_mxnet_training.host.observer import Track

PROGRAM = "sagemaker-mxnet-training"
"""Value of ``otherData.program``, which identifies the file."""

CPU = "% of a core"
"""Key of the value of a CPU counter, which is named ``<process> CPU``."""

MEMORY = "MB"
"""Key of the value of a memory counter, in 10**6 bytes, which is named ``<process> memory``."""


class HostPhase(enum.Enum):
    """The phase of a host. The values are the names in timelines, reports and summaries."""

    RESOLVE = "resolve"
    """Reads and checks the configuration."""
    FETCH = "fetch"
    """Fetches the user's code."""
    INSTALL = "install"
    """Installs the user's requirements."""
    JOIN = "join"
    """Waits for the other hosts."""
    ROLES = "roles"
    """Starts the kvstore processes and the worker."""
    FIRST_STEP = "first step"
    """Runs the script until its first step. Part of ``TRAIN`` if no server reports steps."""
    TRAIN = "train"
    """Runs the script."""
    CLEAR = "clear"
    """Stops the processes of a failed attempt before a restart."""
    HOLD = "hold"
    """Waits for scripts on other hosts, after its own has finished."""
    DRAIN = "drain"
    """Waits for scheduler and servers to exit, after all scripts have finished."""
    END = "end"
    """Stops remaining processes, after the outcome is known."""


class Timeline:
    """Records phases, processes and instants of one host.

    Args:
        host: name of the host.
        clock: the monotonic clock.
        wall_clock: the wall clock, called once.
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
        """The current phase."""
        # Hosts share the wall clock, but intervals are measured by the monotonic clock.
        self._offset = wall_clock() - clock()
        # The entrypoint is process 1 in all containers, so hosts need other ids.
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
        """Start a phase, which ends the previous one; ``None`` only ends it.

        Args:
            phase: the new phase.
            since: when it started (monotonic, seconds); now by default.
            ended_as: replaces the previous phase, if it is only known at its end.
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
        """Record a process from its start until now, with its signals and usage.

        Args:
            pid: its process id, and its row.
            name: its name, unique on this host.
            role: its role.
            started: when it was started (monotonic, seconds).
            status: its exit status, in the shell's convention; ``None`` if it is running.
            signals: time (monotonic, seconds) and number of each signal that it was sent.
            track: its CPU and memory, if they were sampled.
        """
        now = self._clock()
        self._name(pid, name)
        args = {"role": role.value, "exit status": status}
        self._span("process", pid, name, started, now, **args)
        for when, number in signals:
            self._mark("signal", pid, signal_name(number), when, detail="sent")
        if track is not None:
            self._count(f"{name} CPU", CPU, track.cpu_percent(), now)
            megabytes = [(point.when, point.memory / 1e6) for point in track.points[1:]]
            self._count(f"{name} memory", MEMORY, megabytes, now)

    def instant(self, kind: str, name: str, detail: str = "", when: Optional[float] = None) -> None:
        """Record an instant, such as a signal, on the job's row.

        Args:
            kind: the kind of the event.
            name: its name.
            detail: additional text.
            when: when it happened (monotonic, seconds); now by default.
        """
        stamp = self._clock() if when is None else when
        self._mark(kind, self._job_row, name, stamp, detail=detail)

    def failure(self, failure: Failure, when: float, pid: Optional[int] = None) -> None:
        """Record a failure on this host, on the job's row and on that of the process.

        Args:
            failure: the failure, without secrets.
            when: when it happened (monotonic, seconds).
            pid: the process that failed, if it is on this host.
        """
        for row in (self._job_row, *([] if pid is None else [pid])):
            self._mark("failure", row, "failure", when, **failure.to_json())

    def write(
        self, directory: str, verdict: "Optional[Verdict]" = None, about: Mapping[str, Any] = {}
    ) -> None:
        """Write ``timeline-<host>.json`` atomically. Errors such as a full disk are ignored.

        Args:
            directory: the directory, created if necessary.
            verdict: how the job ended, without secrets.
            about: other entries of ``otherData``.
        """
        ending = {} if verdict is None else verdict.to_json()
        other = {"program": PROGRAM, "version": __version__, "host": self.host, **about, **ending}
        trace = {"traceEvents": self._events, "displayTimeUnit": "ms", "otherData": other}
        with contextlib.suppress(OSError, ValueError, TypeError):
            text = json.dumps(trace, allow_nan=False)
            os.makedirs(directory, exist_ok=True)
            write_text(path(directory, self.host), text, flush=False)

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
