"""The errors of a model that cannot be served."""

from typing import Optional

from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import FailureKind


class ModelError(JobError):
    """The model cannot be served: its files, its script, or what its functions did."""

    kind = FailureKind.MODEL


class ModelMemoryError(ModelError):
    """There is not enough memory for the model."""

    kind = FailureKind.OUT_OF_MEMORY


# What libmxnet 1.9.1 says of its own allocations; a RuntimeError of MXNet's, and of others that
# allocate for themselves, carries it.
_MEMORY_TEXTS = ("out of memory", "Failed to allocate CPU Memory", "bad_alloc")


def is_memory_error(error: Optional[BaseException]) -> bool:
    """Tell whether an error, or what caused it, is that memory is used up."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS):
            return True
        error = error.__cause__
    return False
