"""The CPUs and GPUs that a container may use, possibly fewer than the machine has."""

import math
import os
import re

from sagemaker_mxnet_toolkit.container import cgroup


def visible_cpus() -> int:
    """Return the number of CPUs in the affinity of this process."""
    return len(os.sched_getaffinity(0))


def count_cpus(root: str = cgroup.ROOT, membership: str = cgroup.MEMBERSHIP) -> int:
    """Return the number of CPUs that this process may use, from its affinity and CPU quota.

    A quota of 1.5 CPUs counts as two.
    """
    available = visible_cpus()
    quota = cgroup.cpu_quota(root, membership)
    return available if quota is None else max(1, min(available, math.ceil(quota)))


def count_gpus(devices: str = "/dev") -> int:
    """Return the number of NVIDIA GPUs in this container, from their device files.

    ``nvidia-smi --list-gpus`` returns the same number, but takes a second or more.
    """
    try:
        return sum(bool(re.fullmatch(r"nvidia[0-9]+", name)) for name in os.listdir(devices))
    except OSError:
        return 0
