"""From an environment and SageMaker's configuration files to one ``Job`` and its faults.

An ``SM_*`` variable takes precedence over a file, and a file over a default. Where
sagemaker-training 5.1.4 reads other variables too, its order is kept
(``environment.Environment.__init__``, ``trainer.train``).
"""

import os
import re
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from sagemaker_mxnet_toolkit.container.hardware import count_cpus, count_gpus, visible_cpus
from sagemaker_mxnet_toolkit.errors import ConfigurationError
from sagemaker_mxnet_toolkit.settings.faults import Faults, Found
from sagemaker_mxnet_toolkit.settings.sources import Sources
from sagemaker_mxnet_toolkit.settings.validation import (
    LOG_LEVEL,
    Validator,
    matching,
    text,
    whole,
)
from sagemaker_mxnet_training.config import (
    channels,
    directories,
    environment,
    hosts,
    hyperparameters,
    settings,
    user_code,
)
from sagemaker_mxnet_training.config.channels import CHANNEL_NAME
from sagemaker_mxnet_training.config.directories import check_writable
from sagemaker_mxnet_training.config.hyperparameters import Hyperparameters
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.config.user_code import check_entry_point

__all__ = [
    "CHANNEL_NAME",
    "ROOT",
    "Resolution",
    "base_directory",
    "check_entry_point",
    "check_writable",
    "resolve",
]

ROOT = "/opt/ml"
"""The base directory, where ``SAGEMAKER_BASE_DIR`` names no other."""

_REGION = matching(
    re.compile(r"(?![0-9]+\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"),
    "an AWS region",
    "the name of an AWS region, such as eu-west-1",
)
_S3 = matching(re.compile(r"s3://[^/\s]+(/.*)?"), "an S3 URL", "s3://bucket/prefix")
_JOB_NAME = text("the name of a training job")
_GPUS = whole(0, 1024, "a number of GPUs")
_CPUS = whole(1, 65536, "a number of CPUs")
_INFO = 20

# Variables that are JSON, but that the job only passes on to the user's script.
_PASSED_ON = {
    "SM_USER_ARGS": list,
    "SM_TRAINING_ENV": dict,
    "SM_INSTANCE_GROUPS": list,
    "SM_INSTANCE_GROUPS_DICT": dict,
    "SM_CURRENT_INSTANCE_GROUP_HOSTS": list,
    "SM_DISTRIBUTION_INSTANCE_GROUPS": list,
    "SM_TOPOLOGY": list,
    "SM_IS_HETERO": bool,
}

# MAX_ARG_STRLEN of Linux: bytes of one argument or variable, with the NUL at its end (execve(2)).
_LONGEST_VARIABLE = 32 * 4096


class Resolution(NamedTuple):
    """What an environment describes.

    Attributes:
        job: the job, with a default in each place that has a fault.
        faults: one complete sentence for each fault; empty if the job can be run.
    """

    job: Job
    faults: Tuple[str, ...]

    def checked(self) -> Job:
        """Return the job.

        Raises:
            ConfigurationError: with all faults, if there are any.
        """
        if self.faults:
            raise ConfigurationError(self.faults)
        return self.job


def resolve(environ: Mapping[str, str], root: str = ROOT) -> Resolution:
    """Return the job that an environment and the files below its base directory describe.

    It reads the three configuration files and looks at directories; it creates nothing.

    Args:
        environ: the environment that the entrypoint was given.
        root: the base directory, where ``SAGEMAKER_BASE_DIR`` names no other.
    """
    base = base_directory(environ, root)
    input_dir = os.path.join(base, "input")
    check = Validator(Faults())
    check.faults.keep_secret(environ)
    sources = Sources(environ, os.path.join(input_dir, "config"), check.faults)
    resources = sources.document("SM_RESOURCE_CONFIG", hosts.FILE)
    inputs = sources.document("SM_INPUT_DATA_CONFIG", channels.FILE)
    parameters = hyperparameters.read(sources, check)
    for name, kind in _PASSED_ON.items():
        sources.json(name, kind)
    hosts.check_resources(resources, check)
    current_host, all_hosts = hosts.read(sources, resources, check)
    entry_point, module_dir = user_code.read(sources, parameters, base, check)
    written = directories.read(sources, base, check)
    job = Job(
        base_dir=base,
        current_host=current_host,
        hosts=all_hosts,
        kvstore_hosts=hosts.distributed(
            all_hosts, parameters.parameter("distribution_instance_groups"), resources, check
        ),
        network_interface=hosts.interface(sources, resources, check),
        hyperparameters=_values(parameters.user),
        framework_parameters=parameters.framework(),
        channels=channels.read(sources, inputs, os.path.join(input_dir, "data"), check),
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
        num_gpus=check.value(sources.variable("SM_NUM_GPUS"), _GPUS, count_gpus()),
        num_cpus=check.value(sources.variable("SM_NUM_CPUS"), _CPUS, count_cpus()),
        visible_cpus=visible_cpus(),
        log_level=_log_level(sources, parameters, check),
        parameter_server=parameters.flag("parameter_server_enabled", check),
        s3_output=check.value(parameters.parameter("s3_output"), _S3, "") or None,
        region=_region(sources, parameters, check),
        job_name=_job_name(sources, parameters, check),
        settings=settings.read(sources, parameters, check),
        environ=dict(environ),
    )
    return Resolution(job, check.faults.sentences() or _too_long(job))


def base_directory(environ: Mapping[str, str], root: str = ROOT) -> str:
    """Return what ``/opt/ml`` is in this environment."""
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
    """Return a fault if the kernel would start no program with this job's variables.

    SageMaker takes hyperparameters that are larger together than a variable may be.
    """
    sizes = {
        name: len(os.fsencode(f"{name}={value}")) + 1
        for name, value in environment.script_environment(job).items()
    }
    largest = max(sizes, key=lambda name: sizes[name])
    if sizes[largest] <= _LONGEST_VARIABLE:
        return ()
    return (
        f"the variable {largest}, which the user's program gets, would have "
        f"{sizes[largest]:,} bytes; expected {_LONGEST_VARIABLE:,} bytes at the most, the kernel's "
        "limit for one variable: give long values to the program in a file of an input channel, "
        "not as hyperparameters",
    )
