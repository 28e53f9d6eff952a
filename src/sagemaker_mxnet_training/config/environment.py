"""The variables and arguments of child processes, made from a job without side effects.

The variables are those of sagemaker-training 5.1.4 (its ENVIRONMENT_VARIABLES document and
``Environment.to_env_vars``), so that scripts written for it run unchanged. They are made here,
because importing its ``environment`` takes 0.2 s, creates directories and sets variables.
"""

import json
import os
from typing import Any, Dict, List, Mapping

from sagemaker_mxnet_toolkit.settings import variables
from sagemaker_mxnet_toolkit.settings.json_text import variable_text
from sagemaker_mxnet_training.config.job import Job

_GROUP = "homogeneousCluster"

# Those that make sagemaker-training distribute work over the current instance group.
_DISTRIBUTIONS = (
    "sagemaker_mpi_enabled",
    "sagemaker_distributed_dataparallel_enabled",
    "sagemaker_pytorch_ddp_enabled",
    "sagemaker_pytorch_xla_multi_worker_enabled",
    "sagemaker_multi_worker_mirrored_strategy_enabled",
    "sagemaker_torch_distributed_enabled",
)

# ps-lite 1.x takes a bare PORT for the port to bind; the other two are for entrypoints only.
_REMOVED = frozenset({"PORT", f"{variables.PREFIX}JOB_KEY", variables.CONTROL_FD})


def base_environment(job: Job) -> Dict[str, str]:
    """Return the environment that every child process starts from.

    It is the entrypoint's own and ``script_environment``, without variables that would mislead a
    child.
    """
    given = {name: text for name, text in job.environ.items() if name not in _REMOVED}
    if given.get("PYTHONPATH"):
        # Children have working directories of their own.
        entries = given["PYTHONPATH"].split(os.pathsep)
        given["PYTHONPATH"] = os.pathsep.join(entry and os.path.abspath(entry) for entry in entries)
    return {**given, **script_environment(job), "PYTHONUNBUFFERED": "1"}


def script_environment(job: Job) -> Dict[str, str]:
    """Return the ``SM_*`` variables and ``SAGEMAKER_BASE_DIR``.

    A variable that was set before keeps its text if that means the same. If the job's value differs
    (``SM_HPS`` was changed by an ``SM_HP_<name>``, ``SM_HOSTS`` was not sorted, a path was
    relative), the script gets the job's. Variables that the job only passes on always keep their
    text.
    """
    resolved = _texts(_resolved(job))
    derived = _texts(_derived(job))
    given = {name: text for name, text in job.environ.items() if name.startswith("SM_") and text}
    kept = {
        name: text
        for name, text in given.items()
        if name not in resolved or _meaning(text) == _meaning(resolved[name])
    }
    return {**derived, **resolved, **kept, "SAGEMAKER_BASE_DIR": job.base_dir}


def script_arguments(job: Job) -> List[str]:
    """Return the user's hyperparameters as the arguments of the user's program."""
    return arguments(job.hyperparameters)


def arguments(values: Mapping[str, Any]) -> List[str]:
    """Return ``--name value`` for each value, sorted by name, one-letter names as ``-n value``.

    The form is that of sagemaker-training 5.1.4 (``mapping.to_cmd_args``): an object becomes
    ``key=value,key=value``, ``null`` an empty text, anything else what ``str`` makes of it.
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
        # Scripts that hand it to other libraries need a name; sagemaker-training's is eth0.
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
        **{f"channel_{name}": path for name, path in job.channels.items()},
        **{f"hp_{name}": value for name, value in job.hyperparameters.items()},
    }


def _derived(job: Job) -> Dict[str, Any]:
    """Return the values that are derived from the job or only passed on."""
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
    """Return what ``SM_TRAINING_ENV`` holds: the properties of their ``Environment``."""
    resolved = _resolved(job)
    taken = {"hps", "framework_params", "channels"}
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
        # Launchers of other frameworks' libraries, which this toolkit never starts.
        "is_smddprun_installed": False,
        "is_smddpmprun_installed": False,
    }


def _instance_groups(job: Job) -> Dict[str, Any]:
    """Return what ``resourceconfig.json`` says about heterogeneous clusters."""
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
