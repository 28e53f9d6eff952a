"""Why a child process failed: from what it reported, how it ended, and the container's memory."""

from typing import Callable, Mapping, Optional

from sagemaker_mxnet_toolkit.container import cgroup
from sagemaker_mxnet_toolkit.container.oom import OomMonitor
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role, exit_status, signal_name
from sagemaker_mxnet_toolkit.processes.process import Child

_KINDS = {
    Role.FETCH: FailureKind.CODE,
    Role.INSTALL: FailureKind.REQUIREMENTS,
    Role.SYNC: FailureKind.OUTPUT,
}
"""Kind of a failure that a process reports without a kind; elsewhere it is an exception."""


def diagnose(
    child: Child, host: str, oom: OomMonitor, when: float, redact: Callable[[str], str]
) -> Failure:
    """Return the failure of a child.

    Args:
        child: a process that has ended, or that has reported a failure and does not end.
        host: the name of this host.
        oom: has just looked at the count of kills.
        when: when the child failed (monotonic, seconds).
        redact: removes this host's secrets, which no other host knows.
    """
    code, told = child.returncode, child.failure
    detail = child.stderr.text()
    if told is not None:
        reason, kind = str(told.get("reason", "")), _reported_kind(told, child.spec.role)
        detail = str(told.get("detail", "")) or detail
    elif code is not None and code < 0:
        reason, kind = f"killed by {signal_name(-code)}", FailureKind.SIGNAL
    else:
        reason, kind = "ended without saying why", FailureKind.EXIT_STATUS
    if oom.explains(when):
        reason, kind = f"{memory_text()} ({reason})", FailureKind.OUT_OF_MEMORY
    elif oom.last_kill is not None:
        seconds = when - oom.last_kill
        detail += f"\n(a process here was killed for want of memory {seconds:.0f} s before this)"
    status = 1 if code is None else exit_status(code)
    return Failure(host, child.spec.role, redact(reason), kind, status, redact(detail.lstrip("\n")))


def unwritten(child: Child) -> bool:
    """Return whether a script says that its last checkpoint was not written."""
    kind = None if child.failure is None else child.failure.get("kind")
    return kind == FailureKind.CHECKPOINT.value


def memory_text() -> str:
    """Return ``out of memory: the container's limit of 2048 MiB was reached``."""
    limit = cgroup.memory_limit()
    size = "" if limit is None else f" of {limit / 2**20:.0f} MiB"
    return f"out of memory: the container's limit{size} was reached"


def ending(returncode: int) -> str:
    """Return how a process ended, such as ``SIGKILL (exit status 137)``."""
    if returncode < 0:
        return f"{signal_name(-returncode)} (exit status {exit_status(returncode)})"
    return f"exit status {returncode}"


def _reported_kind(told: Mapping[str, object], role: Role) -> FailureKind:
    kind: Optional[object] = told.get("kind")
    try:
        return FailureKind(kind)
    except ValueError:
        return _KINDS.get(role, FailureKind.EXCEPTION)
