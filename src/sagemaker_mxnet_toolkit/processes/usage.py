"""CPU and memory of a host's processes over time, sampled at a bounded cost.

One walk over the process table serves the timeline and the check whether a worker makes progress.
"""

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Collection, Dict, List, Mapping, NamedTuple, Tuple

if TYPE_CHECKING:
    import psutil

PERIOD = 1.0
"""Seconds between two samples, at the least."""

MAX_SHARE = 0.004
"""Share of one core that sampling may cost."""

POINTS = 1000
"""Points that a ``Track`` keeps, an even number: about as many as a screen is wide."""


_SHORTEST = 0.25
"""Seconds over which a load means something: Linux counts CPU time in steps of 0.01 s."""


@dataclass(frozen=True)
class Usage:
    """What a process and everything below it have used.

    Attributes:
        cpu: seconds of CPU time so far, of children that have ended too.
        memory: resident bytes now. What processes share counts once for each of them: telling it
            apart (PSS) costs a hundred times as much.
        bytes: bytes passed to read(2) and write(2) so far.
    """

    cpu: float = 0.0
    memory: int = 0
    bytes: int = 0


def measure(leaders: Collection[int]) -> Mapping[int, Usage]:
    """Measure some children of this process, each with its descendants, in one walk.

    Args:
        leaders: their process ids.

    Returns:
        Usage by process id. What has ended is missing, and what cannot be read counts as nothing:
        no job fails because it cannot be measured.
    """
    import psutil  # noqa: PLC0415  (10 ms that the start of a job need not wait for)

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
            for process in tree:  # which grows meanwhile
                tree += children.get(process.pid, [])
            found[top.pid] = _total(tree)
    return found


def _total(tree: "List[psutil.Process]") -> Usage:
    import psutil  # noqa: PLC0415

    cpu, memory, passed = 0.0, 0, 0
    for process in tree:
        with contextlib.suppress(psutil.Error, OSError):
            times = process.cpu_times()
            cpu += times.user + times.system + times.children_user + times.children_system
            memory += process.memory_info().rss
            counters = process.io_counters()
            passed += counters.read_chars + counters.write_chars
    return Usage(cpu, memory, passed)


class SamplingSchedule:
    """Sets the time of the next sample, so that sampling costs less than ``MAX_SHARE`` of a core.

    Args:
        now: the time of the first sample (monotonic, seconds).
    """

    def __init__(self, now: float) -> None:
        self.due = now

    def sampled(self, cost: float, now: float) -> None:
        """Set the time of the next sample.

        Args:
            cost: seconds of CPU time that the last sample took.
            now: when it ended.
        """
        self.due = now + max(PERIOD, cost / MAX_SHARE)


class Point(NamedTuple):
    """One point of a track: when (monotonic, seconds), CPU seconds so far, resident bytes."""

    when: float
    cpu: float
    memory: int


class Track:
    """The usage of one process over its life, of bounded size however long that is.

    When it is full, every two points become one, and points come half as often from there on. The
    peak of the memory is never lost, and CPU seconds are sums, so their means stay exact.

    Args:
        started: when the process was started (monotonic, seconds).
    """

    def __init__(self, started: float) -> None:
        self.points: List[Point] = [Point(started, 0.0, 0)]
        self._spacing = _SHORTEST

    def add(self, when: float, usage: Usage) -> None:
        """Add a sample. CPU time never decreases here, though that of a lost child is missing."""
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
        """Return the load from each point to the next: when it began, and percent of one core."""
        return [
            (a.when, 100.0 * (b.cpu - a.cpu) / max(b.when - a.when, _SHORTEST))
            for a, b in zip(self.points, self.points[1:])
        ]


def _joined(first: Point, second: Point) -> Point:
    return Point(second.when, second.cpu, max(first.memory, second.memory))
