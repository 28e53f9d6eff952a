"""Finds failures that the container's memory limit has caused.

The kernel counts the processes that it killed for lack of memory (``cgroup.oom_kills``), but does
not say which. A script may survive such a kill, for example of a data loader's process, and fail
hours later for another reason. So the count is polled, and a kill explains only a failure that
follows soon.
"""

from typing import Callable, Optional

from sagemaker_mxnet_toolkit.container import cgroup

WINDOW = 5.0
"""Seconds after a kill within which a failure is attributed to it.

The killed process ends at once and its parent notices within milliseconds. The rest allows for
delays on a loaded machine.
"""

_PERIOD = 1.0


class OomMonitor:
    """Counts the processes that the kernel killed for lack of memory.

    Args:
        now: the current time (monotonic, seconds).
        count: returns the number of kills so far, or ``None`` if it is not known.
    """

    def __init__(self, now: float, count: Callable[[], Optional[int]] = cgroup.oom_kills) -> None:
        self._count = count
        self._kills = count()
        self._checked_at = now
        self.last_kill: Optional[float] = None
        """When the latest kill was noticed (monotonic, seconds), at most a second after it."""

    def poll(self, now: float) -> int:
        """Check the count if the last check is a second old; return the number of new kills."""
        return self.check(now) if now - self._checked_at >= _PERIOD else 0

    def check(self, now: float) -> int:
        """Check the count; return the number of kills since the last check."""
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
        """Return whether a kill explains a failure at ``when`` (monotonic, seconds)."""
        return self.last_kill is not None and when - self.last_kill <= WINDOW
