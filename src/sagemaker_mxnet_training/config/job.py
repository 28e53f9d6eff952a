"""The configuration of one host of a job, and its descriptions for the log, without secrets.

``configuration.resolve`` creates it. ``environment`` returns the variables and arguments of child
processes.
"""

import json
from dataclasses import dataclass, field
from typing import Any, FrozenSet, Iterator, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.redaction import redact_mapping, redact_text, secrets_in
from sagemaker_mxnet_toolkit.settings.declaration import declared
from sagemaker_mxnet_training.config.job_settings import Settings
from sagemaker_mxnet_training.config.mpi_options import Horovod

_OF_THE_NETWORK = frozenset({"ps_port", "control_port", "host_addresses", "job_key"})


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


def secrets_of(job: Job) -> FrozenSet[str]:
    """Return all secret values of a job, for ``redact_text`` to mask."""
    key = {"job_key": job.settings.job_key or ""}
    mappings = (job.environ, job.hyperparameters, job.framework_parameters, key)
    return frozenset().union(*map(secrets_in, mappings))


def headline(job: Job) -> str:
    """Return a description of the job in one line, without its secrets."""
    settings = {k: v for k, v in _settings(job).items() if k not in _OF_THE_NETWORK}
    parts = [
        f"starting {job.entry_point} on {', '.join(job.hosts)}",
        f"{job.num_cpus} CPUs and {job.num_gpus} GPUs on this host",
        _distribution(job),
        *([f"channels {', '.join(sorted(job.channels))}"] if job.channels else []),
        *_pairs("hyperparameters", job.hyperparameters),
        *_pairs("settings", settings),
    ]
    return redact_text("; ".join(parts), secrets_of(job))


def describe(job: Job) -> str:
    """Return a description of the job in several lines, without its secrets."""
    hosts = ", ".join(job.hosts)
    settings = _settings(job)
    leader = ", leader" if job.is_leader and len(job.hosts) > 1 else ""
    rows: Tuple[Tuple[str, object], ...] = (
        ("job", job.job_name or "(unnamed)"),
        ("host", f"{job.current_host} (of {len(job.hosts)}: {hosts}{leader})"),
        ("interface", job.network_interface or "(that of the route to the first host)"),
        ("entry point", f"{job.entry_point} from {job.module_dir}"),
        ("code", job.code_dir),
        ("model", job.model_dir),
        ("output", f"{job.output_dir} (data: {job.output_data_dir})"),
        ("intermediate", f"{job.output_intermediate_dir} to {job.s3_output or '(nowhere)'}"),
        ("region", job.region or "(unknown)"),
        ("resources", f"{job.num_cpus} CPUs, {job.num_gpus} GPUs"),
        ("log level", job.log_level),
        ("distribution", _distribution(job)),
        ("channels", job.channels),
        ("hyperparameters", job.hyperparameters),
        ("framework", job.framework_parameters),
        ("changed settings", settings),
    )
    text = "\n".join(line for name, value in rows for line in _lines(name, value))
    return redact_text(text, secrets_of(job))


def _distribution(job: Job) -> str:
    """Return how the hosts train together."""
    some = job.distributed_hosts != job.hosts
    hosts = f", for {', '.join(job.distributed_hosts)}" if some else ""
    if job.horovod is not None:
        return f"Horovod on, {job.horovod.processes_per_host} processes on each host{hosts}"
    return f"parameter server on{hosts}" if job.parameter_server else "parameter server off"


def _settings(job: Job) -> Mapping[str, object]:
    """Return the settings that differ from their defaults."""
    default = Settings()
    return {
        name: getattr(job.settings, name)
        for name in declared(Settings)
        if getattr(job.settings, name) != getattr(default, name)
    }


def _pairs(name: str, values: Mapping[str, object]) -> Iterator[str]:
    if values:
        shown = redact_mapping(values).items()
        yield f"{name} " + ", ".join(f"{k} = {json.dumps(v, default=str)}" for k, v in shown)


def _lines(name: str, value: object) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{name}: {value}"
        return
    yield f"{name}:" if value else f"{name}: (none)"
    for key, item in redact_mapping(value).items():
        yield f"  {key} = {json.dumps(item, default=str)}"
