"""Which failures the container's memory limit has caused.

The kernel counts the processes that it killed because the limit was reached
(``cgroup.oom_kills``). It does not say which they were. A script may survive such a kill, of a
data loader's process for example, and fail hours later for another reason. So the count is
followed over time, and a kill explains only a failure that comes soon after it.
"""

from typing import Callable, Optional

from sagemaker_mxnet_toolkit.container import cgroup

WINDOW = 5.0
"""Seconds after a kill within which a failure counts as its consequence.

A process that is killed itself ends at once, and a parent that waits for it sees that within
milliseconds; the rest is for the report on a loaded machine.
"""

_PERIOD = 1.0


class OomMonitor:
    """Follows the number of processes that the kernel killed for want of memory.

    Args:
        now: the present time (monotonic, seconds).
        count: returns the number of kills so far, or ``None`` where the kernel does not say.
    """

    def __init__(self, now: float, count: Callable[[], Optional[int]] = cgroup.oom_kills) -> None:
        self._count = count
        self._kills = count()
        self._checked_at = now
        self.last_kill: Optional[float] = None
        """When the latest kill was noticed (monotonic, seconds), within a second of the kill."""

    def poll(self, now: float) -> int:
        """Look at the count unless that was done within the last second; return new kills."""
        return self.check(now) if now - self._checked_at >= _PERIOD else 0

    def check(self, now: float) -> int:
        """Look at the count; return the number of kills since the last look."""
        self._checked_at = now
        kills = self._count()
        if kills is None:
            return 0
        new = kills - (kills if self._kills is None else self._kills)
        self._kills = kills
        if new > 0:
            self.last_kill = now
        return max(0, new)

    def explains(self, when: float) -> bool:
        """Return whether a failure at ``when`` (monotonic, seconds) follows from a kill."""
        return self.last_kill is not None and when - self.last_kill <= WINDOW
