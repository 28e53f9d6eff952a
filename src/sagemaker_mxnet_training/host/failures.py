"""Detects and reports failures of a host's processes."""

import time
from dataclasses import replace
from typing import Callable, Mapping, Optional

from sagemaker_mxnet_toolkit.container.oom import OomMonitor
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role, exit_status, signal_name
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.process import Child
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_training.host import diagnosis
from sagemaker_mxnet_training.host.observer import Observer
from sagemaker_mxnet_training.host.timeline import Timeline

REPORT_GRACE = 1.0
"""Seconds in which a process must end after it has reported its failure."""


class FailureReporter:
    """Creates failures of this host with a cause, a kind and a time, and reports them.

    Args:
        host: the name of this host.
        log: the entrypoint's log.
        timeline: records failures.
        table: the processes of this host.
        observer: finds frozen processes.
        report: called with a failure and when it happened (monotonic, seconds).
    """

    def __init__(
        self,
        host: str,
        log: Log,
        timeline: Timeline,
        table: ProcessTable,
        observer: Observer,
        report: Callable[[Failure, float], None],
    ) -> None:
        self._host = host
        self._log = log
        self._timeline = timeline
        self._table = table
        self._observer = observer
        self._report = report
        self._oom = OomMonitor(time.monotonic())

    def tick(self, now: float) -> float:
        """Report failures of processes that have not exited; return when to call again."""
        self._log_kills(self._oom.poll(now))
        for child, since in self._observer.frozen(now):
            reason = f"frozen: suspended by a signal (SIGSTOP) for {now - since:.0f} s"
            child.stopped = True
            spec = child.spec
            failure = Failure(
                self._host, spec.role, reason, kind=FailureKind.FROZEN, rank=spec.rank
            )
            self.report(failure, since, child)
        due = now + 1.0
        for child in self._table.living():
            if child.failed_at is None:
                continue
            if now - child.failed_at >= REPORT_GRACE:
                self.report_child(child)
            else:
                due = min(due, child.failed_at + REPORT_GRACE)
        return due

    def report_child(self, child: Child) -> None:
        """Report the failure of a child, from its own report or its exit status."""
        now = time.monotonic()
        when = now if child.failed_at is None else child.failed_at
        self._log_kills(self._oom.check(now))
        failure = diagnosis.diagnose(child, self._host, self._oom, when, self._log.redact)
        if failure.kind is FailureKind.PEER:
            self._log.warning(child.spec.name, f"lost another rank: {failure.reason}")
        else:
            self._log.error(child.spec.name, f"failed: {failure.reason}")
        child.stopped, child.failed_at = True, None
        self.report(failure, when, child)

    def report_left(self, child: Child, event: Mapping[str, object]) -> None:
        """Report that a script exited early after a signal, without a stop of the job."""
        number = event.get("signal")
        if not isinstance(number, int):
            return
        reason = f"exited early: {signal_name(number)} was sent to the script only"
        self._log.error(child.spec.name, reason)
        child.stopped = True
        status = exit_status(-number)
        spec = child.spec
        failure = Failure(self._host, spec.role, reason, FailureKind.SIGNAL, status, rank=spec.rank)
        self.report(failure, time.monotonic(), child)

    def report(self, failure: Failure, when: float, child: Optional[Child] = None) -> None:
        """Record a failure in the timeline, and report it."""
        shown = replace(failure, reason=self._log.redact(failure.reason))
        self._timeline.failure(shown, when, None if child is None else child.pid)
        self._report(failure, when)

    def of_entrypoint(self, reason: str, kind: FailureKind, detail: str = "") -> Failure:
        """Return a failure of the entrypoint."""
        return Failure(self._host, Role.ENTRYPOINT, reason, kind, None, detail)

    def _log_kills(self, kills: int) -> None:
        if kills:
            killed = "a process was" if kills == 1 else f"{kills} processes were"
            text = f"{diagnosis.memory_text()}; {killed} killed by the kernel"
            self._log.warning("entrypoint", text)
