"""The CPUs and GPUs that a container may use, which may be fewer than the machine has."""

import math
import os
import re

from sagemaker_mxnet_toolkit.container import cgroup


def visible_cpus() -> int:
    """Return how many CPUs this process sees: those of its affinity."""
    return len(os.sched_getaffinity(0))


def count_cpus(root: str = cgroup.ROOT, membership: str = cgroup.MEMBERSHIP) -> int:
    """Return how many CPUs this process may use: by its affinity and its control group's quota.

    A quota of 1.5 CPUs counts as two: both can be used, for part of the time.
    """
    available = visible_cpus()
    quota = cgroup.cpu_quota(root, membership)
    return available if quota is None else max(1, min(available, math.ceil(quota)))


def count_gpus(devices: str = "/dev") -> int:
    """Return how many NVIDIA GPUs this container can see: their device files.

    ``nvidia-smi --list-gpus`` gives the same number, after a second or more.
    """
    try:
        return sum(bool(re.fullmatch(r"nvidia[0-9]+", name)) for name in os.listdir(devices))
    except OSError:
        return 0
