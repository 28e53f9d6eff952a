"""The container's CPU quota and memory limit, from the kernel's control groups.

Versions 1 and 2 are read, alone or together, in a container and on a bare host. The answer is
``None`` if there is no limit, or if it cannot be read. Sources: the kernel's documents
admin-guide/cgroup-v1/memory.rst, scheduler/sched-bwc.rst and admin-guide/cgroup-v2.rst.
"""

import os
from typing import Callable, Iterable, List, Optional

ROOT = "/sys/fs/cgroup"
"""Where control groups are mounted."""

MEMBERSHIP = "/proc/self/cgroup"
"""Which groups this process belongs to."""

# Version 1 writes "no limit" as the largest multiple of the page size, just below 2**63 bytes.
_UNLIMITED = 2**60


def cpu_quota(root: str = ROOT, membership: str = MEMBERSHIP) -> Optional[float]:
    """Return how many CPUs' worth of time this process may use, or ``None`` for no quota.

    Args:
        root: where control groups are mounted.
        membership: a file like ``/proc/self/cgroup``.
    """
    return _least(_groups("cpu", root, membership), _cpu_quota)


def memory_limit(root: str = ROOT, membership: str = MEMBERSHIP) -> Optional[int]:
    """Return the memory limit of this process' group in bytes, or ``None`` for no limit.

    Args:
        root: where control groups are mounted.
        membership: a file like ``/proc/self/cgroup``.
    """
    limit = _least(_groups("memory", root, membership), _memory_limit)
    return None if limit is None else int(limit)


def memory_usage(root: str = ROOT, membership: str = MEMBERSHIP) -> Optional[int]:
    """Return the memory, in bytes, that this process' group uses, page cache included.

    Args:
        root: where control groups are mounted.
        membership: a file like ``/proc/self/cgroup``.
    """
    for group in _groups("memory", root, membership)[:1]:
        for name in ("memory.current", "memory.usage_in_bytes"):
            text = _read(group, name)
            if text is not None:
                return _number(text)
    return None


def oom_kills(root: str = ROOT, membership: str = MEMBERSHIP) -> Optional[int]:
    """Return how many processes of this group the kernel has killed because memory ran out.

    The count only grows; compare it with an earlier one.

    Args:
        root: where control groups are mounted.
        membership: a file like ``/proc/self/cgroup``.
    """
    for group in _groups("memory", root, membership)[:1]:
        for name in ("memory.events", "memory.oom_control"):
            for line in (_read(group, name) or "").splitlines():
                key, _, count = line.partition(" ")
                if key == "oom_kill":
                    return _number(count)
    return None


def _groups(controller: str, root: str, membership: str) -> List[str]:
    """Return the directories of this process' groups, its own first, then those above it.

    In a container the path in ``/proc/self/cgroup`` may be the host's, which does not exist inside:
    the container's own group is mounted at the root there.
    """
    for line in (_read("", membership) or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            # Version 2, whose line is the last. A line of version 1 for the controller comes first.
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
    # normpath: a process outside its namespace's root has a path that begins with "/..".
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
    # "max" in version 2 and -1 in version 1 are no quota.
    return microseconds / each if microseconds and each else None


def _memory_limit(group: str) -> Optional[int]:
    text = _read(group, "memory.max") or _read(group, "memory.limit_in_bytes")
    limit = _number(text)
    return None if limit is None or limit >= _UNLIMITED else limit


def _number(text: Optional[str]) -> Optional[int]:
    """Return a non-negative whole number; ``None`` for anything else."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _read(directory: str, name: str) -> Optional[str]:
    try:
        with open(os.path.join(directory, name), encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None
