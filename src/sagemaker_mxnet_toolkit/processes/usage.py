"""CPU and memory of a host's processes over time, sampled at a bounded cost.

The samples are used for the timeline and for detecting stalled workers.
"""

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Collection, Dict, List, Mapping, NamedTuple, Tuple

if TYPE_CHECKING:
    import psutil

PERIOD = 1.0
"""Minimum number of seconds between two samples."""

MAX_SHARE = 0.004
"""Maximum share of one core for sampling."""

POINTS = 1000
"""Maximum number of points of a ``Track``, about the width of a screen. It must be even."""


_SHORTEST = 0.25
"""Minimum interval in seconds for computing a load. Linux measures CPU time in steps of 0.01 s."""


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


class SamplingSchedule:
    """Schedules samples so that they cost less than ``MAX_SHARE`` of a core.

    Args:
        now: the time of the first sample (monotonic, seconds).
    """

    def __init__(self, now: float) -> None:
        self.due = now

    def sampled(self, cost: float, now: float) -> None:
        """Schedule the next sample.

        Args:
            cost: CPU time of the last sample in seconds.
            now: when it ended (monotonic, seconds).
        """
        self.due = now + max(PERIOD, cost / MAX_SHARE)


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
