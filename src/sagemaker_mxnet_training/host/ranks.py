"""Horovod's ranks: the workers of each host and their environment variables."""

import re
from typing import Dict, NamedTuple, Sequence, Tuple

GLOO_TIMEOUT_SECONDS = 86400
"""How long Horovod waits for another rank, in ``hvd.init`` and in each operation.

The default of 30 s would end a job in which a rank downloads data before ``hvd.init``. The
supervisors detect dead, frozen and disconnected workers much sooner.
"""


# Errors of Horovod 0.28.1 and Gloo after another worker has died. MXNet removes the name of Gloo's
# source file from them.
_LOST_PEER = re.compile(
    r"Horovod has been shut down|gloo::|/gloo/transport/|"
    r"Connection (?:closed|reset) by peer|Broken pipe|(?:Read|Write) (?:error|timeout) |"
    r"Socket (?:unexpectedly )?closed |Timed out waiting |caused pair closure"
)


def names_lost_peer(text: str) -> bool:
    """Return whether a worker's output shows that it failed because another worker had died."""
    return _LOST_PEER.search(text) is not None


class Rank(NamedTuple):
    """One worker among all of them.

    Attributes:
        rank: index of the worker in the job: ``cross_rank * local_size + local_rank``.
        size: number of workers of the job.
        local_rank: index of the worker on its host.
        local_size: number of workers on its host.
        cross_rank: index of its host.
        cross_size: number of hosts.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int

    @property
    def name(self) -> str:
        """Name of the worker in logs."""
        return f"rank-{self.rank}"


def ranks(hosts: Sequence[str], host: str, per_host: int) -> Tuple[Rank, ...]:
    """Return the workers of a host.

    Args:
        hosts: the hosts that train together, sorted.
        host: one of them.
        per_host: number of workers on each host.
    """
    index = hosts.index(host)
    size = len(hosts) * per_host
    return tuple(
        Rank(index * per_host + local, size, local, per_host, index, len(hosts))
        for local in range(per_host)
    )


def variables(rank: Rank, host: str, address: str = "", port: int = 0) -> Dict[str, str]:
    """Return the environment variables of a worker: Horovod's, and Open MPI's for scripts.

    Args:
        rank: the worker's rank.
        host: the name of its host; Horovod only uses it to distinguish hosts.
        address: IP address of the rendezvous; empty for a job of one worker, for which Horovod
            keeps its store in memory.
        port: TCP port of the rendezvous.
    """
    horovod = {f"HOROVOD_{name.upper()}": str(value) for name, value in rank._asdict().items()}
    if address:
        horovod["HOROVOD_GLOO_RENDEZVOUS_ADDR"] = address
        horovod["HOROVOD_GLOO_RENDEZVOUS_PORT"] = str(port)
    return {
        **horovod,
        "HOROVOD_HOSTNAME": host,
        # Horovod built with MPI would otherwise expect mpirun.
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "OMPI_COMM_WORLD_RANK": str(rank.rank),
        "OMPI_COMM_WORLD_SIZE": str(rank.size),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank.local_rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(rank.local_size),
    }
