"""Reads a ``Job`` from the environment and SageMaker's configuration files.

An ``SM_*`` variable takes precedence over a file, and a file over a default. Other variables have
the precedence of sagemaker-training 5.1.4 (``environment.Environment.__init__``,
``trainer.train``).
"""

import os
import re
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from sagemaker_mxnet_toolkit.container import count_cpus, count_gpus, visible_cpus
from sagemaker_mxnet_toolkit.settings.sources import Faults, Found, Sources
from sagemaker_mxnet_toolkit.settings.validation import (
    LOG_LEVEL,
    Validator,
    integer,
    matching,
    string,
)
from sagemaker_mxnet_training.config import (
    directories,
    environment,
    hosts,
    hyperparameters,
    job_settings,
    mpi_options,
    user_code,
)
from sagemaker_mxnet_training.config.hyperparameters import Hyperparameters
from sagemaker_mxnet_training.config.job import Job

ROOT = "/opt/ml"
"""The default base directory; ``SAGEMAKER_BASE_DIR`` sets another one."""

_REGION = matching(
    re.compile(r"(?![0-9]+\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"),
    "an AWS region",
    "the name of an AWS region, such as eu-west-1",
)
_S3 = matching(re.compile(r"s3://[^/\s]+(/.*)?"), "an S3 URL", "s3://bucket/prefix")
_JOB_NAME = string("the name of a training job")
_GPUS = integer(0, 1024, "a number of GPUs")
_CPUS = integer(1, 65536, "a number of CPUs")
_INFO = 20

# JSON variables that are only passed to the user's script.
_PASSED_THROUGH = {
    "SM_USER_ARGS": list,
    "SM_TRAINING_ENV": dict,
    "SM_INSTANCE_GROUPS": list,
    "SM_INSTANCE_GROUPS_DICT": dict,
    "SM_CURRENT_INSTANCE_GROUP_HOSTS": list,
    "SM_DISTRIBUTION_INSTANCE_GROUPS": list,
    "SM_TOPOLOGY": list,
    "SM_IS_HETERO": bool,
}

# Linux's MAX_ARG_STRLEN: maximum size of an argument or variable, with its NUL (execve(2)).
_LONGEST_VARIABLE = 32 * 4096


class Resolution(NamedTuple):
    """A job and the faults of its configuration.

    Attributes:
        job: the job, with defaults for invalid values.
        faults: a message for each fault; empty if the job can be run.
    """

    job: Job
    faults: Tuple[str, ...]


def resolve(environ: Mapping[str, str], root: str = ROOT) -> Resolution:
    """Return the job that the environment and the files in its base directory describe.

    This reads the three configuration files and checks directories; it creates nothing.

    Args:
        environ: the environment of the entrypoint.
        root: the default base directory.
    """
    base = base_directory(environ, root)
    input_dir = os.path.join(base, "input")
    check = Validator(Faults())
    check.faults.keep_secret(environ)
    sources = Sources(environ, os.path.join(input_dir, "config"), check.faults)
    resources = sources.document("SM_RESOURCE_CONFIG", hosts.FILE)
    inputs = sources.document("SM_INPUT_DATA_CONFIG", directories.CHANNELS_FILE)
    parameters = hyperparameters.read(sources, check)
    for name, kind in _PASSED_THROUGH.items():
        sources.json(name, kind)
    hosts.check_resources(resources, check)
    current_host, all_hosts = hosts.read(sources, resources, check)
    entry_point, module_dir = user_code.read(sources, parameters, base, check)
    written = directories.read_outputs(sources, base, check)
    groups = parameters.parameter("distribution_instance_groups")
    distributed = hosts.distributed(all_hosts, groups, resources, check)
    num_gpus = check.value(sources.variable("SM_NUM_GPUS"), _GPUS, count_gpus())
    job = Job(
        base_dir=base,
        current_host=current_host,
        hosts=all_hosts,
        distributed_hosts=distributed,
        network_interface=hosts.interface(sources, resources, check),
        hyperparameters=_values(parameters.user),
        framework_parameters=parameters.framework(),
        channels=directories.read_channels(sources, inputs, os.path.join(input_dir, "data"), check),
        resource_config=_values(resources),
        input_data_config=_values(inputs),
        entry_point=entry_point,
        module_dir=module_dir,
        code_dir=os.path.join(base, "code"),
        model_dir=written.model,
        input_dir=input_dir,
        input_config_dir=os.path.join(input_dir, "config"),
        output_dir=written.output,
        output_data_dir=written.data,
        output_intermediate_dir=written.intermediate,
        checkpoint_dir=written.checkpoints,
        num_gpus=num_gpus,
        num_cpus=check.value(sources.variable("SM_NUM_CPUS"), _CPUS, count_cpus()),
        visible_cpus=visible_cpus(),
        log_level=_log_level(sources, parameters, check),
        parameter_server=parameters.flag("parameter_server_enabled", check),
        horovod=mpi_options.read(parameters, len(distributed), num_gpus, environ, check),
        s3_output=check.value(parameters.parameter("s3_output"), _S3, "") or None,
        region=_region(sources, parameters, check),
        job_name=_job_name(sources, parameters, check),
        settings=job_settings.read(sources, parameters, check),
        environ=dict(environ),
    )
    return Resolution(job, check.faults.sentences() or _too_long(job))


def base_directory(environ: Mapping[str, str], root: str = ROOT) -> str:
    """Return the base directory, by default ``/opt/ml``."""
    return os.path.abspath(environ.get("SAGEMAKER_BASE_DIR") or root)


def _values(found: Mapping[str, Found]) -> Dict[str, Any]:
    return {name: item.value for name, item in found.items()}


def _log_level(sources: Sources, parameters: Hyperparameters, check: Validator) -> int:
    found = (
        sources.variable("SM_LOG_LEVEL")
        or parameters.parameter("container_log_level")
        or sources.variable("SAGEMAKER_CONTAINER_LOG_LEVEL")
    )
    return check.value(found, LOG_LEVEL, _INFO)


def _region(sources: Sources, parameters: Hyperparameters, check: Validator) -> Optional[str]:
    found = (
        sources.variable("AWS_REGION")
        or parameters.parameter("region")
        or sources.variable("SAGEMAKER_REGION")
        or sources.variable("AWS_DEFAULT_REGION")
    )
    return check.value(found, _REGION, "") or None


def _job_name(sources: Sources, parameters: Hyperparameters, check: Validator) -> str:
    found = (
        sources.variable("TRAINING_JOB_NAME")
        or parameters.parameter("job_name")
        or sources.variable("SAGEMAKER_JOB_NAME")
    )
    return check.value(found, _JOB_NAME, "")


def _too_long(job: Job) -> Tuple[str, ...]:
    """Return a fault if a variable is too long for the kernel.

    SageMaker's limit for all hyperparameters together is larger.
    """
    sizes = {
        name: len(os.fsencode(f"{name}={value}")) + 1
        for name, value in environment.script_environment(job).items()
    }
    largest = max(sizes, key=lambda name: sizes[name])
    if sizes[largest] <= _LONGEST_VARIABLE:
        return ()
    return (
        f"{largest}: this variable of the user's program would have {sizes[largest]:,} bytes; "
        f"expected at most {_LONGEST_VARIABLE:,} bytes, the kernel's limit: pass long values to "
        "the program in a file of an input channel, not as hyperparameters",
    )
