"""What can be wrong with a checkpoint."""

from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import FailureKind


class CheckpointError(Exception):
    """A checkpoint cannot be written, or there is none that training can go on from."""


class UnwrittenError(CheckpointError, JobError):
    """The last checkpoint, of a stop or of the end, cannot be written."""

    kind = FailureKind.CHECKPOINT


class DamagedError(CheckpointError):
    """A checkpoint file is not what was written. The text reads well after the file's name."""
