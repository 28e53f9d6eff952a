"""The settings of a server: from an environment mapping to one frozen record."""

import os
import re
from dataclasses import dataclass, replace
from typing import FrozenSet, Mapping, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.container import cgroup, hardware
from sagemaker_mxnet_toolkit.errors import ConfigurationError
from sagemaker_mxnet_toolkit.redaction import secrets_in
from sagemaker_mxnet_toolkit.settings.sources import Faults, Found, Sources
from sagemaker_mxnet_toolkit.settings.validation import Validator

MEGABYTE = 1024 * 1024

BASE_DIR = "/opt/ml"
"""Below which SageMaker puts the model (``model``), or the models of a multi-model endpoint
(``models``)."""

ALL_INTERFACES = "0.0.0.0"
LOOPBACK = "127.0.0.1"

_TIMEOUT = 60.0  # SageMaker ends an invocation after that long.
_PAYLOAD_MB = 6  # SageMaker's limit for a real-time endpoint.
_PAYLOAD_MB_LIMIT = 1024  # and for an asynchronous one.
_QUEUE = 2048
_ACCESS_LOGS = ("text", "json", "off")
_STRATEGIES = frozenset({"multirecord", "singlerecord"})

# Variables of AWS's multi-model-server, and what stands in for them here.
_MMS_REPLACEMENTS = {
    "MMS_DEFAULT_WORKERS_PER_MODEL": "SAGEMAKER_MODEL_SERVER_WORKERS",
    "MMS_DEFAULT_RESPONSE_TIMEOUT": "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS",
    "MMS_JOB_QUEUE_SIZE": "SAGEMAKER_MXNET_QUEUE_SIZE",
    "MMS_MAX_REQUEST_SIZE": "SAGEMAKER_MAX_PAYLOAD_IN_MB",
    "MMS_BIND_TO_PORT": "SAGEMAKER_BIND_TO_PORT",
    "MMS_BATCH_SIZE": "SAGEMAKER_MXNET_BATCH_SIZE",
    "MMS_MAX_BATCH_DELAY": "SAGEMAKER_MXNET_BATCH_DELAY",
}


@dataclass(frozen=True)
class ServerSettings:
    """What a server is to do.

    Attributes:
        model_dir: the model's directory, or, with ``multi_model``, the one that models are below.
        program: the user's script as ``SAGEMAKER_PROGRAM`` has it; may be empty.
        code_dir: where the script is, if not in ``code`` of the model's directory.
        host: the address to listen on.
        port: the TCP port to listen on.
        workers: worker processes of each model.
        threads: threads that one worker computes with.
        load_in_workers: every worker loads the model itself, instead of sharing its memory.
        gpus: GPUs that workers use in turn; 0 for none.
        timeout: seconds that a worker may take for one request.
        max_payload: bytes of a request's body.
        max_held: bytes of all bodies that are held at one time.
        queue_size: requests of a model that may wait for a worker.
        batch_size: requests that may be predicted together.
        batch_delay: seconds that a request waits for others to be predicted with.
        accept: what an answer is where the caller does not say.
        first_dimension: the model's first dimension, where its files do not say.
        multi_model: models are loaded and unloaded by requests.
        batch_strategy: ``MultiRecord`` or ``SingleRecord``, as it is spelled to the caller.
        max_transforms: requests that a batch transform sends at the same time.
        access_log: ``text``, ``json`` or ``off``.
        metrics_port: the port of the metrics; ``None`` for no metrics.
        log_level: a level of ``logging``.
        secrets: values that no output shows.
        notes: what the user should know about settings that have no effect.
    """

    model_dir: str = "/opt/ml/model"
    program: str = ""
    code_dir: str = ""
    host: str = ALL_INTERFACES
    port: int = 8080
    workers: int = 1
    threads: int = 1
    load_in_workers: bool = False
    gpus: int = 0
    timeout: float = _TIMEOUT
    max_payload: int = _PAYLOAD_MB * MEGABYTE
    max_held: int = 256 * MEGABYTE
    queue_size: int = _QUEUE
    batch_size: int = 1
    batch_delay: float = 0.0
    accept: str = "application/json"
    first_dimension: Optional[int] = None
    multi_model: bool = False
    batch_strategy: str = "MULTI_RECORD"
    max_transforms: int = 1
    access_log: str = "text"
    metrics_port: Optional[int] = None
    log_level: int = 20
    secrets: FrozenSet[str] = frozenset()
    notes: Tuple[str, ...] = ()

    @property
    def shared(self) -> bool:
        """Whether workers are forked from a process that has loaded the model.

        A process forked from one in which OpenMP has run several threads hangs in its first
        prediction, and CUDA does not survive a fork.
        """
        return not self.load_in_workers and self.gpus == 0 and self.threads == 1


def resolve(
    environ: Mapping[str, str],
    model_dir: Optional[str] = None,
    host: Optional[str] = None,
    port: Optional[int] = None,
    workers: Optional[int] = None,
) -> ServerSettings:
    """Return the settings that an environment describes.

    The other arguments take precedence over it. A server that is told its model directory is one
    on somebody's own machine: it listens on the loopback interface, unless ``host`` says otherwise.

    Args:
        environ: the environment.
        model_dir: the model's directory.
        host: the address to listen on.
        port: the port to listen on.
        workers: worker processes.

    Raises:
        ConfigurationError: with every fault that was found.
    """
    # Over 60 lines: one line or two for each setting, and nothing else.
    secrets = secrets_in(environ)
    faults = Faults(secrets)
    sources = Sources(environ, "/opt/ml/input/config", faults)
    check = Validator(faults)
    find = sources.variable

    multi_model = check.flag(find("SAGEMAKER_MULTI_MODEL"))
    base = check.path(find("SAGEMAKER_BASE_DIR"), BASE_DIR)
    cpus, gpus = hardware.count_cpus(), hardware.count_gpus()
    count, threads = _parallelism(sources, check, workers, cpus, gpus, multi_model)
    payload = MEGABYTE * check.whole(
        find("SAGEMAKER_MAX_PAYLOAD_IN_MB"), _PAYLOAD_MB, 1, _PAYLOAD_MB_LIMIT, "a number of MB"
    )
    first = find("SAGEMAKER_DEFAULT_MODEL_FIRST_DIMENSION_SIZE")
    settings = ServerSettings(
        model_dir=os.path.abspath(
            model_dir or os.path.join(base, "models" if multi_model else "model")
        ),
        program=check.text(find("SAGEMAKER_PROGRAM"), "", "the name of a script"),
        code_dir="" if multi_model else _code_dir(environ),
        host=host or (ALL_INTERFACES if model_dir is None else LOOPBACK),
        port=check.port(find("SAGEMAKER_BIND_TO_PORT"), 8080),
        workers=count,
        threads=threads,
        load_in_workers=check.flag(find("SAGEMAKER_MXNET_LOAD_IN_WORKERS")),
        gpus=gpus,
        timeout=_timeout(sources, check),
        max_payload=payload,
        max_held=_held(payload, cgroup.memory_limit()),
        queue_size=check.whole(
            find("SAGEMAKER_MXNET_QUEUE_SIZE"), _QUEUE, 1, 1_000_000, "a number of requests"
        ),
        batch_size=check.whole(
            find("SAGEMAKER_MXNET_BATCH_SIZE"), 1, 1, 1024, "a number of requests"
        ),
        batch_delay=check.seconds(find("SAGEMAKER_MXNET_BATCH_DELAY"), 0.0, zero=True),
        accept=check.text(
            find("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"), "application/json", "a content type"
        ),
        first_dimension=None
        if first is None
        else check.whole(first, 1, 1, 2**31 - 1, "a number of rows"),
        multi_model=multi_model,
        batch_strategy=_strategy(sources, faults),
        max_transforms=check.whole(
            find("SAGEMAKER_MAX_CONCURRENT_TRANSFORMS"), count, 1, 100_000, "a number of requests"
        ),
        access_log=_access_log(sources, faults),
        metrics_port=_metrics_port(sources, check),
        log_level=check.level(find("SAGEMAKER_CONTAINER_LOG_LEVEL")),
        secrets=secrets,
        notes=tuple(_notes(environ)),
    )
    if port is not None:
        settings = replace(settings, port=check.port(_argument("--port", port), 8080))
    _check_ports(settings, sources, faults)
    told = faults.told()
    if told:
        raise ConfigurationError(told)
    return settings


def _parallelism(
    sources: Sources,
    check: Validator,
    workers: Optional[int],
    cpus: int,
    gpus: int,
    multi_model: bool,
) -> Tuple[int, int]:
    """Return how many workers a model has, and how many threads each.

    Workers share a CPU badly, so together their threads are as many as there are CPUs. A model of
    many has one worker: its neighbours use the other CPUs.
    """
    asked = sources.variable("OMP_NUM_THREADS")
    threads = check.whole(asked, 1, 1, 4096, "a number of threads")
    default = gpus or (1 if multi_model else max(1, cpus // threads))
    found = sources.variable("SAGEMAKER_MODEL_SERVER_WORKERS")
    count = check.whole(found, default, 1, 1024, "a number of workers")
    if workers is not None:
        count = check.whole(_argument("--workers", workers), 1, 1, 1024, "a number of workers")
    if asked is None and not multi_model:
        threads = max(1, cpus // count)
    return count, threads


def _argument(name: str, value: int) -> Found:
    return Found(value, name, name)


def _code_dir(environ: Mapping[str, str]) -> str:
    """Return the script's directory where it is apart from the model.

    The SDK's local mode mounts ``source_dir`` at ``/opt/ml/code``; otherwise the variable is empty,
    or names ``code`` in the model's directory.
    """
    directory = environ.get("SAGEMAKER_SUBMIT_DIRECTORY", "")
    return directory if os.path.isabs(directory) and os.path.isdir(directory) else ""


def _timeout(sources: Sources, check: Validator) -> float:
    found = sources.variable("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS")
    if found is None:
        found = sources.variable("SAGEMAKER_MODEL_SERVER_TIMEOUT")
    return check.seconds(found, _TIMEOUT, zero=False)


def _held(payload: int, memory: Optional[int]) -> int:
    """Return how many bytes of bodies may be held: two of the largest, or a part of the memory."""
    part = 256 * MEGABYTE if memory is None else memory // 8
    return max(2 * payload, part)


def _strategy(sources: Sources, faults: Faults) -> str:
    """Return the batch strategy as the reader of ``/execution-parameters`` spells it.

    The contract's document says ``MULTI_RECORD``. The SageMaker SDK's local mode, which says
    ``SAGEMAKER_BATCH=True`` where SageMaker says ``true``, takes only the API's ``MultiRecord``.
    """
    found = sources.variable("SAGEMAKER_BATCH_STRATEGY")
    if found is None:
        batch = sources.variable("SAGEMAKER_BATCH")
        return "MultiRecord" if batch and batch.value == "True" else "MULTI_RECORD"
    if str(found.value).replace("_", "").lower() not in _STRATEGIES:
        faults.add("no batch strategy", found, "MultiRecord or SingleRecord")
    return str(found.value)


def _access_log(sources: Sources, faults: Faults) -> str:
    found = sources.variable("SAGEMAKER_MXNET_ACCESS_LOG")
    if found is None:
        return "text"
    form = str(found.value).strip().lower()
    if form not in _ACCESS_LOGS:
        faults.add("no form of the access log", found, "text, json or off")
    return form


def _metrics_port(sources: Sources, check: Validator) -> Optional[int]:
    found = sources.variable("SAGEMAKER_MXNET_METRICS_PORT")
    return None if found is None else check.port(found, 9090)


def _check_ports(settings: ServerSettings, sources: Sources, faults: Faults) -> None:
    found = sources.variable("SAGEMAKER_SAFE_PORT_RANGE")
    if settings.metrics_port == settings.port:
        faults.add(
            "the metrics cannot have the server's own port",
            sources.variable("SAGEMAKER_MXNET_METRICS_PORT"),
            "another port",
        )
    if found is None:
        return
    match = re.fullmatch(r"\s*(\d{1,5})\s*-\s*(\d{1,5})\s*", str(found.value))
    if match is None or not 0 < int(match[1]) <= int(match[2]) < 65536:
        faults.add("no range of ports", found, "two ports, as 20000-20999")
    elif settings.metrics_port and not int(match[1]) <= settings.metrics_port <= int(match[2]):
        metrics = sources.variable("SAGEMAKER_MXNET_METRICS_PORT")
        faults.add("not a port of SAGEMAKER_SAFE_PORT_RANGE", metrics, f"one of {found.value}")


def _notes(environ: Mapping[str, str]) -> Sequence[str]:
    """Return a sentence for each variable that is set and has no effect."""
    notes = []
    for name in sorted(environ):
        if name.startswith("MMS_"):
            other = _MMS_REPLACEMENTS.get(name)
            hint = f": set {other} instead" if other else ""
            notes.append(f"{name} is a variable of multi-model-server and has no effect{hint}")
    if environ.get("SAGEMAKER_SUBMIT_DIRECTORY", "").startswith("s3://"):
        notes.append(
            "SAGEMAKER_SUBMIT_DIRECTORY names S3 and has no effect: put the script into code/ of "
            "model.tar.gz, as the SageMaker SDK does for framework versions from 1.4 on"
        )
    if environ.get("SAGEMAKER_INFERENCE_ACCELERATOR_PRESENT", "").lower() == "true":
        notes.append(
            "SAGEMAKER_INFERENCE_ACCELERATOR_PRESENT has no effect: Amazon Elastic Inference has "
            "been shut down, and this server predicts on the CPU, or on a GPU where there is one"
        )
    return notes
