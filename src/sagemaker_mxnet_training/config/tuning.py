"""Variables that tune how MXNet's processes use the CPUs and the memory of their host.

Variables that the user has set take precedence. docs/performance.md has measurements of each.
"""

from typing import Dict

from sagemaker_mxnet_toolkit.failure import Role

_NEVER = str(2**40)
"""A threshold, in bytes, that no heap reaches."""


def variables(role: Role, cpus: int, visible: int, gpus: int, sharing: bool) -> Dict[str, str]:
    """Return the variables of one process of MXNet.

    Args:
        role: of the process.
        cpus: CPUs that the host may use.
        visible: CPUs that its processes see, at least as many.
        gpus: GPUs of the host.
        sharing: whether kvstore servers and the worker share the host.
    """
    return {**_threads(cpus, visible, gpus if role is Role.WORKER else 0, sharing), **_memory(role)}


def _threads(cpus: int, visible: int, gpus: int, sharing: bool) -> Dict[str, str]:
    """Return how many threads there are, and how they wait.

    MXNet 1.9.1 uses half of the CPUs that it sees for OpenMP, one for each core of two hardware
    threads (``engine/openmp.cc``). It sees the CPUs of the machine or of its affinity; it knows
    neither a container's quota nor that a server and a worker share the host.
    """
    settings = {}
    if cpus < visible:
        settings["OMP_NUM_THREADS"] = str(max(1, min(cpus, visible // 2)))
    if sharing or cpus < visible:
        # A thread that spins while it waits uses up the quota, or a CPU that another process needs.
        settings["OMP_WAIT_POLICY"] = "PASSIVE"
    if gpus > 1 and cpus < 4:
        # Threads that add up the gradients of several GPUs; MXNet's default is 4.
        settings["MXNET_KVSTORE_REDUCTION_NTHREADS"] = str(cpus)
    return settings


def _memory(role: Role) -> Dict[str, str]:
    """Return how the C library's allocator (glibc) gets memory from the kernel.

    It maps every block above 32 MiB anew, and unmaps it when it is freed (mallopt(3),
    ``M_MMAP_THRESHOLD``); the kernel clears each page on first use. A server needs buffers as large
    as the arrays for each push and pull, always the same ones: it keeps them. It keeps them in one
    arena, since the heaps of the arenas that further threads get hold 64 MiB at most, and a larger
    block is mapped all the same (glibc's ``malloc/arena.c``, ``HEAP_MAX_SIZE``). A script may need
    its memory for something else later, so a worker goes on unmapping. Both use huge pages: one
    page fault for each 2 MiB, not for each 4 KiB (``glibc.malloc.hugetlb``, glibc 2.35 and later,
    where transparent huge pages are on request; elsewhere it has no effect).
    """
    huge_pages = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    if role is Role.SERVER:
        return {
            **huge_pages,
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": _NEVER,
        }
    return huge_pages if role is Role.WORKER else {}
