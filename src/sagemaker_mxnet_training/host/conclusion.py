"""The last thing that a host does: it writes the result of the job and says how the job ended."""

import contextlib
import selectors
import time
from dataclasses import replace
from typing import Any, Callable, Optional

from sagemaker_mxnet_toolkit import fileset
from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.background import BackgroundCall
from sagemaker_mxnet_training.cluster.coordination import Verdict
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import result, verdict_text
from sagemaker_mxnet_training.host.timeline import Timeline

DISK_TIMEOUT = 600.0
"""Seconds that the disk has to take a result file.

All that a job has written may have to reach the disk before it: 30 GB, at 50 MB/s.
"""

_NOTICE_PERIOD = 15.0
_BEAT_PERIOD = 0.5


class DiskWait:
    """Limits and logs the wait for an operation on a slow disk.

    Args:
        log: the entrypoint's log.
        directory: what is written to.
    """

    def __init__(self, log: Log, directory: str) -> None:
        self._log = log
        self._directory = directory
        self._started = self._noticed = time.monotonic()

    def expired(self, now: float) -> bool:
        """Return whether the operation has taken too long; log now and then that it goes on."""
        if now - self._noticed >= _NOTICE_PERIOD:
            self._noticed = now
            left = self._started + DISK_TIMEOUT - now
            self._log("entrypoint", f"waiting for the disk of {self._directory}, {left:.0f} s left")
        return now - self._started >= DISK_TIMEOUT

    def failure(self, host: str) -> Failure:
        """Return what it is when the disk did not answer in time."""
        reason = (
            f"the disk of {self._directory} did not take the result within {DISK_TIMEOUT:g} s; "
            "expected a volume that works, and that is fast enough for what the job writes"
        )
        return Failure(host, Role.ENTRYPOINT, reason, kind=FailureKind.OUTPUT)


class ResultPreparation:
    """Makes the success file ready beside the loop, before anybody reports success.

    Args:
        log: the entrypoint's log.
        directory: where result files are written.
        host: the name of this host.
        selector: the supervisor's.
        on_done: called once, with what is wrong or with ``None``, unless ``give_up`` was called.
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
        """Give up a disk that does not answer; log now and then that it is waited for."""
        if self._on_done is not None and self._wait.expired(now):
            self._finish(self._wait.failure(self._host))

    def give_up(self) -> None:
        """Forget it: another attempt begins."""
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
    """Write the result files and the timeline, end the log, and return the exit status.

    Args:
        job: the job.
        log: the entrypoint's log.
        timeline: complete, except for the last failure.
        verdict: how the job ended.
        worker_status: exit status of this host's script, if it ran.
        started: when the job began here (monotonic, seconds).
        beat: tells the watchdog that this process lives; called every half second.
    """

    def on_disk(function: Callable[[], Any]) -> Any:
        call, wait = BackgroundCall(function), DiskWait(log, job.output_dir)
        while not call.wait(_BEAT_PERIOD):
            beat()
            if wait.expired(time.monotonic()):
                return wait.failure(job.current_host)
        return call.result()

    text = log.redact(verdict_text.failure_text(verdict))
    trouble = on_disk(lambda: _write_result(job, verdict.outcome, text))
    if trouble is not None:
        if verdict.outcome is Outcome.SUCCESS:
            verdict = replace(verdict, outcome=Outcome.FAILURE, failure=trouble)
            timeline.failure(trouble, time.monotonic())
            on_disk(lambda: result.write_failure(job.output_dir, trouble.text()))
        else:
            log.error("entrypoint", trouble.reason)
    seconds = time.monotonic() - started
    if verdict.failure is not None:
        words = verdict_text.failure_block(verdict, job.current_host, seconds, job.code_dir)
        log.error("entrypoint", words)
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
    """Write the success or the failure file; return a failure where that is impossible."""
    with contextlib.suppress(OSError):
        # A save that was cut short leaves nothing of its own to the model's archive.
        fileset.settle(job.model_dir)
    trouble = None
    if outcome is Outcome.SUCCESS:
        try:
            result.commit_success(job.output_dir)
        except OSError as error:
            trouble = f"cannot write the success file in {job.output_dir}: {error.strerror}"
    elif outcome is Outcome.FAILURE:
        trouble = result.write_failure(job.output_dir, text)
    if trouble is None:
        return None
    return Failure(job.current_host, Role.ENTRYPOINT, trouble, kind=FailureKind.OUTPUT)


def _redacted(verdict: Verdict, log: Log) -> Verdict:
    shown = failure = verdict.failure
    if failure is not None:
        reason, detail = log.redact(failure.reason), log.redact(failure.detail)
        shown = replace(failure, reason=reason, detail=detail)
    return replace(verdict, failure=shown, first_cause=log.redact(verdict.first_cause))
