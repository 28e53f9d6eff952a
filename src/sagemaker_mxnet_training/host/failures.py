"""Detects failures of a host's processes, finds their causes, and reports them.

The cause of a failure is in the process's report, its exit status, its stderr, or an out-of-memory
kill.
"""

import signal
import time
from dataclasses import replace
from typing import Callable, Mapping, Optional

from sagemaker_mxnet_toolkit import container, tracebacks
from sagemaker_mxnet_toolkit.failure import (
    Failure,
    FailureKind,
    Role,
    exit_status,
    signal_name,
)
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.process import Child
from sagemaker_mxnet_toolkit.processes.table import ProcessTable
from sagemaker_mxnet_training.host.observer import Observer
from sagemaker_mxnet_training.host.timeline import Timeline
from sagemaker_mxnet_training.roles.horovod_worker import names_lost_peer

REPORT_GRACE = 1.0
"""Seconds in which a process must end after it has reported its failure."""

_KINDS = {
    Role.FETCH: FailureKind.CODE,
    Role.INSTALL: FailureKind.REQUIREMENTS,
    Role.SYNC: FailureKind.OUTPUT,
}
"""Kind of a failure that a role reports without a kind; by default it is an exception."""

_PREPARING = (Role.FETCH, Role.INSTALL)
"""Roles that do not run the user's code, and whose messages include advice."""


class FailureReporter:
    """Creates failures of this host with a cause, a kind and a time, and reports them.

    Args:
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
        self._oom = container.OomMonitor(time.monotonic())

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
        failure = diagnose(child, self._host, self._oom, when, self._log.redact)
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
            text = f"out of memory: {container.exhausted_memory()}; {killed} killed by the kernel"
            self._log.warning("entrypoint", text)


def diagnose(
    child: Child, host: str, oom: container.OomMonitor, when: float, redact: Callable[[str], str]
) -> Failure:
    """Return the failure of a child.

    Args:
        child: a process that has ended, or that has reported a failure.
        host: the name of this host.
        oom: out-of-memory kills, which were just checked.
        when: when the child failed (monotonic, seconds).
        redact: masks this host's secrets, which other hosts do not know.
    """
    code, report = child.returncode, child.failure
    detail = tracebacks.plain(child.stderr.text())
    if report is not None:
        reason = tracebacks.plain(str(report.get("reason", "")))
        kind = child.failure_kind or _KINDS.get(child.spec.role, FailureKind.EXCEPTION)
        detail = tracebacks.plain(str(report.get("detail", ""))) or detail
    elif code is not None and code < 0:
        reason, kind = f"killed by {signal_name(-code)}", FailureKind.SIGNAL
        if code == -signal.SIGABRT:
            reason = _with_last_line(reason, detail)
    else:
        reason, kind = "exited without an exception", FailureKind.EXIT_STATUS
        reason = _with_last_line(reason, detail)
    # ``roles.horovod_worker`` sets the kind of Horovod's exceptions.
    aborted = report is None and code == -signal.SIGABRT
    unexplained = aborted or kind is FailureKind.EXIT_STATUS
    if child.spec.rank is not None and unexplained and names_lost_peer(f"{reason}\n{detail}"):
        kind = FailureKind.PEER
    if oom.explains(when) and kind is not FailureKind.PEER:
        reason, kind = (
            f"out of memory: {container.exhausted_memory()} ({reason})",
            FailureKind.OUT_OF_MEMORY,
        )
    elif child.spec.role not in _PREPARING:
        from sagemaker_mxnet_toolkit.requirements import known  # only needed after a failure

        remedy = known.remedy(f"{reason}\n{detail}")
        reason = "; ".join(filter(None, (reason, remedy, process_limit_text())))
    if oom.last_kill is not None and kind is not FailureKind.OUT_OF_MEMORY:
        seconds = when - oom.last_kill
        detail += (
            "\n(the kernel killed another process on this host for lack of memory "
            f"{seconds:.0f} s earlier)"
        )
    status = 1 if code is None else exit_status(code)
    detail = redact(detail.lstrip("\n"))
    return Failure(host, child.spec.role, redact(reason), kind, status, detail, child.spec.rank)


def _with_last_line(reason: str, stderr: str) -> str:
    line = tracebacks.last_words(stderr)
    return f"{reason}, after printing: {line}" if line else reason


def process_limit_text() -> str:
    """Return a message if the container's limit on processes was reached, else empty."""
    limit = container.process_limit_reached()
    if limit is None:
        return ""
    return (
        f"the container's limit of {limit} processes and threads was reached (docker run "
        "--pids-limit)"
    )


def ending(returncode: int) -> str:
    """Return how a process ended, such as ``SIGKILL (exit status 137)``."""
    if returncode < 0:
        return f"{signal_name(-returncode)} (exit status {exit_status(returncode)})"
    return f"exit status {returncode}"
