"""What a job leaves behind to say how it ended: the success or failure file, the exit status.

Paths and meanings are SageMaker's: ``/opt/ml/output/failure``, whose first 1,024 characters
become the job's FailureReason, and ``/opt/ml/output/success``
("How Amazon SageMaker Processes Training Output", SageMaker developer guide).
"""

import contextlib
import os
from typing import TYPE_CHECKING, Optional

from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import FailureKind, Outcome, Role

if TYPE_CHECKING:
    from sagemaker_mxnet_training.cluster.coordination import Verdict

_PREPARED = ".success.prepared"


class ResultError(JobError):
    """The result of the job cannot be written."""

    kind = FailureKind.OUTPUT


def failure_path(output_dir: str) -> str:
    """Return the path of the failure file."""
    return os.path.join(output_dir, "failure")


def clear(output_dir: str) -> None:
    """Remove the result of an earlier job, so that it is not taken for this job's."""
    for name in ("success", "failure", _PREPARED):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(output_dir, name))


def prepare_success(output_dir: str) -> None:
    """Do everything about the success file that can fail; ``commit_success`` does the rest.

    Every host does this before any of them reports success, so that a full disk on one is a
    failure on all.

    Raises:
        ResultError: the file cannot be written.
    """
    path = os.path.join(output_dir, _PREPARED)
    try:
        os.makedirs(output_dir, exist_ok=True)
        # It is empty, so there is nothing to flush: that could take as long as writing the model.
        with open(path, "wb"):
            pass
    except OSError as error:
        raise ResultError(
            f"cannot write the success file: {path}: {error.strerror}; "
            "free some space on it, or mount it writable"
        ) from error


def commit_success(output_dir: str) -> None:
    """Rename the prepared success file to its final name."""
    os.rename(os.path.join(output_dir, _PREPARED), os.path.join(output_dir, "success"))


def write_failure(output_dir: str, text: str) -> Optional[str]:
    """Write the failure file, whole or not at all. One that the user's script wrote is kept.

    Returns:
        Why it could not be written, or ``None``.
    """
    path = failure_path(output_dir)
    temporary = os.path.join(output_dir, ".failure.tmp")
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(output_dir, _PREPARED))
    if os.path.exists(path):
        return None
    try:
        os.makedirs(output_dir, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", errors="replace") as file:
            file.write(text.rstrip() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        return f"cannot write {path}: {error.strerror}"
    return None


def process_status(verdict: "Verdict", host: str, worker_status: Optional[int]) -> int:
    """Return the exit status of the entrypoint.

    Args:
        verdict: how the job ended.
        host: this host.
        worker_status: exit status of this host's worker, in the shell's convention, if it ran.
    """
    if verdict.outcome is Outcome.SUCCESS:
        return 0
    if verdict.outcome is Outcome.STOP:
        # A script that was never started has no status; 143 is that of a process ended by SIGTERM.
        return 143 if worker_status is None else worker_status
    failure = verdict.failure
    if failure is not None and failure.host == host and failure.role is Role.WORKER:
        return failure.status or 1
    return 1
