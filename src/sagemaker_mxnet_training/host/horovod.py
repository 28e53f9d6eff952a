"""Horovod's requirements on a host: its library, and a host name that other hosts can reach.

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
from typing import Dict, Mapping, Optional

from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import FailureKind
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
"""Message of ``MissingHorovodError``."""


class MissingHorovodError(JobError):
    """Horovod for MXNet is not installed. It cannot be a requirement, as pip cannot build it."""

    kind = FailureKind.CONFIGURATION


class HostNameError(JobError):
    """The workers of other hosts cannot connect to those of this host."""

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
        MissingHorovodError: Horovod is not installed.
        HostNameError: the host's name does not resolve to an address that other hosts can reach.
    """
    assert job.horovod is not None
    if not library():
        raise MissingHorovodError(MISSING)
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
    raise HostNameError(
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
