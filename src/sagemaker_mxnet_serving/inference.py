"""What the front, the workers and scripts share: models, requests, responses, and their errors."""

from dataclasses import dataclass, field
from typing import Any, List, Mapping, Optional

from sagemaker_mxnet_toolkit.failure import FailureKind, JobError

# Some clients send the character set in this header.
_NOT_COMPRESSED = ("", "identity", "utf-8", "utf8")


@dataclass(frozen=True)
class Request:
    """A request to ``/invocations``, as a worker gets it.

    Attributes:
        id: names the request in the log, in an error and in a header of the response.
        body: the body; in a worker a bytearray, which the script may write to.
        content_type: the header Content-Type; empty without one.
        accept: the header Accept; empty without one.
        headers: all headers, with names in lower case.
    """

    id: str
    body: bytes = field(repr=False)
    content_type: str = ""
    accept: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """The response to a ``Request``.

    Attributes:
        status: the HTTP status.
        body: the body.
        content_type: the header Content-Type.
        headers: further headers, such as ``X-Amzn-SageMaker-Custom-Attributes``.
    """

    status: int
    body: bytes = field(repr=False)
    content_type: str = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)


def check_not_compressed(headers: Mapping[str, str]) -> None:
    """Check that the body of a request is not compressed, since the server does not decompress it.

    Args:
        headers: those of the request, with names in lower case.

    Raises:
        InferenceError: 415, naming the header Content-Encoding.
    """
    encoding = headers.get("content-encoding", "").strip()
    if encoding.lower() not in _NOT_COMPRESSED:
        raise InferenceError(
            f"Content-Encoding {encoding[:40]!r} is not supported; send the body uncompressed, "
            "without this header",
            415,
        )


class InferenceError(Exception):
    """An error that the client sees. An inference script may raise it.

    Args:
        message: the body of the response.
        status: the HTTP status, from 400 to 599.
    """

    status = 400  # of a subclass that does not call this one's __init__

    def __init__(self, message: str, status: int = 400) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"status {status}: expected an integer from 400 to 599")
        super().__init__(message)
        self.status = status


def error_response(error: InferenceError) -> Response:
    """Return the response for an error: its text, and its status or 500 if that is not valid."""
    # A script may set the status to any value.
    valid = isinstance(error.status, int) and 400 <= error.status <= 599
    return Response(error.status if valid else 500, f"{error}\n".encode("utf-8", "replace"))


@dataclass(frozen=True)
class ModelSettings:
    """One model.

    Attributes:
        model_dir: the directory of the model's files and of ``code/``.
        program: the script, as for ``model_directory.locate``.
        accept: content type of a response if the request has no Accept.
        first_dimension: rows of each batch; default: any number if the network allows it, else as
            saved.
        gpus: number of GPUs, which workers use in turn; 0: the model predicts on the CPU.
        max_batch: largest number of requests in a batch; 0 or 1: no batching.
        code_dir: the directory of the script, if it is apart from the model.
        log_level: level of the script's root logger.
        shared: whether the model is loaded before workers are forked, and not in each of them.
    """

    model_dir: str
    program: str = ""
    accept: str = "application/json"
    first_dimension: Optional[int] = None
    gpus: int = 0
    max_batch: int = 1
    code_dir: str = ""
    log_level: int = 20
    shared: bool = True


class ModelError(JobError):
    """The model cannot be served, because of its files or its script."""

    kind = FailureKind.MODEL


class ModelMemoryError(ModelError):
    """There is not enough memory for the model."""

    kind = FailureKind.OUT_OF_MEMORY


MEMORY_REMEDY = (
    "give the container more memory, or start fewer workers (SAGEMAKER_MODEL_SERVER_WORKERS)"
)
"""What to do if there is not enough memory."""


def description_lines(description: Mapping[str, Any]) -> List[str]:
    """Return a line for each entry of a description by ``LoadedModel.describe``."""
    return [f"{name}: {_shown(value)}" for name, value in description.items()]


def _shown(value: Any) -> str:
    """Return a value of a description as text: an input as ``x float32 (rows, 784)``."""
    if isinstance(value, Mapping) and "shape" in value:
        shape = value["shape"]
        axes = "unknown" if shape is None else ", ".join(str(n or "rows") for n in shape)
        return f"{value.get('name')} {value.get('dtype')} ({axes})"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_shown, value)) or "none"
    return "none" if value is None else str(value)
