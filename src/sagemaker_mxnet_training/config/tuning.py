"""How MXNet's processes use the CPUs and the memory of their host. Pure: from numbers to variables.

All of it goes below what the user has set. docs/performance.md has what each setting is worth.
"""

from typing import Dict

from sagemaker_mxnet_toolkit.failure import Role

_NEVER = str(2**40)
"""A threshold in bytes that no heap reaches."""


def variables(role: Role, cpus: int, visible: int, gpus: int, sharing: bool) -> Dict[str, str]:
    """Return the settings of one process of MXNet.

    Args:
        role: what it is for.
        cpus: CPUs that the host may use.
        visible: CPUs that its processes see, at least as many.
        gpus: GPUs of the host.
        sharing: whether servers of the kvstore and the worker share the host.
    """
    return {**_threads(cpus, visible, gpus if role is Role.WORKER else 0, sharing), **_memory(role)}


def _threads(cpus: int, visible: int, gpus: int, sharing: bool) -> Dict[str, str]:
    """Return how many threads there are, and how they wait.

    MXNet 1.9.1 takes half of the CPUs that it sees for OpenMP, one for each core of two hardware
    threads (``engine/openmp.cc``). It sees the machine's, or those of its affinity; a container's
    quota it does not see, and that a server and a worker share a host it does not know.
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


def _memory(role: Role) -> Dict[str, str]:
    """Return how the C library's allocator (glibc) gets memory from the kernel.

    It takes every block above 32 MiB from the kernel anew, and gives it back when it is freed
    (mallopt(3), ``M_MMAP_THRESHOLD``); the kernel clears each page of it on first use. A server
    needs buffers as large as the arrays for each push and pull, always the same: it keeps them. A
    script may need its memory for something else later, so a worker gives it back as before, and
    has it in huge pages: a fault for each 2 MiB, not for each 4 KiB (``glibc.malloc.hugetlb``,
    glibc 2.35, where transparent huge pages are on request; elsewhere it means nothing).
    """
    if role is Role.SERVER:
        return {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": _NEVER}
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if role is Role.WORKER else {}
