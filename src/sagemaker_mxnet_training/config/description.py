"""Descriptions of a job for the log, without its secrets."""

import json
from typing import FrozenSet, Iterator, Mapping, Tuple

from sagemaker_mxnet_toolkit.redaction import redact_mapping, redact_text, secrets_in
from sagemaker_mxnet_toolkit.settings.declaration import declared
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.config.job_settings import Settings


def secrets_of(job: Job) -> FrozenSet[str]:
    """Return all secret values of a job, for ``redact_text`` to mask."""
    key = {"job_key": job.settings.job_key or ""}
    mappings = (job.environ, job.hyperparameters, job.framework_parameters, key)
    return frozenset().union(*map(secrets_in, mappings))


_OF_THE_NETWORK = frozenset({"ps_port", "control_port", "host_addresses", "job_key"})


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
