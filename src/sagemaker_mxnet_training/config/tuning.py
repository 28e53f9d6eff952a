"""Environment variables that tune the use of CPUs and memory by MXNet's processes.

Variables that the user has set take precedence. docs/performance.md has measurements.
"""

from typing import Dict

from sagemaker_mxnet_toolkit.failure import Role

_NEVER = str(2**40)
"""A threshold in bytes that is never reached."""


def variables(
    role: Role, cpus: int, visible: int, gpus: int, sharing: bool, workers: int = 1
) -> Dict[str, str]:
    """Return the variables of one process of MXNet.

    Args:
        role: the role of the process.
        cpus: number of CPUs that the host may use.
        visible: number of CPUs that its processes see, at least as many.
        gpus: number of GPUs of the host.
        sharing: whether several processes of MXNet share the host.
        workers: number of workers on the host.
    """
    gpus = gpus if role is Role.WORKER else 0
    return {**_threads(cpus, visible, gpus, sharing, workers), **_memory(role)}


def _threads(cpus: int, visible: int, gpus: int, sharing: bool, workers: int) -> Dict[str, str]:
    """Return the number of threads, and how they wait.

    MXNet 1.9.1 uses half of the visible CPUs for OpenMP, one per core (``engine/openmp.cc``). It
    ignores a container's CPU quota, and other processes on the host.
    """
    settings = {}
    if cpus < visible or workers > 1:
        settings["OMP_NUM_THREADS"] = str(max(1, min(cpus, visible // 2) // workers))
    if sharing or cpus < visible:
        # A spinning thread would use up the quota, or a CPU that another process needs.
        settings["OMP_WAIT_POLICY"] = "PASSIVE"
    if gpus > 1 and cpus < 4:
        # Threads that add up the gradients of several GPUs; MXNet's default is 4.
        settings["MXNET_KVSTORE_REDUCTION_NTHREADS"] = str(cpus)
    return settings


def _memory(role: Role) -> Dict[str, str]:
    """Return the settings of the C library's allocator (glibc).

    By default it maps each block above 32 MiB and unmaps it when it is freed (mallopt(3),
    ``M_MMAP_THRESHOLD``), and the kernel clears each page on first use. A server needs the same
    large buffers for each push and pull, so it keeps them. It uses one arena, since the heaps of
    other arenas are limited to 64 MiB and larger blocks would be mapped (glibc's
    ``malloc/arena.c``, ``HEAP_MAX_SIZE``). A worker keeps unmapping, since a script may need its
    memory for other things later. Both use huge pages, which cause one page fault per 2 MiB instead
    of 4 KiB (``glibc.malloc.hugetlb``, glibc 2.35 and later, if transparent huge pages are set to
    ``madvise``).
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
