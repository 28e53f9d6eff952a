"""The settings of a server: declared here, and read from an environment mapping."""

import os
import re
import sys
from dataclasses import dataclass, replace
from typing import Any, FrozenSet, Mapping, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit import container
from sagemaker_mxnet_toolkit.failure import ConfigurationError
from sagemaker_mxnet_toolkit.redaction import secrets_in
from sagemaker_mxnet_toolkit.settings import declaration
from sagemaker_mxnet_toolkit.settings.declaration import setting
from sagemaker_mxnet_toolkit.settings.sources import Faults, Found, Sources
from sagemaker_mxnet_toolkit.settings.validation import (
    FLAG,
    LOG_LEVEL,
    PATH,
    Kind,
    Validator,
    integer,
    port,
    seconds,
    string,
)

PREFIX = "SAGEMAKER_MXNET_SERVING_"
"""The prefix of the variables that only this server has."""

PROGRAM = "sagemaker-mxnet-serving"
"""The name at the beginning of each line of the log."""

MEGABYTE = 1024 * 1024

ALL_INTERFACES = "0.0.0.0"
LOOPBACK = "127.0.0.1"

# Variables of AWS's multi-model-server, and what replaces them here.
_MMS_REPLACEMENTS = {
    "MMS_DEFAULT_WORKERS_PER_MODEL": "SAGEMAKER_MODEL_SERVER_WORKERS",
    "MMS_DEFAULT_RESPONSE_TIMEOUT": "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS",
    "MMS_JOB_QUEUE_SIZE": f"{PREFIX}QUEUE_SIZE",
    "MMS_MAX_REQUEST_SIZE": "SAGEMAKER_MAX_PAYLOAD_IN_MB",
    "MMS_BIND_TO_PORT": "SAGEMAKER_BIND_TO_PORT",
    "MMS_BATCH_SIZE": f"{PREFIX}BATCH_SIZE",
    "MMS_MAX_BATCH_DELAY": f"{PREFIX}BATCH_DELAY",
}


def _megabytes(value: Any) -> int:
    # SageMaker's limit for an asynchronous endpoint is 1 GB.
    return MEGABYTE * integer(1, 1024, "a number of MB").convert(value)


def _access_log(value: Any) -> str:
    form = str(value).strip().lower()
    if form not in ("text", "json", "off"):
        raise ValueError("not a form of the access log")
    return form


def _strategy(value: Any) -> str:
    if str(value).replace("_", "").lower() not in ("multirecord", "singlerecord"):
        raise ValueError("not a batch strategy")
    return str(value)


def _port_range(value: Any) -> Tuple[int, int]:
    match = re.fullmatch(r"\s*(\d{1,5})\s*-\s*(\d{1,5})\s*", str(value))
    if match is None or not 0 < int(match[1]) <= int(match[2]) < 65536:
        raise ValueError("not a range of ports")
    return int(match[1]), int(match[2])


_WORKERS = integer(1, 1024, "a number of workers")
_REQUESTS = integer(1, 1_000_000, "a number of requests")
_STRING = string("a string")
_PORT = port()


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server; the declaration of each has its meaning.

    Its variable is the one that the declaration names, or ``SAGEMAKER_MXNET_SERVING_<NAME>``.

    Attributes:
        max_payload: in bytes.
        batch_strategy: as clients see it.
        log_level: a level of ``logging``.
        code_dir: a directory, absolute; empty for the model's own.
        code_source: not a setting: an archive, local or on S3, that is unpacked into ``code_dir``
            before the model is loaded; empty for none.
        model_dir: not a setting: the model's directory; with ``multi_model``, the parent of the
            models' directories.
        host: not a setting: the address to listen on.
        gpus: not a setting: GPUs, which workers use in turn; 0 for none.
        max_buffered: not a setting: bytes of all bodies that are in memory at one time.
        python: not a setting: the interpreter of the processes of models.
        keep_packages: not a setting: whether the packages of this Python must stay unchanged.
        secrets: not a setting: values that no output shows.
        notes: not a setting: warnings about variables that have no effect.
    """

    program: str = setting(
        "",
        string("the name of a script"),
        "the script: a file, or a module (`pkg.serve`)",
        default_text="`inference.py`",
        variables=("SAGEMAKER_PROGRAM",),
    )
    code_dir: str = setting(
        "",
        _STRING,
        "where the script is: a directory, a `tar.gz`, or one on S3 (`s3://`); ignored if it does "
        "not exist, and with multiple models",
        default_text="`code/` of the model directory, or that directory itself",
        variables=("SAGEMAKER_SUBMIT_DIRECTORY",),
    )
    region: str = setting(
        "",
        _STRING,
        "AWS region of code on S3",
        default_text="boto3's own",
        variables=("SAGEMAKER_REGION",),
    )
    base_dir: str = setting(
        "/opt/ml",
        PATH,
        "the model is in its subdirectory `model`; multiple models are in `models`",
        default_text="`/opt/ml`",
        variables=("SAGEMAKER_BASE_DIR",),
    )
    port: int = setting(8080, _PORT, "the port to listen on", variables=("SAGEMAKER_BIND_TO_PORT",))
    safe_ports: Optional[Tuple[int, int]] = setting(
        None,
        Kind(_port_range, "two ports, such as 20000-20999"),
        "other ports that may be used; the metrics' port has to be one of them",
        default_text="any",
        variables=("SAGEMAKER_SAFE_PORT_RANGE",),
    )
    workers: int = setting(
        1,
        _WORKERS,
        "worker processes of each model",
        default_text="one for each GPU, or else for each CPU; 1 for each of multiple models "
        "without a GPU",
        variables=("SAGEMAKER_MODEL_SERVER_WORKERS",),
    )
    timeout: float = setting(
        60.0,
        seconds(0.001),
        "how long a prediction may take, and a request may wait for a worker; the first variable "
        "takes precedence",
        variables=("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", "SAGEMAKER_MODEL_SERVER_TIMEOUT"),
    )
    max_payload: int = setting(
        6 * MEGABYTE,
        Kind(_megabytes, "an integer from 1 to 1024", "MB"),
        "largest body in MB, up to 1024; a larger one gets a 413",
        default_text="6",
        variables=("SAGEMAKER_MAX_PAYLOAD_IN_MB",),
    )
    max_transforms: int = setting(
        1,
        integer(1, 100_000, "a number of requests"),
        "requests that a batch transform sends at the same time, for `/execution-parameters`",
        default_text="the workers",
        variables=("SAGEMAKER_MAX_CONCURRENT_TRANSFORMS",),
    )
    batch_strategy: str = setting(
        "MULTI_RECORD",
        Kind(_strategy, "MultiRecord or SingleRecord"),
        "`BatchStrategy` of `/execution-parameters`. The SDK's local mode, which sets "
        "`SAGEMAKER_BATCH=True`, accepts only `MultiRecord` and gets that",
        default_text="`MULTI_RECORD`",
        variables=("SAGEMAKER_BATCH_STRATEGY",),
    )
    accept: str = setting(
        "application/json",
        string("a content type"),
        "the content type of a response if the request has no `Accept`",
        default_text="`application/json`",
        variables=("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",),
    )
    first_dimension: Optional[int] = setting(
        None,
        integer(1, 2**31 - 1, "a number of rows"),
        "rows that the model predicts at once",
        default_text="the model's",
        variables=("SAGEMAKER_DEFAULT_MODEL_FIRST_DIMENSION_SIZE",),
    )
    multi_model: bool = setting(
        False,
        FLAG,
        "models are loaded and unloaded by requests",
        default_text="`false`",
        variables=("SAGEMAKER_MULTI_MODEL",),
    )
    log_level: int = setting(
        20,
        LOG_LEVEL,
        "level of the server's log, and of the script's root logger",
        default_text="`INFO`",
        variables=("SAGEMAKER_CONTAINER_LOG_LEVEL",),
    )
    threads: int = setting(
        1,
        integer(1, 4096, "a number of threads"),
        "threads of one worker",
        default_text="the CPUs divided by the workers; 1 with multiple models",
        variables=("OMP_NUM_THREADS",),
    )
    load_in_workers: bool = setting(
        False,
        FLAG,
        "each worker loads the model, instead of sharing its memory",
        default_text="`false`",
    )
    queue_size: int = setting(
        2048, _REQUESTS, "requests of a model that may wait for a worker; more get a 503"
    )
    batch_size: int = setting(
        1,
        integer(1, 1024, "a number of requests"),
        "largest number of requests in a batch, if no function of the script handles requests",
    )
    batch_delay: float = setting(
        0.0, seconds(), "how long a request waits for others to fill its batch"
    )
    access_log: str = setting(
        "text",
        Kind(_access_log, "text, json or off"),
        "one line on stdout for each request but pings: `text`, `json` or `off`",
        default_text="`text`",
    )
    metrics_port: Optional[int] = setting(
        None,
        _PORT,
        "a port for Prometheus: requests, times, batch sizes, queue, workers, restarts",
        default_text="none",
    )
    code_source: str = ""
    model_dir: str = "/opt/ml/model"
    host: str = ALL_INTERFACES
    gpus: int = 0
    max_buffered: int = 256 * MEGABYTE
    python: str = sys.executable
    keep_packages: bool = False
    secrets: FrozenSet[str] = frozenset()
    notes: Tuple[str, ...] = ()

    @property
    def shared(self) -> bool:
        """Whether workers are forked from a process that has loaded the model.

        A process that is forked after OpenMP has run several threads hangs in its first prediction,
        and CUDA does not survive a fork.
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

    The other arguments take precedence. With a ``model_dir`` argument the server runs on a
    developer's machine: it listens on the loopback interface by default, and does not change the
    packages that are installed there.

    Args:
        environ: the environment.
        model_dir: the model's directory.
        host: the address to listen on.
        port: the port to listen on.
        workers: worker processes.

    Raises:
        ConfigurationError: lists all faults.
    """
    faults = Faults()
    faults.keep_secret(environ)
    check = Validator(faults)
    # A server has neither configuration files nor hyperparameters.
    sources = Sources(environ, "", faults)
    found, given = declaration.read(ServerSettings, PREFIX.lower(), sources, {}, check)
    if port is not None:
        found = replace(found, port=check.value(_argument("--port", port), _PORT, 8080))
    if workers is not None:
        count = check.value(_argument("--workers", workers), _WORKERS, 1)
        found, given = replace(found, workers=count), given | {"workers"}
    found = _parallel(found, given)
    _check_ports(found, sources, faults)
    if faults.sentences():
        raise ConfigurationError(faults.sentences())
    code = "" if found.multi_model else _code(found.code_dir)
    models = os.path.join(found.base_dir, "models" if found.multi_model else "model")
    return replace(
        found,
        model_dir=os.path.abspath(model_dir or models),
        host=host or (ALL_INTERFACES if model_dir is None else LOOPBACK),
        keep_packages=model_dir is not None,
        code_dir=code if os.path.isdir(code) else "",
        code_source=code if code.startswith("s3://") or os.path.isfile(code) else "",
        max_transforms=found.max_transforms if "max_transforms" in given else found.workers,
        batch_strategy=found.batch_strategy
        if "batch_strategy" in given
        else _default_strategy(environ),
        max_buffered=_max_buffered(found.max_payload, container.memory_limit()),
        secrets=secrets_in(environ),
        notes=(*_notes(environ), *_missing_model(model_dir, models, found.multi_model)),
    )


def _parallel(found: ServerSettings, given: FrozenSet[str]) -> ServerSettings:
    """Set the default numbers of workers and of threads for each.

    Together the workers have one thread for each CPU. One of multiple models has one worker,
    because the other models use the other CPUs.
    """
    cpus, gpus = container.count_cpus(), container.count_gpus()
    workers, threads = found.workers, found.threads
    if "workers" not in given:
        workers = gpus or (1 if found.multi_model else max(1, cpus // threads))
    if "threads" not in given and not found.multi_model:
        threads = max(1, cpus // workers)
    return replace(found, workers=workers, threads=threads, gpus=gpus)


def _argument(name: str, value: int) -> Found:
    return Found(value, name, name)


def _code(text: str) -> str:
    """Return the location of code that is apart from the model, or an empty string.

    The SDK's local mode mounts ``source_dir`` at ``/opt/ml/code``; for framework versions below 1.4
    the variable names an archive on S3. Otherwise it is empty, or names ``code`` in the model's
    directory.
    """
    path = text[len("file://") :] if text.startswith("file://") else text
    return path if os.path.isabs(path) or path.startswith("s3://") else ""


def _max_buffered(payload: int, memory: Optional[int]) -> int:
    """Return the limit of bytes of bodies: two of the largest, or a part of the memory."""
    part = 256 * MEGABYTE if memory is None else memory // 8
    return max(2 * payload, part)


def _default_strategy(environ: Mapping[str, str]) -> str:
    """Return the batch strategy in the spelling that the client expects.

    SageMaker's documentation has ``MULTI_RECORD``. The SDK's local mode, which sets
    ``SAGEMAKER_BATCH=True`` where SageMaker sets ``true``, accepts only ``MultiRecord``.
    """
    return "MultiRecord" if environ.get("SAGEMAKER_BATCH") == "True" else "MULTI_RECORD"


def _check_ports(settings: ServerSettings, sources: Sources, faults: Faults) -> None:
    metrics, allowed = settings.metrics_port, settings.safe_ports
    if metrics is None:
        return
    found = sources.variable(f"{PREFIX}METRICS_PORT")
    if metrics == settings.port:
        faults.add("the metrics cannot use the server's own port", found, "another port")
    if allowed is not None and not allowed[0] <= metrics <= allowed[1]:
        expected = f"a port from {allowed[0]} to {allowed[1]}"
        faults.add("the port is outside SAGEMAKER_SAFE_PORT_RANGE", found, expected)


def _missing_model(given: Optional[str], default: str, multi_model: bool) -> Sequence[str]:
    if given is not None or multi_model or os.path.isdir(default):
        return []
    remedy = "to serve the model in a directory DIR: sagemaker-mxnet-training serve DIR"
    return [f"{default} does not exist; {remedy}"]


def _notes(environ: Mapping[str, str]) -> Sequence[str]:
    """Return a warning for each variable that is set and has no effect."""
    notes = []
    for name in sorted(environ):
        if name.startswith("MMS_"):
            other = _MMS_REPLACEMENTS.get(name)
            hint = f": set {other} instead" if other else ""
            notes.append(f"{name} is a variable of multi-model-server and has no effect{hint}")
    if environ.get("SAGEMAKER_INFERENCE_ACCELERATOR_PRESENT", "").lower() == "true":
        notes.append(
            "SAGEMAKER_INFERENCE_ACCELERATOR_PRESENT has no effect: Amazon Elastic Inference has "
            "been shut down, and this server predicts on the CPU, or on the GPU if there is one"
        )
    return notes
