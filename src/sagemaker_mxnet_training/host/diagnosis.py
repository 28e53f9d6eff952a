"""Finds why a child process failed, from its report, its exit status and out-of-memory kills."""

import signal
from typing import Callable

from sagemaker_mxnet_toolkit import tracebacks
from sagemaker_mxnet_toolkit.container import cgroup
from sagemaker_mxnet_toolkit.container.oom import OomMonitor
from sagemaker_mxnet_toolkit.failure import (
    Failure,
    FailureKind,
    Role,
    exit_status,
    signal_name,
)
from sagemaker_mxnet_toolkit.processes.process import Child
from sagemaker_mxnet_training.host.ranks import names_lost_peer

_KINDS = {
    Role.FETCH: FailureKind.CODE,
    Role.INSTALL: FailureKind.REQUIREMENTS,
    Role.SYNC: FailureKind.OUTPUT,
}
"""Kind of a failure that a role reports without a kind; by default it is an exception."""

_PREPARING = (Role.FETCH, Role.INSTALL)
"""Roles that do not run the user's code, and whose messages include advice."""


def diagnose(
    child: Child, host: str, oom: OomMonitor, when: float, redact: Callable[[str], str]
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
        reason, kind = f"{memory_text()} ({reason})", FailureKind.OUT_OF_MEMORY
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


def memory_text() -> str:
    """Return ``out of memory: the container's limit of 2048 MiB was reached``."""
    limit = cgroup.memory_limit()
    size = "" if limit is None else f" of {limit / 2**20:.0f} MiB"
    return f"out of memory: the container's limit{size} was reached"


def process_limit_text() -> str:
    """Return a message if the container's limit on processes was reached, else empty."""
    limit = cgroup.process_limit_reached()
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
