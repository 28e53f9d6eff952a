"""The result of a job: the success or failure file, the timeline, and the exit status.

Files are written in a thread, since this may take minutes on a slow disk.

The paths are SageMaker's: ``/opt/ml/output/failure``, whose first 1,024 characters become the job's
FailureReason, and ``/opt/ml/output/success`` ("How Amazon SageMaker Processes Training Output",
SageMaker developer guide).
"""

import ast
import contextlib
import os
import selectors
import time
from dataclasses import replace
from typing import Any, Callable, Optional

from sagemaker_mxnet_toolkit.atomic_files import remove_leftovers, write_text
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.background import BackgroundCall
from sagemaker_mxnet_training.cluster.events import Verdict
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import verdict_text
from sagemaker_mxnet_training.host.timeline import Timeline

DISK_TIMEOUT = 600.0
"""Timeout for writing a result file, in seconds.

Everything that the job has written may have to be flushed first: 30 GB at 50 MB/s.
"""

_NOTICE_PERIOD = 15.0
_BEAT_PERIOD = 0.5
_PREPARED = ".success.prepared"


def failure_path(output_dir: str) -> str:
    """Return the path of the failure file."""
    return os.path.join(output_dir, "failure")


def clear(output_dir: str) -> None:
    """Remove the result files of an earlier job."""
    for name in ("success", "failure", _PREPARED):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(output_dir, name))


def prepare_success(output_dir: str) -> Optional[str]:
    """Write the success file under a temporary name; ``commit_success`` renames it.

    All hosts do this before any of them reports success, so that a full disk on one host fails the
    job on all.

    Returns:
        The error message if it could not be written, or ``None``.
    """
    path = os.path.join(output_dir, _PREPARED)
    try:
        os.makedirs(output_dir, exist_ok=True)
        # It is empty, so it is not flushed, which could take as long as writing the model.
        with open(path, "wb"):
            pass
    except OSError as error:
        return (
            f"cannot write the success file: {path}: {error.strerror}; "
            "expected a writable volume with free space"
        )
    return None


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
    """Return the warning for a job that has succeeded without a model."""
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
        # 143 (128 + SIGTERM) if the script was never started.
        return 143 if worker_status is None else worker_status
    failure = verdict.failure
    if failure is not None and failure.host == host and failure.role is Role.WORKER:
        return failure.status or 1
    return 1


class DiskWait:
    """Limits and logs the wait for an operation on a slow disk.

    Args:
        directory: the directory that is written to.
    """

    def __init__(self, log: Log, directory: str) -> None:
        self._log = log
        self._directory = directory
        self._started = self._noticed = time.monotonic()

    def expired(self, now: float) -> bool:
        """Return whether the operation has timed out; log the wait periodically."""
        if now - self._noticed >= _NOTICE_PERIOD:
            self._noticed = now
            left = self._started + DISK_TIMEOUT - now
            text = f"waiting for the disk of {self._directory}, timeout in {left:.0f} s"
            self._log("entrypoint", text)
        return now - self._started >= DISK_TIMEOUT

    def failure(self, host: str) -> Failure:
        """Return the failure for a timeout."""
        reason = (
            f"writing the result to {self._directory} timed out after {DISK_TIMEOUT:g} s; "
            "expected a working volume that is fast enough for the job's output"
        )
        return _failure(host, reason)


class ResultPreparation:
    """Prepares the success file in a thread, before any host reports success.

    Args:
        log: logs the wait for a slow disk.
        on_done: called once with the failure or ``None``, unless ``cancel`` was called.
    """

    def __init__(
        self,
        job: Job,
        log: Log,
        selector: selectors.BaseSelector,
        on_done: Callable[[Optional[Failure]], None],
    ) -> None:
        self._host = job.current_host
        self._on_done: Optional[Callable[[Optional[Failure]], None]] = on_done
        self._wait = DiskWait(log, job.output_dir)
        BackgroundCall(lambda: prepare_success(job.output_dir), selector, self._on_call)

    def tick(self, now: float) -> None:
        """Check the timeout, and log the wait periodically."""
        if self._on_done is not None and self._wait.expired(now):
            self._finish(self._wait.failure(self._host))

    def cancel(self) -> None:
        """Do not call ``on_done``, since another attempt starts."""
        self._on_done = None

    def _on_call(self, call: BackgroundCall) -> None:
        problem = call.result()
        self._finish(None if problem is None else _failure(self._host, problem))

    def _finish(self, failure: Optional[Failure]) -> None:
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(failure)


def conclude(
    job: Job,
    log: Log,
    timeline: Timeline,
    verdict: Verdict,
    worker_status: Optional[int],
    started: float,
    beat: Callable[[], None],
) -> int:
    """Write the result files and the timeline, log the end, and return the exit status.

    Args:
        job: the job.
        log: the entrypoint's log.
        timeline: the timeline.
        verdict: how the job ended.
        worker_status: exit status of this host's script, if it ran.
        started: when the job started on this host (monotonic, seconds).
        beat: sends a heartbeat to the watchdog; called every half second.
    """

    def on_disk(function: Callable[[], Any]) -> Any:
        call, wait = BackgroundCall(function), DiskWait(log, job.output_dir)
        while not call.wait(_BEAT_PERIOD):
            beat()
            if wait.expired(time.monotonic()):
                return wait.failure(job.current_host)
        return call.result()

    text = log.redact(verdict_text.failure_text(verdict))
    failure = on_disk(lambda: _write_result(job, verdict.outcome, text))
    if failure is not None:
        if verdict.outcome is Outcome.SUCCESS:
            verdict = replace(verdict, outcome=Outcome.FAILURE, failure=failure)
            timeline.failure(failure, time.monotonic())
            on_disk(lambda: write_failure(job.output_dir, failure.text()))
        else:
            log.error("entrypoint", failure.reason)
    seconds = time.monotonic() - started
    if verdict.failure is not None:
        block = verdict_text.failure_block(verdict, job.current_host, seconds, job.code_dir)
        log.error("entrypoint", block)
    if verdict.outcome is Outcome.SUCCESS and job.is_leader and not verdict.saved:
        script = os.path.join(job.code_dir, job.entry_point)
        log.warning("entrypoint", no_model(job.model_dir, script))
    status = process_status(verdict, job.current_host, worker_status)
    log(
        "entrypoint",
        verdict_text.closing_line(verdict.outcome, seconds, status, verdict.restarts),
    )
    about = {"job": job.job_name, "hosts": job.hosts, "exit status": status}
    shown = _redacted(verdict, log)
    on_disk(lambda: timeline.write(job.output_data_dir, shown, about))
    return status


def _write_result(job: Job, outcome: Outcome, text: str) -> Optional[Failure]:
    """Write the success or the failure file; return the failure if that is not possible."""
    with contextlib.suppress(OSError):
        # Temporary files of an interrupted save must not be uploaded with the model.
        remove_leftovers(job.model_dir)
    problem = None
    if outcome is Outcome.SUCCESS:
        try:
            commit_success(job.output_dir)
        except OSError as error:
            problem = f"cannot write the success file in {job.output_dir}: {error.strerror}"
    elif outcome is Outcome.FAILURE:
        problem = write_failure(job.output_dir, text)
    return None if problem is None else _failure(job.current_host, problem)


def _failure(host: str, reason: str) -> Failure:
    return Failure(host, Role.ENTRYPOINT, reason, kind=FailureKind.OUTPUT)


def _redacted(verdict: Verdict, log: Log) -> Verdict:
    shown = failure = verdict.failure
    if failure is not None:
        reason, detail = log.redact(failure.reason), log.redact(failure.detail)
        shown = replace(failure, reason=reason, detail=detail)
    return replace(verdict, failure=shown, first_cause=log.redact(verdict.first_cause))
