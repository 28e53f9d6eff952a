"""How much memory is left for another model."""

import os
from typing import Optional

from sagemaker_mxnet_toolkit.container import cgroup

PROCESS_BYTES = 150 * 1024 * 1024
"""What a process with MXNet in it takes, before it has a model."""


def available() -> Optional[int]:
    """Return the bytes that new processes can have, or ``None`` where that cannot be told.

    The kernel takes its page cache back when memory is asked for, so that it counts as free.
    """
    free = _meminfo("MemAvailable")
    limit, used = cgroup.memory_limit(), cgroup.memory_usage()
    if limit is not None and used is not None:
        left = max(0, limit - used + _inactive_file())
        free = left if free is None else min(free, left)
    return free


def needed(model_dir: str, copies: int = 1) -> int:
    """Return the bytes that a model is likely to need: its files, and a copy bound for prediction.

    Args:
        model_dir: its directory.
        copies: processes that each load it.
    """
    total = 0
    for folder, _, names in os.walk(model_dir):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return copies * (2 * total + PROCESS_BYTES)


def _meminfo(key: str) -> Optional[int]:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name == key:
                    return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _inactive_file() -> int:
    for path in ("/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"):
        try:
            with open(path, encoding="ascii") as file:
                for line in file:
                    name, _, count = line.partition(" ")
                    if name in ("inactive_file", "total_inactive_file"):
                        return int(count)
        except (OSError, ValueError):
            continue
    return 0
