"""The process table of a host: starts, stops and reaps the children of the supervisor.

Stopping is always a signal to the process group, one deadline, SIGKILL, reap.
"""

import contextlib
import os
import selectors
import signal
import time
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Set

from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.processes import process
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec

if TYPE_CHECKING:
    import psutil

_POLL = 0.02
"""Seconds between two polls of processes that send no SIGCHLD: orphans, and leaderless groups."""


class ProcessTable:
    """Starts, stops and reaps the processes of one host, and reads their reports.

    Args:
        on_event: called with a child and each event that it reports.
        on_exit: called once for each child that has ended, after its last event.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        on_event: Callable[[Child, Mapping[str, object]], None],
        on_exit: Callable[[Child], None],
    ) -> None:
        self._selector = selector
        self._on_event = on_event
        self._on_exit = on_exit
        self._running: List[Child] = []
        self._deadlines: Dict[Child, float] = {}
        # Signals for the rest of a process group, sent when its leader has ended.
        self._group_signals: Dict[Child, int] = {}
        self._leaderless: Set[Child] = set()
        self._swept_at: Optional[float] = None
        # Children that already exist belong to the program that uses this package.
        childless = process.childless()
        self._foreign = set() if childless else {child.pid for child in process.descendants()}

    def exclude(self, pid: int) -> None:
        """Exclude a child that was started elsewhere, and its descendants, from reaping."""
        self._foreign.add(pid)

    def start(self, spec: ProcessSpec) -> Child:
        """Start a process.

        Raises:
            StartError: it cannot be started.
        """
        child = process.spawn(spec)
        self._running.append(child)
        self._selector.register(child.report, selectors.EVENT_READ, lambda mask: self._read(child))
        return child

    def living(self, *roles: Role) -> List[Child]:
        """Return the children that have not ended, optionally of some roles only."""
        return [c for c in self._running if not roles or c.spec.role in roles]

    def stop(
        self, children: List[Child], number: int, grace: float, leader_first: bool = False
    ) -> None:
        """Send children a signal, and SIGKILL after ``grace`` seconds.

        A child counts as living until its whole process group is gone, since a process that it
        started may still be writing a checkpoint. A second call sends no second signal and does
        not extend the deadline.

        Args:
            children: the children to stop.
            number: the signal.
            grace: seconds until SIGKILL.
            leader_first: send the signal to the rest of a child's process group only after the
                child itself has ended.
        """
        deadline = time.monotonic() + grace
        for child in children:
            if child not in self._deadlines:
                child.signal(number, leader_only=leader_first)
                if leader_first:
                    self._group_signals[child] = number
            self._deadlines[child] = min(deadline, self._deadlines.get(child, deadline))
            child.stopped = True

    def kill(self) -> None:
        """Kill all children."""
        self.stop(self._running, signal.SIGKILL, 0.0)
        self.poll(time.monotonic())

    def poll(self, now: float) -> float:
        """Reap children that have ended and kill overdue ones; return when to poll again."""
        process.reap_orphans({child.pid for child in self._running}, self._foreign)
        for child in list(self._running):
            deadline = self._deadlines.get(child)
            if deadline is not None and now >= deadline:
                child.signal(signal.SIGKILL)
            if child not in self._leaderless and child.poll() is None:
                continue
            if deadline is not None and now < deadline and _group_exists(child.pid):
                self._leaderless.add(child)
                number = self._group_signals.pop(child, None)
                if number is not None:
                    child.signal(number)
                continue
            self._forget(child)
        waits = [self._deadlines[child] for child in self._running if child in self._deadlines]
        if self._leaderless or any(now >= deadline for deadline in waits):
            waits.append(now + _POLL)
        return min(waits, default=now + 1.0)

    def sweep(self, now: float, grace: float) -> bool:
        """Stop orphaned descendants; return whether none is left.

        Call it again, every ``_POLL`` seconds or so, until it returns ``True``.
        """
        known = {child.pid for child in self._running}
        process.reap_orphans(known, self._foreign)
        if not known and process.childless(self._foreign):
            self._swept_at = None
            return True
        left = [
            orphan for orphan in process.descendants(self._foreign | known) if _is_alive(orphan)
        ]
        if not left:
            self._swept_at = None
            return True
        import psutil

        for orphan in left:
            with contextlib.suppress(psutil.Error):
                if self._swept_at is None:
                    orphan.terminate()
                    orphan.resume()
                elif now - self._swept_at >= grace:
                    orphan.kill()
        self._swept_at = now if self._swept_at is None else self._swept_at
        return False

    def _read(self, child: Child) -> None:
        for event in child.events():
            self._on_event(child, event)
        if child.report_closed:
            self._unregister(child)

    def _unregister(self, child: Child) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.report)

    def _forget(self, child: Child) -> None:
        self._read(child)
        self._unregister(child)
        child.stderr.finish(timeout=0.2)
        child.close()
        self._running.remove(child)
        self._leaderless.discard(child)
        self._deadlines.pop(child, None)
        self._group_signals.pop(child, None)
        self._on_exit(child)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_alive(orphan: "psutil.Process") -> bool:
    import psutil

    try:
        return bool(orphan.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
