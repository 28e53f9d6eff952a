"""The job description: everything that one host knows about its job.

``configuration.resolve`` builds it once, ``description.describe`` puts it into words,
``environment`` makes the variables and arguments of child processes from it.
"""

from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Tuple

from sagemaker_mxnet_training.config.settings import Settings


@dataclass(frozen=True)
class Job:
    """One host's view of one training job. Paths are absolute; none of them is created.

    Attributes:
        base_dir: what ``/opt/ml`` is in a SageMaker container.
        current_host: this host's name, one of ``hosts``.
        hosts: all hosts, sorted by name.
        kvstore_hosts: those that train over the kvstore: all, or the hosts of the instance groups
            that the training is distributed over; sorted.
        network_interface: interface towards the other hosts; empty for whatever reaches the
            leader. It may name one that does not exist (the SDK's local mode writes ``eth0``).
        hyperparameters: the user's, with JSON types, without any ``sagemaker_*``.
        framework_parameters: the ``sagemaker_*`` hyperparameters that have no field here.
        channels: channel name to its path. A channel in Pipe mode has no directory there.
        resource_config: ``resourceconfig.json`` as it was found.
        input_data_config: ``inputdataconfig.json`` as it was found.
        entry_point: the user's program, relative to ``code_dir``.
        module_dir: where the user's code comes from: a directory, a ``tar.gz`` or an ``s3://`` URL.
        code_dir: where the user's code is run.
        model_dir: what becomes the job's model.
        input_dir: holds ``config`` and ``data``.
        input_config_dir: holds SageMaker's three configuration files.
        output_dir: holds ``failure`` or ``success`` at the end.
        output_data_dir: output other than the model.
        output_intermediate_dir: output that is copied to S3 while the job runs.
        checkpoint_dir: checkpoints of ``checkpoints``, from which a job goes on.
        num_gpus: GPUs that this container can see.
        num_cpus: CPUs that this container may use, at least 1.
        visible_cpus: CPUs that processes of this host see, whatever its quota.
        log_level: of Python's ``logging``, 20 for INFO.
        parameter_server: whether MXNet's kvstore processes are wanted.
        s3_output: S3 URL that intermediate output is copied to.
        region: AWS region, where one is known.
        job_name: SageMaker's name for this job; may be empty.
        settings: of this toolkit.
        environ: the environment that the entrypoint was given.
    """

    base_dir: str
    current_host: str
    hosts: Tuple[str, ...]
    kvstore_hosts: Tuple[str, ...]
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
    settings: Settings = field(default_factory=Settings)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def leader(self) -> str:
        """The first host: it runs the kvstore scheduler and leads the control channel."""
        return self.hosts[0]

    @property
    def is_leader(self) -> bool:
        """Whether this host is the leader."""
        return self.current_host == self.leader
