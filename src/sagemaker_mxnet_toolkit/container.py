"""The CPUs, GPUs and memory that this container may use, possibly less than the machine has.

Quotas and limits are those of the kernel's control groups, versions 1 and 2, alone or together, in
a container and on a bare host. Functions return ``None`` if there is no limit, or if it cannot be
read. Sources: the kernel's documents admin-guide/cgroup-v1/memory.rst, scheduler/sched-bwc.rst and
admin-guide/cgroup-v2.rst.

Arguments are for tests: where control groups are mounted, and a file like ``/proc/self/cgroup``.
"""

import math
import os
import re
from typing import Callable, Iterable, List, Optional

ROOT = "/sys/fs/cgroup"
"""Where control groups are mounted."""

MEMBERSHIP = "/proc/self/cgroup"
"""Lists the control groups of this process."""

# Version 1 writes "no limit" as the largest multiple of the page size, just below 2**63 bytes.
_UNLIMITED = 2**60


def visible_cpus() -> int:
    """Return the number of CPUs in the affinity of this process."""
    return len(os.sched_getaffinity(0))


def count_cpus(root: str = ROOT, membership: str = MEMBERSHIP) -> int:
    """Return the number of CPUs that this process may use, from its affinity and CPU quota.

    A quota of 1.5 CPUs counts as two.
    """
    available = visible_cpus()
    quota = cpu_quota(root, membership)
    return available if quota is None else max(1, min(available, math.ceil(quota)))


def count_gpus(devices: str = "/dev") -> int:
    """Return the number of NVIDIA GPUs in this container, from their device files.

    ``nvidia-smi --list-gpus`` returns the same number, but takes a second or more.
    """
    try:
        return sum(bool(re.fullmatch(r"nvidia[0-9]+", name)) for name in os.listdir(devices))
    except OSError:
        return 0


def cpu_quota(root: str = ROOT, membership: str = MEMBERSHIP) -> Optional[float]:
    """Return the quota of CPU time of this process in CPUs, or ``None`` for no quota."""
    return _least(_groups("cpu", root, membership), _cpu_quota)


def memory_limit(root: str = ROOT, membership: str = MEMBERSHIP) -> Optional[int]:
    """Return the memory limit of this process' group in bytes, or ``None`` for no limit."""
    limit = _least(_groups("memory", root, membership), _memory_limit)
    return None if limit is None else int(limit)


def memory_usage(root: str = ROOT, membership: str = MEMBERSHIP) -> Optional[int]:
    """Return the memory that this process' group uses in bytes, including page cache."""
    groups = _groups("memory", root, membership)
    return _memory_usage(groups[0]) if groups else None


def memory_available(root: str = ROOT, membership: str = MEMBERSHIP) -> Optional[int]:
    """Return the memory that this process' group may still allocate in bytes, or ``None``.

    Limits of parent groups apply, too. Inactive page cache counts as free, since the kernel
    reclaims it when memory is needed.
    """
    available = _least(_groups("memory", root, membership), _memory_available)
    return None if available is None else int(available)


def oom_kills(root: str = ROOT, membership: str = MEMBERSHIP) -> Optional[int]:
    """Return how many processes of this group the kernel has killed for lack of memory.

    The count never decreases; compare it with an earlier one.
    """
    for group in _groups("memory", root, membership)[:1]:
        for name in ("memory.events", "memory.oom_control"):
            count = _counter(group, name, "oom_kill")
            if count is not None:
                return count
    return None


def process_limit_reached(root: str = ROOT, membership: str = MEMBERSHIP) -> Optional[int]:
    """Return this group's limit on processes and threads if it was ever hit, or ``None``."""
    for group in _groups("pids", root, membership)[:1]:
        if _counter(group, "pids.events", "max"):
            return _number(_read(group, "pids.max"))
    return None


def exhausted_memory(root: str = ROOT, membership: str = MEMBERSHIP) -> str:
    """Return ``the container's limit of 2048 MiB was reached``, or what was used up without one."""
    limit = memory_limit(root, membership)
    if limit is None:
        return "the machine's memory was used up"
    return f"the container's limit of {limit / 2**20:.0f} MiB was reached"


OOM_WINDOW = 5.0
"""Seconds after a kill within which a failure is attributed to it.

The killed process ends at once and its parent notices within milliseconds. The rest allows for
delays on a loaded machine.
"""

_OOM_PERIOD = 1.0


class OomMonitor:
    """Counts the processes that the kernel killed for lack of memory.

    The kernel counts them (``oom_kills``), but does not say which. A script may survive
    such a kill, for example of a data loader's process, and fail hours later for another reason. So
    the count is polled, and a kill explains only a failure that follows soon.

    Args:
        now: the current time (monotonic, seconds).
        count: returns the number of kills so far, or ``None`` if it is not known.
    """

    def __init__(self, now: float, count: Callable[[], Optional[int]] = oom_kills) -> None:
        self._count = count
        self._kills = count()
        self._checked_at = now
        self.last_kill: Optional[float] = None
        """When the latest kill was noticed (monotonic, seconds), at most a second after it."""

    def poll(self, now: float) -> int:
        """Check the count if the last check is a second old; return the number of new kills."""
        return self.check(now) if now - self._checked_at >= _OOM_PERIOD else 0

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
        return self.last_kill is not None and when - self.last_kill <= OOM_WINDOW


def _groups(controller: str, root: str, membership: str) -> List[str]:
    """Return the directories of this process' group and its parents, in this order.

    In a container, ``/proc/self/cgroup`` may have the host's path, which does not exist inside;
    the container's own group is mounted at the root there.
    """
    for line in (_read("", membership) or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            # Version 2. Its line is the last, so a version 1 line for the controller wins.
            mounts = [root]
        elif controller in controllers.split(","):
            mounts = [os.path.join(root, name) for name in (controller, controllers)]
        else:
            continue
        for mount in mounts:
            if os.path.isdir(mount):
                return _chain(mount, path)
    return []


def _chain(mount: str, path: str) -> List[str]:
    # normpath: the path starts with "/.." for a process outside the root of its namespace.
    parts = [part for part in os.path.normpath("/" + path).split("/") if part]
    if not os.path.isdir(os.path.join(mount, *parts)):
        return [mount]
    return [os.path.join(mount, *parts[:end]) for end in range(len(parts), -1, -1)]


def _least(groups: Iterable[str], limit: Callable[[str], Optional[float]]) -> Optional[float]:
    limits = [found for found in map(limit, groups) if found is not None]
    return min(limits, default=None)


def _cpu_quota(group: str) -> Optional[float]:
    text = _read(group, "cpu.max")
    if text is None:
        quota, period = _read(group, "cpu.cfs_quota_us"), _read(group, "cpu.cfs_period_us")
    else:
        quota, _, period = text.partition(" ")
    microseconds, each = _number(quota), _number(period)
    # "max" in version 2 and -1 in version 1 mean no quota.
    return microseconds / each if microseconds and each else None


def _memory_limit(group: str) -> Optional[int]:
    text = _read(group, "memory.max") or _read(group, "memory.limit_in_bytes")
    limit = _number(text)
    return None if limit is None or limit >= _UNLIMITED else limit


def _memory_usage(group: str) -> Optional[int]:
    return _number(_read(group, "memory.current") or _read(group, "memory.usage_in_bytes"))


def _memory_available(group: str) -> Optional[float]:
    limit, usage = _memory_limit(group), _memory_usage(group)
    if limit is None or usage is None:
        return None
    # The usage includes child groups; in version 1 only the "total_" counters do.
    for key in ("total_inactive_file", "inactive_file"):
        cache = _counter(group, "memory.stat", key)
        if cache is not None:
            return max(0, limit - usage + cache)
    return max(0, limit - usage)


def _counter(group: str, name: str, key: str) -> Optional[int]:
    """Return a value from a file whose lines are ``key number``."""
    for line in (_read(group, name) or "").splitlines():
        found, _, count = line.partition(" ")
        if found == key:
            return _number(count)
    return None


def _number(text: Optional[str]) -> Optional[int]:
    """Parse a non-negative integer; return ``None`` for anything else."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _read(directory: str, name: str) -> Optional[str]:
    try:
        with open(os.path.join(directory, name), encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None
