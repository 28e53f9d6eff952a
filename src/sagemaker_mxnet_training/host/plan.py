"""Which processes a host runs: pure functions from the job to process specifications."""

import os
from typing import Dict, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.code.entry_point import EntryPointKind
from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.processes.process import ProcessSpec
from sagemaker_mxnet_toolkit.settings.variables import (
    FRESH,
    NO_CHECKPOINTS,
    RESTART_COUNT,
    RESUME,
)
from sagemaker_mxnet_training.cluster.coordination import Rendezvous, Start
from sagemaker_mxnet_training.config import environment, tuning
from sagemaker_mxnet_training.config.job import Job

# Programs that children run, by name: the supervisor imports little of what they need.
_FETCH = "sagemaker_mxnet_toolkit.code.fetch"
_INSTALL = "sagemaker_mxnet_toolkit.requirements.install"
_SYNC = "sagemaker_mxnet_training.roles.sync"
_KVSTORE = "sagemaker_mxnet_training.roles.kvstore"
_STANDBY = "sagemaker_mxnet_training.roles.standby"
_BOOTSTRAP = "sagemaker_mxnet_training.roles.bootstrap"

_MODULE_DIR_SETTING = "SM_MODULE_DIR or sagemaker_submit_directory"


def fetch(job: Job) -> ProcessSpec:
    """Return the process that brings the user's code into the code directory."""
    region = ("--region", job.region) if job.region else ()
    argv = program.argv(
        _FETCH,
        *("--source", job.module_dir, "--code-dir", job.code_dir),
        *("--setting", _MODULE_DIR_SETTING, *region),
    )
    return ProcessSpec(Role.FETCH, "fetch", argv, environment.base_environment(job), job.base_dir)


def install(job: Job) -> ProcessSpec:
    """Return the process that installs what the user's code requires."""
    argv = program.argv(_INSTALL, "--code-dir", job.code_dir, "--entry-point", job.entry_point)
    return ProcessSpec(
        Role.INSTALL, "install", argv, environment.base_environment(job), job.code_dir
    )


def sync(job: Job) -> ProcessSpec:
    """Return the process that copies intermediate output to S3 until its stdin is closed."""
    region = ("--region", job.region) if job.region else ()
    argv = program.argv(_SYNC, "--output", str(job.s3_output), *region)
    return ProcessSpec(
        Role.SYNC, "sync", argv, environment.base_environment(job), job.base_dir, stdin_open=True
    )


def roles(job: Job, kind: EntryPointKind, start: Start) -> Tuple[ProcessSpec, ...]:
    """Return the kvstore processes of this host, and its worker, in the order to start them.

    The scheduler is the first host's, which may itself be none of those that use the kvstore.

    Args:
        job: the job.
        kind: what the entry point is, once the code is there.
        start: the order to start them.
    """
    rendezvous = start.rendezvous
    attempt = {**_attempt_environment(start), **_checkpoints_environment(job, rendezvous)}
    specs = []
    script = os.path.join(job.code_dir, job.entry_point)
    scripts = (script,) if kind is EntryPointKind.PYTHON_SCRIPT else ()
    if rendezvous is not None and job.is_leader:
        variables = {**_kvstore_environment(job, rendezvous, Role.SCHEDULER), **attempt}
        specs.append(_kvstore(job, Role.SCHEDULER, "scheduler", (), variables))
    if rendezvous is None or job.current_host not in job.kvstore_hosts:
        variables = {**_tuning(job, Role.WORKER, False), **environment.base_environment(job)}
        return (*specs, worker(job, kind, {**variables, **attempt}))
    variables = {**_kvstore_environment(job, rendezvous, Role.SERVER), **attempt}
    for number in range(1, rendezvous.servers_per_host + 1):
        name = "server" if number == 1 else f"server-{number}"
        specs.append(_kvstore(job, Role.SERVER, name, scripts, variables))
    variables = {**_kvstore_environment(job, rendezvous, Role.WORKER), **attempt}
    specs.append(worker(job, kind, variables))
    return tuple(specs)


def standby(spec: ProcessSpec) -> ProcessSpec:
    """Return the process that waits to become what ``spec`` is, in the next attempt."""
    mine = {RESTART_COUNT, RESUME}
    variables = {
        name: text
        for name, text in spec.environment.items()
        # With these ``import mxnet`` would run the role, and never return.
        if not name.startswith("DMLC_") and name not in mine
    }
    argv = program.argv(_STANDBY)
    name = f"{spec.name} on standby"
    return ProcessSpec(Role.STANDBY, name, argv, variables, spec.directory, stdin_open=True)


def worker(job: Job, kind: EntryPointKind, variables: Mapping[str, str]) -> ProcessSpec:
    """Return the process of the user's script, in the three forms that an entry point has."""
    arguments = tuple(environment.script_arguments(job))
    if kind is EntryPointKind.PYTHON_SCRIPT:
        argv = program.argv(_BOOTSTRAP, "script", job.entry_point, *arguments)
    elif kind is EntryPointKind.PYTHON_PACKAGE:
        name = job.entry_point[:-3] if job.entry_point.endswith(".py") else job.entry_point
        argv = program.argv(_BOOTSTRAP, "module", name.replace("/", "."), *arguments)
    else:
        # The shell is here for scripts without a "#!" line only. The arguments are no part of
        # its program, so nothing in them is interpreted, and exec leaves no shell between us
        # and the script.
        argv = ("/bin/sh", "-c", 'exec "$0" "$@"', f"./{job.entry_point}", *arguments)
    path = variables.get("PYTHONPATH")
    environ = {
        **variables,
        # As under sagemaker-training 5.1.4, modules beside the entry point can be imported from
        # every process that the script starts.
        "PYTHONPATH": job.code_dir + (os.pathsep + path if path else ""),
    }
    return ProcessSpec(Role.WORKER, "worker", argv, environ, job.code_dir)


def _kvstore(
    job: Job, role: Role, name: str, script: Tuple[str, ...], variables: Mapping[str, str]
) -> ProcessSpec:
    """Return a process of the kvstore, which waits until its stdin is closed.

    Nobody needs it before the script has imported MXNet, which takes longer than all that it does
    itself: until the script is under way, the CPUs are the script's own.
    """
    argv = program.argv(_KVSTORE, *script, wait=True)
    directory = job.code_dir if role is Role.SERVER else job.base_dir
    return ProcessSpec(role, name, argv, variables, directory, stdin_open=True)


def _kvstore_environment(job: Job, rendezvous: Rendezvous, role: Role) -> Dict[str, str]:
    """Return the environment by which ps-lite knows its place (MXNet 1.9.1, ps-lite's docs)."""
    workers = len(job.kvstore_hosts)
    variables = {
        **_tuning(job, role, True),
        **environment.base_environment(job),
        "DMLC_ROLE": role.value,
        "DMLC_NUM_WORKER": str(workers),
        "DMLC_NUM_SERVER": str(workers * rendezvous.servers_per_host),
        "DMLC_PS_ROOT_URI": rendezvous.address,
        "DMLC_PS_ROOT_PORT": str(rendezvous.port),
        "DMLC_NODE_HOST": rendezvous.own_address,
        "PS_VERBOSE": str(job.settings.ps_verbose),
    }
    if role is not Role.WORKER:
        # Only workers compute on GPUs; a server that sees them takes memory on the first.
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def _attempt_environment(start: Start) -> Mapping[str, str]:
    """Return what says which attempt this is, and what it goes on from."""
    variables = {RESTART_COUNT: str(start.attempt - 1)}
    if start.resume or start.attempt > 1:
        variables[RESUME] = start.resume or FRESH
    return variables


def _checkpoints_environment(job: Job, rendezvous: Optional[Rendezvous]) -> Mapping[str, str]:
    """Return what says that scripts can have no checkpoints, where the first host cannot write."""
    if rendezvous is None or job.leader in job.kvstore_hosts:
        return {}
    reason = (
        f"checkpoints are written by the first host, {job.leader}, and it is in none of the "
        "instance groups that the training is distributed over (sagemaker_distribution_instance_"
        "groups): distribute it over a group with that host, or train without Checkpoint"
    )
    return {NO_CHECKPOINTS: reason}


def _tuning(job: Job, role: Role, sharing: bool) -> Mapping[str, str]:
    """Return settings of MXNet for a role; what the user has set takes precedence over them."""
    return tuning.variables(role, job.num_cpus, job.visible_cpus, job.num_gpus, sharing)
