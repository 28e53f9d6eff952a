"""Observes the processes of a host: CPU, memory, progress, and suspension."""

import contextlib
import time
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes import usage
from sagemaker_mxnet_toolkit.processes.process import Child
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_toolkit.processes.usage import SamplingSchedule, Track, Usage

FREEZE_GRACE = 2.0
"""Seconds for which a process that others depend on may be suspended (SIGSTOP)."""

PROGRESS_PERIOD = 2.0
"""Minimum interval in seconds for deciding whether a worker makes progress."""

_NEEDED = (Role.SCHEDULER, Role.SERVER, Role.RENDEZVOUS)

_BUSY_SHARE = 0.02
"""Share of one CPU above which a worker makes progress."""


class Observer:
    """Samples the processes of a host, and detects stalled and suspended ones.

    Args:
        table: the processes.
        log: the entrypoint's log.
        now: the current time (monotonic, seconds).
    """

    def __init__(self, table: ProcessTable, log: Log, now: float) -> None:
        self._table = table
        self._log = log
        self._schedule = SamplingSchedule(now + usage.PERIOD)
        self._tracks: Dict[Child, Track] = {}
        self._warned: Set[Child] = set()
        self._usage: Dict[Child, Usage] = {}  # of workers, at the last check for progress
        self._polling: Dict[Child, Sequence[int]] = {}  # threads that use the CPU while idle
        self._active_at = self._judged_at = now

    @property
    def due(self) -> float:
        """When to sample next (monotonic, seconds)."""
        return self._schedule.due

    def restart_progress(self, now: float) -> None:
        """Reset the time of the last progress, since the worker is about to start.

        The next sample is soon, regardless of the cost of the last one.
        """
        self._active_at = now
        self._schedule.due = min(self._schedule.due, now + usage.PERIOD)

    @contextlib.contextmanager
    def paid(self) -> Iterator[None]:
        """Charge the CPU time of the block to the sampling schedule, even if it raises."""
        before = time.thread_time()
        try:
            yield
        finally:
            # After an internal error in the block, the loop must still notify the other hosts.
            self._schedule.sampled(time.thread_time() - before, time.monotonic())

    def sample(self, now: float) -> Optional[float]:
        """Sample all processes, within ``paid``.

        Returns:
            Seconds since the worker last made progress; ``None`` if it is too early to decide.
        """
        living = self._table.living()
        seen = usage.measure({child.pid for child in living})
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
        polling = sum(usage.thread_cpu(child.pid, thread) for thread in threads)
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
