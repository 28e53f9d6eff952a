"""The configuration of one host of a job.

``configuration.resolve`` creates it, ``description`` formats it for the log, and ``environment``
returns the variables and arguments of child processes.
"""

from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Tuple

from sagemaker_mxnet_training.config.job_settings import Settings
from sagemaker_mxnet_training.config.mpi_options import Horovod


@dataclass(frozen=True)
class Job:
    """One host's view of a training job. Paths are absolute and may not exist.

    Attributes:
        base_dir: the base directory, ``/opt/ml`` in a SageMaker container.
        current_host: this host's name, one of ``hosts``.
        hosts: all hosts, sorted by name.
        distributed_hosts: the hosts that train together, over the kvstore or with Horovod: all, or
            those of the selected instance groups; sorted.
        network_interface: interface to the other hosts; may be empty. It may not exist (the SDK's
            local mode writes ``eth0``).
        hyperparameters: the user's, with JSON types, without any ``sagemaker_*``.
        framework_parameters: the ``sagemaker_*`` hyperparameters that have no field here.
        channels: path of each channel. In Pipe mode it is not a directory.
        resource_config: content of ``resourceconfig.json``.
        input_data_config: content of ``inputdataconfig.json``.
        entry_point: the user's program, relative to ``code_dir``.
        module_dir: source of the user's code: a directory, a ``tar.gz`` or an ``s3://`` URL.
        code_dir: directory that the user's code is run in.
        model_dir: directory of the model.
        input_dir: parent of ``config`` and ``data``.
        input_config_dir: directory of SageMaker's three configuration files.
        output_dir: directory of the ``failure`` or ``success`` file.
        output_data_dir: directory of output other than the model.
        output_intermediate_dir: directory of output that is uploaded to S3 while the job runs.
        checkpoint_dir: directory of checkpoints.
        num_gpus: number of GPUs in this container.
        num_cpus: number of CPUs that this container may use, at least 1.
        visible_cpus: number of CPUs that processes of this host see, regardless of its quota.
        log_level: a level of Python's ``logging``, 20 for INFO.
        parameter_server: whether to start MXNet's kvstore processes.
        horovod: options for Horovod; ``None`` if it is not used.
        s3_output: S3 URL that intermediate output is uploaded to.
        region: AWS region, if it is known.
        job_name: SageMaker's name of this job; may be empty.
        settings: settings of this toolkit.
        environ: the environment of the entrypoint.
    """

    base_dir: str
    current_host: str
    hosts: Tuple[str, ...]
    distributed_hosts: Tuple[str, ...]
    network_interface: str
    hyperparameters: Mapping[str, Any]
    framework_parameters: Mapping[str, Any]
    channels: Mapping[str, str]
    resource_config: Mapping[str, Any]
    input_data_config: Mapping[str, Any]
    entry_point: str
    module_dir: str
    code_dir: str
    model_dir: str
    input_dir: str
    input_config_dir: str
    output_dir: str
    output_data_dir: str
    output_intermediate_dir: str
    checkpoint_dir: str
    num_gpus: int
    num_cpus: int
    visible_cpus: int
    log_level: int
    parameter_server: bool
    s3_output: Optional[str]
    region: Optional[str]
    job_name: str
    horovod: Optional[Horovod] = None
    settings: Settings = field(default_factory=Settings)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def leader(self) -> str:
        """The first host, which runs the kvstore scheduler and decides for all hosts."""
        return self.hosts[0]

    @property
    def is_leader(self) -> bool:
        """Whether this host is the leader."""
        return self.current_host == self.leader

    @property
    def is_distributed(self) -> bool:
        """Whether this host is one of ``distributed_hosts``."""
        return self.current_host in self.distributed_hosts

    @property
    def ranks(self) -> int:
        """Total number of workers with Horovod; 0 without it."""
        if self.horovod is None:
            return 0
        return len(self.distributed_hosts) * self.horovod.processes_per_host
