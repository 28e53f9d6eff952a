"""How the processes of a model ended, in words."""

import signal

from sagemaker_mxnet_toolkit import container, tracebacks
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role, exit_status, signal_name
from sagemaker_mxnet_toolkit.processes.process import Child

HOST = "localhost"
"""The host of a failure; a server has only one."""

_OUT_OF_MEMORY = "was killed by the kernel: the container is out of memory"

_PROGRAMS = {
    Role.FETCH: "the download of the code",
    Role.INSTALL: "the installation of the requirements",
    Role.MODEL: "the model process",
}


class Endings:
    """Describes how processes ended, and counts the kernel's out-of-memory kills."""

    def __init__(self) -> None:
        self._oom_kills = container.oom_kills()

    def how(self, returncode: int) -> str:
        """Return how a process ended, as a predicate such as ``ended with status 1``.

        Args:
            returncode: as in ``subprocess``.
        """
        before, self._oom_kills = self._oom_kills, container.oom_kills()
        if returncode == -signal.SIGKILL and (self._oom_kills or 0) > (before or 0):
            return _OUT_OF_MEMORY
        if returncode < 0:
            return f"was killed by {signal_name(-returncode)}"
        return f"ended with status {returncode}"

    def cause(self, child: Child, kind: FailureKind) -> Failure:
        """Return why a process ended: what it reported, or how it ended and its last lines.

        Args:
            child: the process, which has ended.
            kind: the kind of its failure, unless it reported one.
        """
        assert child.returncode is not None
        status = exit_status(child.returncode)
        if child.failure is not None:
            kind = child.failure_kind or kind
            reason, detail = str(child.failure["reason"]), str(child.failure.get("detail", ""))
            return Failure(HOST, child.spec.role, reason, kind, status, detail)
        what = _PROGRAMS[child.spec.role]
        how = self.how(child.returncode)
        kind = kind_of(how, kind)
        detail = child.stderr.text()
        words = tracebacks.last_words(detail) if child.returncode == -signal.SIGABRT else ""
        reason = f"{what} {how}, after printing: {words}" if words else f"{what} {how}"
        return Failure(HOST, child.spec.role, reason, kind, status, detail)


def kind_of(how: str, otherwise: FailureKind) -> FailureKind:
    """Return the kind of failure of a process that ended.

    Args:
        how: the result of ``Endings.how``.
        otherwise: the kind if it was not out of memory.
    """
    return FailureKind.OUT_OF_MEMORY if how == _OUT_OF_MEMORY else otherwise
