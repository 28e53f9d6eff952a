"""The error of a model that cannot be served."""

from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import FailureKind


class ModelError(JobError):
    """The model cannot be served: its files, its script, or what its functions did."""

    kind = FailureKind.MODEL
