"""What the front and the processes of a model exchange about it.

The front sends the settings; a process returns the description of the model, or an error.
"""

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional

from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import FailureKind


@dataclass(frozen=True)
class ModelSettings:
    """One model.

    Attributes:
        model_dir: the directory of the model's files and of ``code/``.
        program: the script, as for ``model_directory.locate``.
        accept: content type of a response if the request has no Accept.
        first_dimension: rows of each batch; default: any number if the network allows it, else as
            saved.
        use_gpu: whether the model predicts on the first GPU.
        max_batch: largest number of requests in a batch; 0 or 1: no batching.
        code_dir: the directory of the script, if it is apart from the model.
        log_level: level of the script's root logger.
    """

    model_dir: str
    program: str = ""
    accept: str = "application/json"
    first_dimension: Optional[int] = None
    use_gpu: bool = False
    max_batch: int = 1
    code_dir: str = ""
    log_level: int = 20


class ModelError(JobError):
    """The model cannot be served, because of its files or its script."""

    kind = FailureKind.MODEL


class ModelMemoryError(ModelError):
    """There is not enough memory for the model."""

    kind = FailureKind.OUT_OF_MEMORY


def description_lines(description: Mapping[str, Any]) -> List[str]:
    """Return a line for each entry of a description by ``Service.describe``."""
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
