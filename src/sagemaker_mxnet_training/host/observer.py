"""Observes the processes of a host: CPU, memory, progress, and suspension.

They are sampled at a bounded cost, for the timeline and to detect stalled workers.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Collection,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.process import Child
from sagemaker_mxnet_toolkit.processes.table import ProcessTable

if TYPE_CHECKING:
    import psutil

SAMPLE_PERIOD = 1.0
"""Minimum number of seconds between two samples."""

MAX_SHARE = 0.004
"""Maximum share of one core for sampling."""

POINTS = 1000
"""Maximum number of points of a ``Track``, about the width of a screen. It must be even."""

_SHORTEST = 0.25
"""Minimum interval in seconds for computing a load. Linux measures CPU time in steps of 0.01 s."""

FREEZE_GRACE = 2.0
"""Seconds for which a process that others depend on may be suspended (SIGSTOP)."""

PROGRESS_PERIOD = 2.0
"""Minimum interval in seconds for deciding whether a worker makes progress."""

_NEEDED = (Role.SCHEDULER, Role.SERVER, Role.RENDEZVOUS)

_BUSY_SHARE = 0.02
"""Share of one CPU above which a worker makes progress."""


@dataclass(frozen=True)
class Usage:
    """Usage of a process and its descendants.

    Attributes:
        cpu: CPU time in seconds so far, including children that have ended.
        memory: resident memory in bytes. Shared memory is counted for each process, since measuring
            it exactly (PSS) costs a hundred times as much.
        bytes: bytes read and written so far (read(2), write(2)).
    """

    cpu: float = 0.0
    memory: int = 0
    bytes: int = 0


def measure(leaders: Collection[int]) -> Mapping[int, Usage]:
    """Measure children of this process, each with its descendants.

    Args:
        leaders: their process ids.

    Returns:
        Usage by process id. Processes that have ended are missing. Errors are ignored.
    """
    import psutil  # takes 10 ms, not needed to start a job

    found: Dict[int, Usage] = {}
    with contextlib.suppress(psutil.Error, OSError, ValueError, LookupError, RuntimeError):
        children: Dict[int, List[psutil.Process]] = {}
        tops: List[psutil.Process] = []
        for process in psutil.Process().children(recursive=True):
            if process.pid in leaders:
                tops.append(process)
            with contextlib.suppress(psutil.Error):
                children.setdefault(process.ppid(), []).append(process)
        for top in tops:
            tree = [top]
            for process in tree:  # grows while it is iterated
                tree += children.get(process.pid, [])
            found[top.pid] = _total(tree)
    return found


def _total(tree: "List[psutil.Process]") -> Usage:
    import psutil

    cpu, memory, passed = 0.0, 0, 0
    for process in tree:
        with contextlib.suppress(psutil.Error, OSError):
            times = process.cpu_times()
            cpu += times.user + times.system + times.children_user + times.children_system
            memory += process.memory_info().rss
            counters = process.io_counters()
            passed += counters.read_chars + counters.write_chars
    return Usage(cpu, memory, passed)


def thread_cpu(pid: int, thread: int) -> float:
    """Return the CPU time of a thread in seconds; 0 if it has ended (proc(5))."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{pid}/task/{thread}/stat", "rb") as file:
            # The second field is a name in parentheses; it may contain any byte.
            fields = file.read().rsplit(b")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def next_sample(cost: float, now: float) -> float:
    """Return when to sample next, so that this costs less than ``MAX_SHARE`` of a core.

    Args:
        cost: CPU time of the last sample in seconds.
        now: when it ended (monotonic, seconds).
    """
    return now + max(SAMPLE_PERIOD, cost / MAX_SHARE)


class Point(NamedTuple):
    """One point of a track: time (monotonic, seconds), CPU seconds so far, resident bytes."""

    when: float
    cpu: float
    memory: int


class Track:
    """The usage of one process over time, with a bounded number of points.

    When it is full, each two points are merged, and further points are added half as often. Peaks
    of the memory and means of the CPU load are kept.

    Args:
        started: when the process was started (monotonic, seconds).
    """

    def __init__(self, started: float) -> None:
        self.points: List[Point] = [Point(started, 0.0, 0)]
        self._spacing = _SHORTEST

    def add(self, when: float, usage: Usage) -> None:
        """Add a sample. CPU time never decreases, even if that of a lost child is missing."""
        last = self.points[-1]
        point = Point(when, max(usage.cpu, last.cpu), usage.memory)
        if len(self.points) > 1 and last.when - self.points[-2].when < self._spacing:
            self.points[-1] = _joined(last, point)
            return
        self.points.append(point)
        if len(self.points) > POINTS:
            first, rest = self.points[0], self.points[1:]
            self.points = [first, *map(_joined, rest[::2], rest[1::2])]
            self._spacing = (when - first.when) / (len(self.points) - 1)

    def cpu_percent(self) -> List[Tuple[float, float]]:
        """Return the load between points: start time, and percent of one core."""
        return [
            (a.when, 100.0 * (b.cpu - a.cpu) / max(b.when - a.when, _SHORTEST))
            for a, b in zip(self.points, self.points[1:])
        ]


def _joined(first: Point, second: Point) -> Point:
    return Point(second.when, second.cpu, max(first.memory, second.memory))


class Observer:
    """Samples the processes of a host, and detects stalled and suspended ones.

    Args:
        now: the current time (monotonic, seconds).
    """

    def __init__(self, table: ProcessTable, log: Log, now: float) -> None:
        self._table = table
        self._log = log
        self.due = now + SAMPLE_PERIOD
        """When to sample next (monotonic, seconds)."""
        self._tracks: Dict[Child, Track] = {}
        self._warned: Set[Child] = set()
        self._usage: Dict[Child, Usage] = {}  # of workers, at the last check for progress
        self._polling: Dict[Child, Sequence[int]] = {}  # threads that use the CPU while idle
        self._active_at = self._judged_at = now

    def restart_progress(self, now: float) -> None:
        """Reset the time of the last progress, since the worker is about to start.

        The next sample is soon, regardless of the cost of the last one.
        """
        self._active_at = now
        self.due = min(self.due, now + SAMPLE_PERIOD)

    @contextlib.contextmanager
    def paid(self) -> Iterator[None]:
        """Charge the CPU time of the block to the sampling schedule, even if it raises."""
        before = time.thread_time()
        try:
            yield
        finally:
            # After an internal error in the block, the loop must still notify the other hosts.
            self.due = next_sample(time.thread_time() - before, time.monotonic())

    def sample(self, now: float) -> Optional[float]:
        """Sample all processes, within ``paid``.

        Returns:
            Seconds since the worker last made progress; ``None`` if it is too early to decide.
        """
        living = self._table.living()
        seen = measure({child.pid for child in living})
        for child in living:
            if child.pid in seen:
                self._tracks.setdefault(child, Track(child.started)).add(now, seen[child.pid])
        if now - self._judged_at < PROGRESS_PERIOD:
            return None
        return self._idle_time(now, seen)

    def _idle_time(self, now: float, seen: Mapping[int, Usage]) -> float:
        elapsed, self._judged_at = now - self._judged_at, now
        before, self._usage = self._usage, {}
        for child in self._table.living(Role.WORKER):
            used = self._usage[child] = self._work(child, seen.get(child.pid, Usage()))
            last = before.get(child, Usage())
            if used.cpu - last.cpu > _BUSY_SHARE * elapsed or used.bytes != last.bytes:
                self._active_at = now
        return now - self._active_at

    def ignore_threads(self, child: Child, threads: Sequence[int]) -> None:
        """Ignore the CPU time of threads of a worker that poll for work."""
        self._polling[child] = threads

    def _work(self, child: Child, used: Usage) -> Usage:
        """Return the usage without that of polling threads."""
        threads = self._polling.get(child)
        if threads is None:
            return used
        polling = sum(thread_cpu(child.pid, thread) for thread in threads)
        return Usage(max(0.0, used.cpu - polling))

    def take_track(self, child: Child) -> Optional[Track]:
        """Return and remove the samples of a child."""
        self._warned.discard(child)
        self._polling.pop(child, None)
        return self._tracks.pop(child, None)

    def frozen(self, now: float) -> List[Tuple[Child, float]]:
        """Return frozen processes that others depend on, each with the time of its suspension.

        A suspended worker is only logged, since a debugger may have suspended it. With Horovod it
        is frozen, since all other workers wait for it.
        """
        found = []
        for child in self._table.living():
            since = child.frozen_since
            if since is None:
                self._warned.discard(child)
            elif child.stopped:
                pass
            elif child.spec.role in _NEEDED or child.spec.rank is not None:
                if now - since >= FREEZE_GRACE:
                    found.append((child, since))
            elif child not in self._warned:
                self._warned.add(child)
                self._log.warning(child.spec.name, "suspended by SIGSTOP; SIGCONT resumes it")
        return found
