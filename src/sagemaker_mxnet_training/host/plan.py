"""The processes that a host runs: pure functions from the job to process specifications."""

import os
import socket
from dataclasses import replace
from typing import Dict, Iterator, Mapping, Tuple

from sagemaker_mxnet_toolkit.code.preparation import EntryPointKind
from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.processes.process import ProcessSpec
from sagemaker_mxnet_toolkit.settings.variables import (
    FRESH,
    NO_CHECKPOINTS,
    RESTART_COUNT,
    RESUME,
)
from sagemaker_mxnet_training.cluster.events import Rendezvous, Start
from sagemaker_mxnet_training.config import environment
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.config.mpi_options import Horovod
from sagemaker_mxnet_training.host.horovod import GLOO_TIMEOUT_SECONDS, rank_variables, ranks

# Modules that children run. They are not imported here, to keep the supervisor small.
_FETCH = "sagemaker_mxnet_toolkit.code.fetch"
_INSTALL = "sagemaker_mxnet_toolkit.requirements.install"
_SYNC = "sagemaker_mxnet_training.roles.sync"
_KVSTORE = "sagemaker_mxnet_training.roles.kvstore_process"
_RENDEZVOUS = "sagemaker_mxnet_training.roles.rendezvous"
_BOOTSTRAP = "sagemaker_mxnet_training.roles.bootstrap"

_NOTHING: Mapping[str, str] = {}

_MODULE_DIR_SETTING = "SM_MODULE_DIR or sagemaker_submit_directory"


def fetch(job: Job) -> ProcessSpec:
    """Return the process that fetches the user's code."""
    region = ("--region", job.region) if job.region else ()
    script = os.path.realpath(os.path.join(job.module_dir, job.entry_point))
    channels = [
        word
        for path in job.channels.values()
        if not script.startswith(os.path.join(os.path.realpath(path), ""))
        for word in ("--channel", path)
    ]
    argv = program.argv(
        _FETCH,
        *("--source", job.module_dir, "--code-dir", job.code_dir),
        *("--setting", _MODULE_DIR_SETTING, *region, *channels),
    )
    return ProcessSpec(Role.FETCH, "fetch", argv, environment.base_environment(job), job.base_dir)


def install(job: Job) -> ProcessSpec:
    """Return the process that installs the user's requirements."""
    argv = program.argv(_INSTALL, "--code-dir", job.code_dir, "--entry-point", job.entry_point)
    return ProcessSpec(
        Role.INSTALL, "install", argv, environment.base_environment(job), job.code_dir
    )


def sync(job: Job) -> ProcessSpec:
    """Return the process that uploads intermediate output to S3 until its stdin is closed."""
    region = ("--region", job.region) if job.region else ()
    argv = program.argv(_SYNC, "--output", str(job.s3_output), *region)
    return ProcessSpec(
        Role.SYNC, "sync", argv, environment.base_environment(job), job.base_dir, stdin_open=True
    )


def roles(
    job: Job, kind: EntryPointKind, start: Start, extra: Mapping[str, str] = _NOTHING
) -> Tuple[ProcessSpec, ...]:
    """Return the roles of this host, in the order in which they are started.

    The first host runs the scheduler or the rendezvous, even if it does not train itself.

    Args:
        job: the job.
        kind: the kind of the entry point.
        start: the order to start them.
        extra: variables for Horovod's workers on this host.
    """
    attempt = {**_attempt_environment(start), **_checkpoints_environment(job, start)}
    connecting = _connecting(job, start, attempt)
    if not job.is_distributed or (start.rendezvous is None and job.horovod is None):
        variables = {
            **environment.tuning(job, Role.WORKER, False),
            **environment.base_environment(job),
        }
        return (*connecting, worker(job, kind, {**variables, **attempt}))
    if job.horovod is not None:
        return (*connecting, *_ranks(job, job.horovod, kind, start, {**extra, **attempt}))
    assert start.rendezvous is not None
    script = os.path.join(job.code_dir, job.entry_point)
    scripts = (script,) if kind is EntryPointKind.PYTHON_SCRIPT else ()
    specs = list(connecting)
    variables = {**_kvstore_environment(job, start.rendezvous, Role.SERVER), **attempt}
    for number in range(1, start.rendezvous.servers_per_host + 1):
        name = "server" if number == 1 else f"server-{number}"
        specs.append(_kvstore(job, Role.SERVER, name, scripts, variables))
    variables = {**_kvstore_environment(job, start.rendezvous, Role.WORKER), **attempt}
    specs.append(worker(job, kind, variables))
    return tuple(specs)


def _connecting(job: Job, start: Start, attempt: Mapping[str, str]) -> Tuple[ProcessSpec, ...]:
    """Return the scheduler or the rendezvous, if it runs on this host."""
    rendezvous = start.rendezvous
    if rendezvous is None or not job.is_leader:
        return ()
    if job.horovod is None:
        variables = {**_kvstore_environment(job, rendezvous, Role.SCHEDULER), **attempt}
        return (_kvstore(job, Role.SCHEDULER, "scheduler", (), variables),)
    allowed = ",".join(sorted({*rendezvous.peers.values(), rendezvous.address, "127.0.0.1"}))
    argv = program.argv(_RENDEZVOUS, "--fd", str(rendezvous.listener), "--allow", allowed)
    variables = environment.base_environment(job)
    return (
        ProcessSpec(
            Role.RENDEZVOUS,
            "rendezvous",
            argv,
            variables,
            job.base_dir,
            inherited=(rendezvous.listener,),
        ),
    )


def _ranks(
    job: Job, horovod: Horovod, kind: EntryPointKind, start: Start, extra: Mapping[str, str]
) -> Iterator[ProcessSpec]:
    """Yield the workers of this host with Horovod."""
    rendezvous = start.rendezvous
    address, port = ("", 0) if rendezvous is None else (rendezvous.address, rendezvous.port)
    for rank in ranks(job.distributed_hosts, job.current_host, horovod.processes_per_host):
        variables = {
            **environment.tuning(job, Role.WORKER, rank.local_size > 1, rank.local_size),
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(GLOO_TIMEOUT_SECONDS),
            **environment.base_environment(job),
            **horovod.options.variables,
            **rank_variables(rank, job.current_host, address, port),
            **extra,
        }
        spec = worker(job, kind, variables)
        files = job.settings.rank_output[2 * rank.local_rank : 2 * rank.local_rank + 2]
        output = (files[0], files[1]) if len(files) == 2 else spec.output
        single = rank.size == 1
        yield spec if single else replace(spec, name=rank.name, rank=rank.rank, output=output)


def worker(job: Job, kind: EntryPointKind, variables: Mapping[str, str]) -> ProcessSpec:
    """Return the process of the user's script, for each kind of entry point."""
    arguments = tuple(environment.script_arguments(job))
    if kind is EntryPointKind.PYTHON_SCRIPT:
        argv = program.argv(_BOOTSTRAP, "script", job.entry_point, *arguments)
    elif kind is EntryPointKind.PYTHON_PACKAGE:
        name = job.entry_point[:-3] if job.entry_point.endswith(".py") else job.entry_point
        argv = program.argv(_BOOTSTRAP, "module", name.replace("/", "."), *arguments)
    else:
        # The shell is needed for scripts without a "#!" line. It does not interpret the arguments,
        # and exec replaces it by the script.
        argv = ("/bin/sh", "-c", 'exec "$0" "$@"', f"./{job.entry_point}", *arguments)
    path = variables.get("PYTHONPATH")
    environ = {
        **variables,
        # As in sagemaker-training 5.1.4, modules next to the entry point can be imported in all
        # processes that the script starts.
        "PYTHONPATH": job.code_dir + (os.pathsep + path if path else ""),
    }
    return ProcessSpec(Role.WORKER, "worker", argv, environ, job.code_dir)


def _kvstore(
    job: Job, role: Role, name: str, script: Tuple[str, ...], variables: Mapping[str, str]
) -> ProcessSpec:
    """Return a process of the kvstore, which waits until its stdin is closed.

    It is not needed before the script has imported MXNet, and would slow down that import.
    """
    argv = program.argv(_KVSTORE, *script, wait=True)
    directory = job.code_dir if role is Role.SERVER else job.base_dir
    return ProcessSpec(role, name, argv, variables, directory, stdin_open=True)


def _kvstore_environment(job: Job, rendezvous: Rendezvous, role: Role) -> Dict[str, str]:
    """Return the environment of a kvstore process (ps-lite's documentation)."""
    workers = len(job.distributed_hosts)
    variables = {
        **environment.tuning(job, role, True),
        **environment.base_environment(job),
        "DMLC_ROLE": role.value,
        "DMLC_NUM_WORKER": str(workers),
        "DMLC_NUM_SERVER": str(workers * rendezvous.servers_per_host),
        "DMLC_PS_ROOT_URI": rendezvous.address,
        "DMLC_PS_ROOT_PORT": str(rendezvous.port),
        "DMLC_NODE_HOST": _ranked_address(job, rendezvous.own_address),
        "PS_VERBOSE": str(job.settings.ps_verbose),
    }
    if role is not Role.WORKER:
        # Only workers use GPUs; a server would allocate memory on the first one.
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def _ranked_address(job: Job, address: str) -> str:
    """Return this host's IPv4 address, formatted so that ps-lite's ranks follow the host names.

    The scheduler sorts the addresses as strings, the largest first, and numbers workers and servers
    in that order (``Van::ProcessAddNodeCommandAtScheduler`` in MXNet 1.9.1). The first host gets
    ``0x7f000001``, the second ``0x07f000001``; inet_aton(3) ignores leading zeros.
    """
    index = sum(host < job.current_host for host in job.distributed_hosts)
    number = int.from_bytes(socket.inet_aton(address), "big")
    return f"0x{'0' * index}{number:x}"


def _attempt_environment(start: Start) -> Mapping[str, str]:
    """Return variables with the number of the attempt and the checkpoint to resume from."""
    variables = {RESTART_COUNT: str(start.attempt - 1)}
    if start.resume or start.attempt > 1:
        variables[RESUME] = start.resume or FRESH
    return variables


def _checkpoints_environment(job: Job, start: Start) -> Mapping[str, str]:
    """Return a variable that disables checkpoints if the first host does not train."""
    alone = start.rendezvous is None and job.horovod is None
    if alone or job.leader in job.distributed_hosts:
        return {}
    reason = (
        f"checkpoints are written by the first host, {job.leader}, which is not in the instance "
        "groups that train (sagemaker_distribution_instance_groups): add the group of that host, "
        "or train without Checkpoint"
    )
    return {NO_CHECKPOINTS: reason}
