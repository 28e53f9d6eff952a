"""How many threads MXNet's processes get, and how these wait. Pure: from numbers to variables.

MXNet 1.9.1 takes half of the CPUs that it sees for OpenMP, one for each core of two hardware
threads (``engine/openmp.cc``). It sees the machine's, or those of its affinity; a container's quota
it does not see, and that a server and a worker share a host it does not know. docs/performance.md
has what each of these settings is worth.
"""

from typing import Dict


def variables(cpus: int, visible: int, gpus: int, sharing: bool) -> Dict[str, str]:
    """Return thread settings for a process of MXNet, to go below whatever the user has set.

    Args:
        cpus: CPUs that the host may use.
        visible: CPUs that its processes see, at least as many.
        gpus: GPUs that this process computes on.
        sharing: whether servers of the kvstore and the worker share the host.
    """
    settings = {}
    if cpus < visible:
        settings["OMP_NUM_THREADS"] = str(max(1, min(cpus, visible // 2)))
    if sharing or cpus < visible:
        # A thread that waits actively uses up a quota, or a CPU that another process waits for.
        settings["OMP_WAIT_POLICY"] = "PASSIVE"
    if gpus > 1 and cpus < 4:
        # Threads that add up the gradients of several GPUs; MXNet's default is 4.
        settings["MXNET_KVSTORE_REDUCTION_NTHREADS"] = str(cpus)
    return settings
