"""What the processes of a host do: their CPU and memory, progress, and suspended ones."""

import contextlib
import time
from typing import Dict, Iterator, List, Mapping, Optional, Set, Tuple

from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes import usage
from sagemaker_mxnet_toolkit.processes.process import Child
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_toolkit.processes.usage import SamplingSchedule, Track, Usage

FREEZE_GRACE = 2.0
"""Seconds that a scheduler or a server may be suspended (SIGSTOP) before that is a failure."""

PROGRESS_PERIOD = 2.0
"""Seconds, at the least, over which the worker makes progress or does not."""

_BUSY_SHARE = 0.02
"""Share of one CPU above which a worker counts as working rather than waiting."""


class Observer:
    """Samples the processes of a host, and notices when they do nothing.

    Args:
        table: the processes.
        log: the entrypoint's log.
        now: the present time (monotonic, seconds).
    """

    def __init__(self, table: ProcessTable, log: Log, now: float) -> None:
        self._table = table
        self._log = log
        self._schedule = SamplingSchedule(now + usage.PERIOD)
        self._tracks: Dict[Child, Track] = {}
        self._warned: Set[Child] = set()
        self._usage = Usage()
        self._active_at = self._judged_at = now

    @property
    def due(self) -> float:
        """When to sample next (monotonic, seconds)."""
        return self._schedule.due

    def restart_progress(self, now: float) -> None:
        """Take the present for the worker's last progress: it is about to start, with its servers.

        They are sampled soon, whatever the last sample of other processes cost.
        """
        self._active_at = now
        self._schedule.due = min(self._schedule.due, now + usage.PERIOD)

    @contextlib.contextmanager
    def paid(self) -> Iterator[None]:
        """Charge the CPU time of the block to the sampling schedule, also when it raises."""
        before = time.thread_time()
        try:
            yield
        finally:
            # After a defect in the block, turns of the loop must still tell the other hosts.
            self._schedule.sampled(time.thread_time() - before, time.monotonic())

    def sample(self, now: float) -> Optional[float]:
        """Sample all processes, within ``paid``.

        Returns:
            Seconds since the worker last made progress; ``None`` if it is too early to judge.
        """
        living = self._table.living()
        seen = usage.measure({child.pid for child in living})
        for child in living:
            if child.pid in seen:
                self._tracks.setdefault(child, Track(child.started)).add(now, seen[child.pid])
        if now - self._judged_at < PROGRESS_PERIOD:
            return None
        return self._judge(now, seen)

    def _judge(self, now: float, seen: Mapping[int, Usage]) -> float:
        elapsed, self._judged_at = now - self._judged_at, now
        for child in self._table.living(Role.WORKER):
            used = seen.get(child.pid, Usage())
            busy = used.cpu - self._usage.cpu > _BUSY_SHARE * elapsed
            if busy or used.bytes != self._usage.bytes:
                self._active_at = now
            self._usage = used
        return now - self._active_at

    def take_track(self, child: Child) -> Optional[Track]:
        """Return what was sampled of a child, and forget it."""
        self._warned.discard(child)
        return self._tracks.pop(child, None)

    def frozen(self, now: float) -> List[Tuple[Child, float]]:
        """Return the kvstore processes that are frozen, and since when.

        A worker that is suspended is only logged: a debugger looks the same.
        """
        found = []
        for child in self._table.living():
            since = child.frozen_since
            if since is None:
                self._warned.discard(child)
            elif child.stopped:
                pass
            elif child.spec.role in (Role.SCHEDULER, Role.SERVER):
                if now - since >= FREEZE_GRACE:
                    found.append((child, since))
            elif child not in self._warned:
                self._warned.add(child)
                self._log.warning(child.spec.name, "is stopped (SIGSTOP); SIGCONT resumes it")
        return found
