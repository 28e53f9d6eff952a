"""The event loop of a host, which owns its processes, signals, deadlines and orders.

Events are ready file descriptors and passed deadlines. A host reports them to the leader, which
decides what they mean for the job (``cluster.decision``), and carries out its orders
(``host.steps``).
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from typing import Optional

from sagemaker_mxnet_toolkit.failure import (
    Failure,
    FailureKind,
    JobError,
    Outcome,
    Role,
    StartError,
    signal_name,
)
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.own_process import STOP_SIGNALS, SignalPipe, become_subreaper
from sagemaker_mxnet_toolkit.settings.variables import JOB_ID
from sagemaker_mxnet_training.cluster.events import Stop, Verdict
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import result
from sagemaker_mxnet_training.host.result import conclude
from sagemaker_mxnet_training.host.steps import Steps
from sagemaker_mxnet_training.host.timeline import Timeline
from sagemaker_mxnet_training.roles import watchdog

ABORT_TIMEOUT = 4.0
"""Seconds to notify the other hosts and to kill all processes after an error in the entrypoint."""


class Watchdog:
    """Starts the watchdog, sends it heartbeats, and stops it at the end of the job.

    The watchdog (``roles.watchdog``) kills the host's processes if the supervisor dies or hangs.
    """

    def __init__(self, job: Job, job_id: str) -> None:
        """Start the process.

        Args:
            job: the job. After ``peer_timeout`` without a heartbeat, the supervisor hangs.
            job_id: value of ``JOB_ID`` in all processes of the host.

        Raises:
            StartError: it cannot be started.
        """
        read_end, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        arguments = (
            str(read_end),
            str(job.settings.peer_timeout),
            f"{JOB_ID}={job_id}",
            result.failure_path(job.output_dir),
            job.current_host,
            str(os.getpid()),
        )
        environment = {k: v for k, v in job.environ.items() if k != JOB_ID}
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-u", os.path.abspath(watchdog.__file__), *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(read_end,),
                start_new_session=True,
            )
        except OSError as error:
            raise StartError("the watchdog", error) from error
        os.close(read_end)
        self.pid = self._popen.pid

    def beat(self) -> None:
        """Send a heartbeat."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, watchdog.BEAT)

    def release(self) -> None:
        """Stop the watchdog."""
        with contextlib.suppress(OSError):
            os.write(self._pipe, watchdog.CLEAN_END)
        os.close(self._pipe)
        self._popen.kill()
        self._popen.wait()


class Supervisor:
    """Runs one job on one host, from the user's code to the result files."""

    def __init__(self, job: Job, log: Log, timeline: Timeline) -> None:
        self._job = job
        self._log = log
        self._timeline = timeline
        self._started = time.monotonic()
        self._job_id = os.urandom(16).hex()
        self._selector = selectors.DefaultSelector()
        self._steps: Optional[Steps] = None
        self._watchdog: Optional[Watchdog] = None
        self._signalled = False

    def run(self, fault: str = "") -> int:
        """Run the job to its end; return the exit status of the entrypoint.

        Args:
            fault: why the job cannot run on this host; nothing is started, but the other hosts are
                notified.
        """
        with SignalPipe((*STOP_SIGNALS, signal.SIGCHLD)) as signals:
            self._selector.register(
                signals, selectors.EVENT_READ, lambda mask: self._on_signals(signals)
            )
            try:
                verdict = self._run(fault)
            except JobError as error:
                verdict = self._abort(str(error), error.kind)
            except Exception as error:
                text = f"internal error: {type(error).__name__}: {error}"
                verdict = self._abort(text, FailureKind.INTERNAL, traceback.format_exc())
            return self._conclude(verdict)

    def _run(self, fault: str) -> Verdict:
        result.clear(self._job.output_dir)
        # Before the watchdog starts: the process table has to find existing children otherwise,
        # which takes long.
        steps = self._steps = Steps(
            self._job, self._log, self._timeline, self._selector, {JOB_ID: self._job_id}
        )
        if not fault:
            become_subreaper()
            self._watchdog = Watchdog(self._job, self._job_id)
            steps.table.exclude(self._watchdog.pid)
        steps.begin(fault)
        while not steps.over(time.monotonic()):
            self._turn(steps)
        assert steps.verdict is not None
        return steps.verdict

    def _turn(self, steps: Steps) -> None:
        self._beat()
        now = time.monotonic()
        due = min(steps.tick(now), steps.coordinator.tick(now))
        if steps.over(time.monotonic()):
            return
        for key, mask in self._selector.select(max(0.0, due - time.monotonic())):
            # An earlier handler may have closed this file.
            if self._selector.get_map().get(key.fd) is key:
                key.data(mask)

    def _on_signals(self, signals: SignalPipe) -> None:
        for number in signals.read():
            if number in STOP_SIGNALS and self._steps is not None:
                self._on_stop_signal(number, self._steps)

    def _on_stop_signal(self, number: int, steps: Steps) -> None:
        self._timeline.instant("signal", signal_name(number), "received")
        if steps.verdict is not None:
            return
        # All hosts may be signalled to stop a job, so only a second signal to this host counts.
        again, self._signalled = self._signalled, True
        stopping = steps.attempt.stop is not None
        if again and stopping:
            name = signal_name(number)
            self._log("entrypoint", f"received {name}, a second stop signal: killing everything")
            steps.table.kill()
            steps.coordinator.give_up()
            return
        self._log("entrypoint", f"received {signal_name(number)}")
        if not stopping:
            stop = Stop(self._job.current_host, number)
            steps.coordinator.report_stop(stop, time.monotonic())

    def _beat(self) -> None:
        if self._watchdog is not None:
            self._watchdog.beat()

    def _abort(self, reason: str, kind: FailureKind, trace: str = "") -> Verdict:
        """Fail because of an error in the entrypoint; notify the other hosts if possible."""
        host, redact, steps = self._job.current_host, self._log.redact, self._steps
        failure = Failure(host, Role.ENTRYPOINT, redact(reason), kind, None, redact(trace))
        now = time.monotonic()
        deadline = now + ABORT_TIMEOUT
        if steps is None:
            self._timeline.failure(failure, now)
            return Verdict(Outcome.FAILURE, failure)
        with contextlib.suppress(Exception):
            self._timeline.failure(failure, now)
            steps.coordinator.report_failure(failure, now)
            while not steps.over(time.monotonic()) and time.monotonic() < deadline:
                self._turn(steps)
        steps.table.kill()
        while time.monotonic() < deadline and not steps.table.sweep(time.monotonic(), 0.0):
            self._beat()
            time.sleep(0.02)
        verdict = steps.verdict
        if verdict is None or verdict.outcome is not Outcome.FAILURE:
            verdict = Verdict(Outcome.FAILURE, failure)
        return verdict

    def _conclude(self, verdict: Verdict) -> int:
        worker_status = None
        if self._steps is not None:
            self._steps.close()
            worker_status = self._steps.attempt.worker_status
        status = conclude(
            self._job,
            self._log,
            self._timeline,
            verdict,
            worker_status,
            self._started,
            self._beat,
        )
        if self._watchdog is not None:
            self._watchdog.release()
        return status
