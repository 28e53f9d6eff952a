"""How a process of a model ended, and what to do about it."""

import signal
import time
from typing import NamedTuple

from sagemaker_mxnet_serving.inference import MEMORY_REMEDY
from sagemaker_mxnet_toolkit import tracebacks
from sagemaker_mxnet_toolkit.container import OomMonitor, exhausted_memory
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role, exit_status, signal_name
from sagemaker_mxnet_toolkit.processes.process import Child

HOST = "localhost"
"""The host of a failure; a server has only one."""

_PROGRAMS = {
    Role.FETCH: "the download of the code",
    Role.INSTALL: "the installation of the requirements",
    Role.MODEL: "the model process",
}

_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)


class Ending(NamedTuple):
    """How a process ended.

    Attributes:
        how: a predicate, such as ``ended with status 1``.
        remedy: what to do about it.
        kind: the kind of the failure.
    """

    how: str
    remedy: str
    kind: FailureKind


def ending(
    returncode: int,
    oom: OomMonitor,
    kind: FailureKind = FailureKind.MODEL,
    killed: bool = False,
) -> Ending:
    """Return how a process ended. Call this as soon as it has ended.

    Args:
        returncode: as in ``subprocess``.
        oom: counts the kernel's out-of-memory kills.
        kind: the kind of the failure, unless it was such a kill.
        killed: whether this server killed it, and logged why.
    """
    if killed and returncode == -signal.SIGKILL:
        return Ending("was killed by SIGKILL", "this server killed it; see its log before", kind)
    now = time.monotonic()
    oom.check(now)
    if returncode == -signal.SIGKILL and oom.explains(now):
        how = f"was killed by the kernel for lack of memory ({exhausted_memory()})"
        return Ending(how, MEMORY_REMEDY, FailureKind.OUT_OF_MEMORY)
    if returncode >= 0:
        remedy = "the script or a library ended it; see what it logged before"
        return Ending(f"ended with status {returncode}", remedy, kind)
    if -returncode in _CRASHES:
        remedy = "native code crashed; the Python stack before this line shows where"
    else:
        remedy = (
            "another program sent this signal, or the machine is out of memory; see the machine's "
            "kernel log (dmesg)"
        )
    return Ending(f"was killed by {signal_name(-returncode)}", remedy, kind)


def cause(child: Child, oom: OomMonitor, kind: FailureKind) -> Failure:
    """Return why a process ended: what it reported, or how it ended and its last lines.

    Args:
        child: the process, which has just ended.
        oom: counts the kernel's out-of-memory kills.
        kind: the kind of its failure, unless it reported one.
    """
    assert child.returncode is not None
    role, status = child.spec.role, exit_status(child.returncode)
    if child.failure is not None:
        kind = child.failure_kind or kind
        reason, detail = str(child.failure["reason"]), str(child.failure.get("detail", ""))
        return Failure(HOST, role, reason, kind, status, detail)
    killed = any(number == signal.SIGKILL for _, number in child.signals)
    how, remedy, kind = ending(child.returncode, oom, kind, killed)
    detail = child.stderr.text()
    words = tracebacks.last_words(detail) if child.returncode == -signal.SIGABRT else ""
    if words:
        how += f", after printing: {words}"
    return Failure(HOST, role, f"{_PROGRAMS[role]} {how}; {remedy}", kind, status, detail)
