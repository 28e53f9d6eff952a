"""Horovod on a host: its ranks with their variables, its library, and the name of the machine.

Horovod 0.28.1 announces the address of the machine's name and ignores ``HOROVOD_GLOO_IFACE``
(``GlooContext::InitializeForProcessSet``). If that is a loopback address, as in Debian's
``127.0.1.1 NAME``, or the name does not resolve, every worker aborts.
"""

import glob
import importlib
import importlib.util
import json
import os
import socket
from typing import Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.failure import FailureKind, JobError
from sagemaker_mxnet_training.config.configuration import ROOT
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.control.addresses import interface_address, resolve

PRELOADED = os.path.join(ROOT, "input/config/resourceconfig.json")
"""The file from which sagemaker-training's library takes the name of the machine."""

MISSING = (
    "the job trains with Horovod (sagemaker_mpi_enabled), but Horovod for MXNet is not installed "
    "here: use an image that has it, such as the one of scripts/build-image.sh --horovod, or "
    "MXNet's parameter server (sagemaker_parameter_server_enabled)"
)

GLOO_TIMEOUT_SECONDS = 86400
"""How long Horovod waits for another rank, in ``hvd.init`` and in each operation.

The default of 30 s would end a job in which a rank downloads data before ``hvd.init``. The
supervisors detect dead, frozen and disconnected workers much sooner.
"""


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


def rank_variables(rank: Rank, host: str, address: str = "", port: int = 0) -> Dict[str, str]:
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


class HorovodError(JobError):
    """Horovod for MXNet is not installed, or other hosts cannot connect to workers of this host.

    Horovod cannot be a requirement, since pip cannot build it.
    """

    kind = FailureKind.CONFIGURATION


def library() -> str:
    """Return the path of Horovod's library for MXNet; an empty string if there is none.

    Neither Horovod nor MXNet is imported.
    """
    importlib.invalidate_caches()  # the job's requirements may have installed it
    spec = importlib.util.find_spec("horovod")
    for directory in (spec and spec.submodule_search_locations) or ():
        found = glob.glob(os.path.join(glob.escape(directory), "mxnet", "mpi_lib*.so"))
        if found:
            return found[0]
    return ""


def prepare(job: Job) -> Mapping[str, str]:
    """Return the variables that Horovod's workers need on this host.

    This resolves host names, which may take a while.

    Raises:
        HorovodError: Horovod is not installed, or the host's name does not resolve to an address
            that other hosts can reach.
    """
    assert job.horovod is not None
    if not library():
        raise HorovodError(MISSING)
    variables = _host_name_variables(job) if job.ranks > 1 else {}
    environ = {**job.environ, **job.horovod.options.variables}
    on_network = interface_address(job.network_interface) is not None
    if job.num_gpus and on_network and "NCCL_SOCKET_IFNAME" not in environ:
        variables["NCCL_SOCKET_IFNAME"] = job.network_interface
    return variables


def _host_name_variables(job: Job) -> Dict[str, str]:
    """Return variables that give the machine a name which other hosts can resolve."""
    name = socket.gethostname()
    address = _resolved(name)
    if _usable(address, job):
        return {}
    shim = _sagemaker_shim()
    if shim and _usable(_resolved(_configured_name()), job):
        before = job.environ.get("LD_PRELOAD")
        return {"LD_PRELOAD": f"{shim}:{before}" if before else shim}
    problem = (
        f"resolves to {address}, which the other hosts cannot reach"
        if address
        else "does not resolve"
    )
    raise HorovodError(
        f"the name of this machine, {name}, {problem}; Horovod announces the address that this "
        f"name resolves to: add a line with the address and {name} to /etc/hosts (docker run "
        "--add-host), or give the container a name that the network resolves (docker run "
        "--hostname)"
    )


def _usable(address: Optional[str], job: Job) -> bool:
    if address is None or not address.startswith("127."):
        return address is not None
    known = job.settings.host_addresses
    others = (host for host in job.distributed_hosts if host != job.current_host)
    return all((known.get(host) or _resolved(host) or "").startswith("127.") for host in others)


def _resolved(name: str) -> Optional[str]:
    try:
        return resolve(name, {})
    except OSError:
        return None


def _configured_name() -> str:
    try:
        with open(PRELOADED, encoding="utf-8") as file:
            return str(json.load(file)["current_host"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _sagemaker_shim() -> str:
    """Return the path of sagemaker-training's library whose gethostname(2) reads ``PRELOADED``."""
    spec = importlib.util.find_spec("gethostname")
    return (spec and spec.origin) or ""
