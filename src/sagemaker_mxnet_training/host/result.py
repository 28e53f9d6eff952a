"""The result of a job: the success or failure file, and the exit status.

The paths are SageMaker's: ``/opt/ml/output/failure``, whose first 1,024 characters become the job's
FailureReason, and ``/opt/ml/output/success`` ("How Amazon SageMaker Processes Training Output",
SageMaker developer guide).
"""

import ast
import contextlib
import os
from typing import TYPE_CHECKING, Optional

from sagemaker_mxnet_toolkit.atomic_files import write_text
from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import FailureKind, Outcome, Role

if TYPE_CHECKING:
    from sagemaker_mxnet_training.cluster.events import Verdict

_PREPARED = ".success.prepared"


class ResultError(JobError):
    """The result of the job cannot be written."""

    kind = FailureKind.OUTPUT


def failure_path(output_dir: str) -> str:
    """Return the path of the failure file."""
    return os.path.join(output_dir, "failure")


def clear(output_dir: str) -> None:
    """Remove the result files of an earlier job."""
    for name in ("success", "failure", _PREPARED):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(output_dir, name))


def prepare_success(output_dir: str) -> None:
    """Write the success file under a temporary name; ``commit_success`` renames it.

    All hosts do this before any of them reports success, so that a full disk on one host fails the
    job on all.

    Raises:
        ResultError: the file cannot be written.
    """
    path = os.path.join(output_dir, _PREPARED)
    try:
        os.makedirs(output_dir, exist_ok=True)
        # It is empty, so it is not flushed, which could take as long as writing the model.
        with open(path, "wb"):
            pass
    except OSError as error:
        raise ResultError(
            f"cannot write the success file: {path}: {error.strerror}; "
            "expected a writable volume with free space"
        ) from error


def commit_success(output_dir: str) -> None:
    """Rename the prepared success file to its final name."""
    os.rename(os.path.join(output_dir, _PREPARED), os.path.join(output_dir, "success"))


def write_failure(output_dir: str, text: str) -> Optional[str]:
    """Write the failure file atomically, unless the user's script has written one.

    Returns:
        The error message if it could not be written, or ``None``.
    """
    path = failure_path(output_dir)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(output_dir, _PREPARED))
    if os.path.exists(path):
        return None
    try:
        os.makedirs(output_dir, exist_ok=True)
        write_text(path, text.rstrip() + "\n")
    except OSError as error:
        return f"cannot write {path}: {error.strerror}"
    return None


def has_model(model_dir: str) -> bool:
    """Return whether there is a file in the model directory."""
    return any(files for _, _, files in os.walk(model_dir))


def no_model(model_dir: str, script: str) -> str:
    """Return the warning for a job that has succeeded without a model.

    Args:
        model_dir: the model directory.
        script: path of the entry point.
    """
    text = (
        f"the job succeeded without a model: {model_dir} is empty on all hosts; save the model "
        "with sagemaker_mxnet_training.training_utils.save(os.environ['SM_MODEL_DIR'], model)"
    )
    if _has_uncalled_train(script):
        text += (
            f"; {os.path.basename(script)} defines train() but does not call it (early containers "
            "did): call it under `if __name__ == '__main__':`"
        )
    return text


def _has_uncalled_train(script: str) -> bool:
    try:
        with open(script, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return False
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return "train" in defined - names


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
        # 143 (128 + SIGTERM) if the script was never started.
        return 143 if worker_status is None else worker_status
    failure = verdict.failure
    if failure is not None and failure.host == host and failure.role is Role.WORKER:
        return failure.status or 1
    return 1
