"""The job description: everything that one host knows about its job, resolved once, then passed on.

``configuration.resolve`` builds it, ``description.describe`` puts it into words, ``environment``
turns it into what child processes get.
"""

from dataclasses import dataclass, field
from typing import Any, Mapping, Optional, Tuple


@dataclass(frozen=True)
class Settings:
    """What can be set about this toolkit itself.

    Each comes from the hyperparameter ``sagemaker_mxnet_<name>``, or else from the variable
    ``SAGEMAKER_MXNET_<NAME>``; ``ps_port`` and ``ps_verbose`` come from the hyperparameters
    ``_ps_port`` and ``_ps_verbose``, as in sagemaker-mxnet-training 4.x.

    Attributes:
        join_timeout: seconds that hosts wait for each other, DNS included.
        peer_timeout: seconds of silence after which a host counts as lost.
        stop_grace: seconds that the user's script has after SIGTERM. SageMaker kills the
            container 120 s after its own SIGTERM.
        drain_timeout: seconds that scheduler and servers have to leave after the last worker.
        stall_timeout: seconds without progress, while others have finished, after which the job
            fails; 0 means never.
        ps_port: TCP port of MXNet's kvstore scheduler on the first host; 0 for any free one.
        ps_port_given: whether somebody asked for that very port.
        ps_verbose: ps-lite's log level, 0 to 2.
        servers_per_host: kvstore servers on each host; the first host's value is the job's.
        control_port: TCP port of the control channel on the first host; ``ps_port`` + 1.
        host_addresses: host name to IP address, where names do not resolve.
        job_key: secret that the hosts share, where somebody handed them one.
        control_fd: a listening socket inherited from the parent process, for ``local``.
    """

    join_timeout: float = 900.0
    peer_timeout: float = 15.0
    stop_grace: float = 110.0
    drain_timeout: float = 30.0
    stall_timeout: float = 0.0
    ps_port: int = 8000
    ps_port_given: bool = False
    ps_verbose: int = 0
    servers_per_host: int = 1
    control_port: int = 8001
    host_addresses: Mapping[str, str] = field(default_factory=dict)
    job_key: Optional[str] = field(default=None, repr=False)
    control_fd: Optional[int] = None


@dataclass(frozen=True)
class Job:
    """One host's view of one training job. Paths are absolute; nothing of them is created.

    Attributes:
        base_dir: what ``/opt/ml`` is in a SageMaker container.
        current_host: this host's name, one of ``hosts``.
        hosts: all hosts, sorted by name.
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
        num_gpus: GPUs that this container can see.
        num_cpus: CPUs that this container may use, at least 1.
        visible_cpus: CPUs that processes of this host see, whatever its quota.
        log_level: of Python's ``logging``, 20 for INFO.
        parameter_server: whether MXNet's kvstore processes are wanted.
        s3_output: S3 URL that intermediate output is copied to.
        region: AWS region, where one is known.
        job_name: SageMaker's name for this job; may be empty.
        settings: what was set about this toolkit.
        environ: the environment that the entrypoint was given.
    """

    base_dir: str
    current_host: str
    hosts: Tuple[str, ...]
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
