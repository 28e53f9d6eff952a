"""The job description as the log shows it, without its secrets."""

import json
from typing import FrozenSet, Iterator, Mapping, Tuple

from sagemaker_mxnet_toolkit.redaction import redact_mapping, redact_text, secrets_in
from sagemaker_mxnet_toolkit.settings.declaration import declared
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.config.settings import Settings


def secrets_of(job: Job) -> FrozenSet[str]:
    """Return all secret values that a job was given, for ``redact_text`` to mask."""
    key = {"job_key": job.settings.job_key or ""}
    mappings = (job.environ, job.hyperparameters, job.framework_parameters, key)
    return frozenset().union(*map(secrets_in, mappings))


def describe(job: Job) -> str:
    """Return the job description as lines of text, without its secrets."""
    hosts = ", ".join(job.hosts)
    default = Settings()
    settings = {
        name: getattr(job.settings, name)
        for name in declared(Settings)
        if getattr(job.settings, name) != getattr(default, name)
    }
    leads = ", leads" if job.is_leader and len(job.hosts) > 1 else ""
    rows: Tuple[Tuple[str, object], ...] = (
        ("job", job.job_name or "(unnamed)"),
        ("host", f"{job.current_host} (of {len(job.hosts)}: {hosts}{leads})"),
        ("interface", job.network_interface or "(whichever reaches the first host)"),
        ("entry point", f"{job.entry_point} from {job.module_dir}"),
        ("code", job.code_dir),
        ("model", job.model_dir),
        ("output", f"{job.output_dir} (data: {job.output_data_dir})"),
        ("intermediate", f"{job.output_intermediate_dir} to {job.s3_output or '(nowhere)'}"),
        ("region", job.region or "(unknown)"),
        ("resources", f"{job.num_cpus} CPUs, {job.num_gpus} GPUs"),
        ("log level", job.log_level),
        ("parameter server", _kvstore(job) if job.parameter_server else "off"),
        ("channels", job.channels),
        ("hyperparameters", job.hyperparameters),
        ("framework", job.framework_parameters),
        ("settings other than the default", settings),
    )
    text = "\n".join(line for name, value in rows for line in _lines(name, value))
    return redact_text(text, secrets_of(job))


def _kvstore(job: Job) -> str:
    return "on" if job.kvstore_hosts == job.hosts else f"on, for {', '.join(job.kvstore_hosts)}"


def _lines(name: str, value: object) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{name}: {value}"
        return
    yield f"{name}:" if value else f"{name}: (none)"
    for key, item in redact_mapping(value).items():
        yield f"  {key} = {json.dumps(item, default=str)}"
