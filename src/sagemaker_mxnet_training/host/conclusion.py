"""Writes the result files and the timeline at the end of a job, and logs how it ended."""

import contextlib
import os
import selectors
import time
from dataclasses import replace
from typing import Any, Callable, Optional

from sagemaker_mxnet_toolkit import atomic_files
from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.background import BackgroundCall
from sagemaker_mxnet_training.cluster.events import Verdict
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import result, verdict_text
from sagemaker_mxnet_training.host.timeline import Timeline

DISK_TIMEOUT = 600.0
"""Timeout for writing a result file, in seconds.

Everything that the job has written may have to be flushed first: 30 GB at 50 MB/s.
"""

_NOTICE_PERIOD = 15.0
_BEAT_PERIOD = 0.5


class DiskWait:
    """Limits and logs the wait for an operation on a slow disk.

    Args:
        log: the entrypoint's log.
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
        return Failure(host, Role.ENTRYPOINT, reason, kind=FailureKind.OUTPUT)


class ResultPreparation:
    """Prepares the success file in a thread, before any host reports success.

    Args:
        log: the entrypoint's log.
        directory: the directory of the result files.
        host: the name of this host.
        selector: the supervisor's.
        on_done: called once with the failure or ``None``, unless ``cancel`` was called.
    """

    def __init__(
        self,
        log: Log,
        directory: str,
        host: str,
        selector: selectors.BaseSelector,
        on_done: Callable[[Optional[Failure]], None],
    ) -> None:
        self._host = host
        self._on_done: Optional[Callable[[Optional[Failure]], None]] = on_done
        self._wait = DiskWait(log, directory)
        BackgroundCall(lambda: result.prepare_success(directory), selector, self._on_call)

    def tick(self, now: float) -> None:
        """Check the timeout, and log the wait periodically."""
        if self._on_done is not None and self._wait.expired(now):
            self._finish(self._wait.failure(self._host))

    def cancel(self) -> None:
        """Do not call ``on_done``, since another attempt starts."""
        self._on_done = None

    def _on_call(self, call: BackgroundCall) -> None:
        try:
            call.result()
        except JobError as error:
            self._finish(Failure(self._host, Role.ENTRYPOINT, str(error), error.kind))
        else:
            self._finish(None)

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
            on_disk(lambda: result.write_failure(job.output_dir, failure.text()))
        else:
            log.error("entrypoint", failure.reason)
    seconds = time.monotonic() - started
    if verdict.failure is not None:
        block = verdict_text.failure_block(verdict, job.current_host, seconds, job.code_dir)
        log.error("entrypoint", block)
    if verdict.outcome is Outcome.SUCCESS and job.is_leader and not verdict.saved:
        script = os.path.join(job.code_dir, job.entry_point)
        log.warning("entrypoint", result.no_model(job.model_dir, script))
    status = result.process_status(verdict, job.current_host, worker_status)
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
        atomic_files.remove_leftovers(job.model_dir)
    problem = None
    if outcome is Outcome.SUCCESS:
        try:
            result.commit_success(job.output_dir)
        except OSError as error:
            problem = f"cannot write the success file in {job.output_dir}: {error.strerror}"
    elif outcome is Outcome.FAILURE:
        problem = result.write_failure(job.output_dir, text)
    if problem is None:
        return None
    return Failure(job.current_host, Role.ENTRYPOINT, problem, kind=FailureKind.OUTPUT)


def _redacted(verdict: Verdict, log: Log) -> Verdict:
    shown = failure = verdict.failure
    if failure is not None:
        reason, detail = log.redact(failure.reason), log.redact(failure.detail)
        shown = replace(failure, reason=reason, detail=detail)
    return replace(verdict, failure=shown, first_cause=log.redact(verdict.first_cause))
