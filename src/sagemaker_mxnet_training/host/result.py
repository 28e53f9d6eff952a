"""What a job leaves behind to say how it ended: the success and failure files, the last words.

Paths and meanings are SageMaker's: ``/opt/ml/output/failure``, whose first 1,024 characters
become the job's FailureReason, and ``/opt/ml/output/success``
("How Amazon SageMaker Processes Training Output", SageMaker developer guide).
"""

import contextlib
import os
from typing import Optional

from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import Failure, Outcome, Role
from sagemaker_mxnet_training.cluster.coordination import Verdict

INTERNAL = "internal error"
"""How the reason of a failure begins that is a defect of this package."""

OUT_OF_MEMORY = "out of memory"
"""How the reason of a failure begins that the container's memory limit brought about."""

_ADVICE = {
    Role.INSTALL: "correct requirements.txt, or add what it needs to the image",
    Role.FETCH: "check sagemaker_submit_directory and what it names",
}
_PREPARED = ".success.prepared"


class ResultError(JobError):
    """The result of the job cannot be written."""


def failure_path(output_dir: str) -> str:
    """Return the path of the failure file."""
    return os.path.join(output_dir, "failure")


def clear(output_dir: str) -> None:
    """Remove the result of an earlier job, so that it is never taken for this one's."""
    for name in ("success", "failure", _PREPARED):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(output_dir, name))


def prepare_success(output_dir: str) -> None:
    """Do all of writing the success file that can fail, and leave the rest to ``commit_success``.

    Every host does this before any of them reports success, so that a full disk on one is a
    failure on all.

    Raises:
        ResultError: the file cannot be written.
    """
    path = os.path.join(output_dir, _PREPARED)
    try:
        os.makedirs(output_dir, exist_ok=True)
        # Nothing is in it to be flushed, which may take as long as the job took to write its model.
        with open(path, "wb"):
            pass
    except OSError as error:
        raise ResultError(
            f"cannot write the success file: {path}: {error.strerror}; "
            "free some space on it, or mount it writable"
        ) from error


def commit_success(output_dir: str) -> None:
    """Let the prepared success file appear."""
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


def process_status(verdict: Verdict, host: str, worker_status: Optional[int]) -> int:
    """Return the exit status of the entrypoint.

    Args:
        verdict: how the job ended.
        host: this host.
        worker_status: exit status of this host's worker, in the shell's convention, if it ran.
    """
    if verdict.outcome is Outcome.SUCCESS:
        return 0
    if verdict.outcome is Outcome.STOP:
        # A script that was never started has no status: that of a process which SIGTERM ended.
        return 143 if worker_status is None else worker_status
    failure = verdict.failure
    if failure is not None and failure.host == host and failure.role is Role.WORKER:
        return failure.status or 1
    return 1


def last_words(failure: Failure, host: str, seconds: float, code_dir: str) -> str:
    """Return the block with which a failed job ends its log on every host."""
    lines = [
        "the job FAILED",
        f"  cause: {failure.headline()}",
        f"  host:  {failure.host}{' (this host)' if failure.host == host else ''}",
        f"  role:  {failure.role.value}",
        f"  ran:   {seconds:.1f} s",
    ]
    if failure.detail:
        lines.append("  detail:")
        lines += [f"    {line}" for line in failure.detail.splitlines()[-20:]]
    lines.append(f"  next:  {_advice(failure, host, code_dir)}")
    return "\n".join(lines)


def _advice(failure: Failure, host: str, code_dir: str) -> str:
    here = failure.host == host
    if failure.reason.startswith(INTERNAL):
        return "this is a defect of sagemaker-mxnet-training: please report it with this log"
    if failure.role is Role.ENTRYPOINT:
        there = f"look at the log and at the machine of {failure.host}"
        return "the cause says what was expected" if here else there
    if failure.reason.startswith(OUT_OF_MEMORY):
        return "give the container more memory, or let the script use less (batch size, workers)"
    if failure.role in _ADVICE:
        return _ADVICE[failure.role]
    if not here:
        return f"read the log of {failure.host} above its own last lines"
    return f"read the lines above; the code is in {code_dir}"
