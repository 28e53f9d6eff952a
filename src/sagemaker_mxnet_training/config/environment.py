"""Environment variables and arguments of child processes.

The variables are those of sagemaker-training 5.1.4 (its ENVIRONMENT_VARIABLES document and
``Environment.to_env_vars``), so that scripts written for it run unchanged. Its ``environment`` is
not imported, since that takes 0.2 s, creates directories and sets variables.
"""

import json
import os
from typing import Any, Dict, List, Mapping

from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.settings import variables
from sagemaker_mxnet_toolkit.settings.sources import variable_text
from sagemaker_mxnet_training.config.job import Job

_GROUP = "homogeneousCluster"

# Hyperparameters with which sagemaker-training distributes over the current instance group.
_DISTRIBUTIONS = (
    "sagemaker_mpi_enabled",
    "sagemaker_distributed_dataparallel_enabled",
    "sagemaker_pytorch_ddp_enabled",
    "sagemaker_pytorch_xla_multi_worker_enabled",
    "sagemaker_multi_worker_mirrored_strategy_enabled",
    "sagemaker_torch_distributed_enabled",
)

# ps-lite 1.x would bind PORT; the others are only for entrypoints.
_REMOVED = frozenset(
    {"PORT", f"{variables.PREFIX}JOB_KEY", variables.CONTROL_FD, variables.RANK_OUTPUT}
)

_NEVER = str(2**40)
"""A threshold in bytes that is never reached."""


def base_environment(job: Job) -> Dict[str, str]:
    """Return the common environment of all child processes.

    This is the entrypoint's environment and ``script_environment``, without variables that would
    affect a child wrongly, and with this interpreter's directory first in ``PATH``.
    """
    environ = {name: text for name, text in job.environ.items() if name not in _REMOVED}
    if environ.get("PYTHONPATH"):
        # Children have other working directories.
        entries = environ["PYTHONPATH"].split(os.pathsep)
        environ["PYTHONPATH"] = os.pathsep.join(each and os.path.abspath(each) for each in entries)
    environ["PATH"] = program.search_path(environ)
    return {**environ, **script_environment(job), "PYTHONUNBUFFERED": "1"}


def script_environment(job: Job) -> Dict[str, str]:
    """Return the ``SM_*`` variables and ``SAGEMAKER_BASE_DIR``.

    A variable that is already set keeps its text if its value is the same. If not (``SM_HPS`` was
    overridden by ``SM_HP_<name>``, ``SM_HOSTS`` was not sorted, a path was relative), it gets
    the job's value. Variables that are only passed through always keep their text.
    """
    resolved = _texts(_resolved(job))
    derived = _texts(_derived(job))
    current = {name: text for name, text in job.environ.items() if name.startswith("SM_") and text}
    kept = {
        name: text
        for name, text in current.items()
        if name not in resolved or _meaning(text) == _meaning(resolved[name])
    }
    return {**derived, **resolved, **kept, "SAGEMAKER_BASE_DIR": job.base_dir}


def script_arguments(job: Job) -> List[str]:
    """Return the user's hyperparameters as the arguments of the user's program."""
    return arguments(job.hyperparameters)


def arguments(values: Mapping[str, Any]) -> List[str]:
    """Return ``--name value`` for each value, sorted by name; ``-n value`` for one-letter names.

    As in sagemaker-training 5.1.4 (``mapping.to_cmd_args``), an object becomes
    ``key=value,key=value``, ``null`` an empty string, and other values are formatted by ``str``.
    """
    words: List[str] = []
    for name in sorted(values):
        dashes = "" if not name else "-" if len(name) == 1 else "--"
        words += [dashes + name, _argument(values[name])]
    return words


def _argument(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}={item}" for name, item in sorted(value.items()))
    return "" if value is None else str(value)


def _texts(values: Mapping[str, Any]) -> Dict[str, str]:
    return {f"SM_{name}".upper(): variable_text(value) for name, value in values.items()}


def _meaning(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _resolved(job: Job) -> Dict[str, Any]:
    """Return the values that are fields of the job, by names without ``SM_``."""
    return {
        "hosts": list(job.hosts),
        "current_host": job.current_host,
        # Other libraries need a name; sagemaker-training's default is eth0.
        "network_interface_name": job.network_interface or "eth0",
        "hps": dict(job.hyperparameters),
        "user_entry_point": job.entry_point,
        "framework_params": dict(job.framework_parameters),
        "channels": sorted(job.channels),
        "log_level": job.log_level,
        "num_cpus": job.num_cpus,
        "num_gpus": job.num_gpus,
        "model_dir": job.model_dir,
        "module_dir": job.module_dir,
        "output_dir": job.output_dir,
        "output_data_dir": job.output_data_dir,
        "output_intermediate_dir": job.output_intermediate_dir,
        "checkpoint_dir": job.checkpoint_dir,
        **{f"channel_{name}": path for name, path in job.channels.items()},
        **{f"hp_{name}": value for name, value in job.hyperparameters.items()},
    }


def _derived(job: Job) -> Dict[str, Any]:
    """Return the values that are derived from the job or only passed through."""
    groups = _instance_groups(job)
    program = job.entry_point
    shared = {
        **groups,
        "resource_config": dict(job.resource_config),
        "input_data_config": dict(job.input_data_config),
        "module_name": program[:-3] if program.endswith(".py") else program,
        "framework_module": job.environ.get("SAGEMAKER_TRAINING_MODULE"),
        "input_dir": job.input_dir,
        "input_config_dir": job.input_config_dir,
        "num_neurons": 0,
    }
    topology = job.resource_config.get("topology") or []
    derived = {**shared, "user_args": script_arguments(job)}
    derived["training_env"] = _training_env(job, {**shared, "topology": topology})
    return {**derived, "topology": topology} if topology else derived


def _training_env(job: Job, shared: Mapping[str, Any]) -> Dict[str, Any]:
    """Return ``SM_TRAINING_ENV``: the properties of sagemaker-training's ``Environment``."""
    resolved = _resolved(job)
    # It has no checkpoint_dir, and other names for the rest.
    taken = {"hps", "framework_params", "channels", "checkpoint_dir"}
    distributed = shared["distribution_instance_groups"]
    groups = shared["instance_groups_dict"]
    hosts: List[str] = list(job.hosts)
    if groups:
        hosts = [host for name in groups if name in distributed for host in groups[name]["hosts"]]
    master = hosts[0] if hosts else job.leader
    model_parallel = job.environ.get("SM_HP_MP_PARAMETERS")
    return {
        **shared,
        **{
            name: value
            for name, value in resolved.items()
            if name not in taken and not name.startswith(("channel_", "hp_"))
        },
        "additional_framework_parameters": resolved["framework_params"],
        "channel_input_dirs": dict(job.channels),
        "hyperparameters": resolved["hps"],
        "job_name": job.job_name or None,
        "distribution_hosts": hosts,
        "master_hostname": master,
        "is_master": job.current_host == master,
        "is_modelparallel_enabled": model_parallel and model_parallel != "{}",
        # Launchers of libraries of other frameworks.
        "is_smddprun_installed": False,
        "is_smddpmprun_installed": False,
    }


def _instance_groups(job: Job) -> Dict[str, Any]:
    """Return the values for heterogeneous clusters, from ``resourceconfig.json``."""
    config = job.resource_config
    groups = {group["instance_group_name"]: group for group in config.get("instance_groups") or ()}
    current = config.get("current_group_name") or _GROUP
    distributed = job.framework_parameters.get("sagemaker_distribution_instance_groups")
    if distributed is None:
        named = any(job.framework_parameters.get(name) for name in _DISTRIBUTIONS)
        distributed = [current] if job.parameter_server or named else []
    return {
        "current_instance_type": config.get("current_instance_type") or "local",
        "current_instance_group": current,
        "current_instance_group_hosts": groups[current]["hosts"] if current in groups else [],
        "instance_groups": list(groups),
        "instance_groups_dict": groups,
        "distribution_instance_groups": distributed,
        "is_hetero": len(groups) > 1,
    }


def tuning(job: Job, role: Role, sharing: bool, workers: int = 1) -> Dict[str, str]:
    """Return variables that tune the use of CPUs and memory by one process of MXNet.

    Variables that the user has set take precedence. docs/performance.md has measurements.

    Args:
        job: the job.
        role: the role of the process.
        sharing: whether several processes of MXNet share the host.
        workers: number of workers on the host.
    """
    gpus = 0
    if role is Role.WORKER:
        gpus = job.num_gpus if workers == 1 else 1
    return {**_threads(job.num_cpus, job.visible_cpus, gpus, sharing, workers), **_memory(role)}


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
