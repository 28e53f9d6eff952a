"""How processes of a model ended, in words, and what that means for it."""

import contextlib
import signal

from sagemaker_mxnet_toolkit.container import cgroup
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role, exit_status, signal_name
from sagemaker_mxnet_toolkit.processes.process import Child

HOST = "localhost"
"""The host of a failure: a server has no others."""

_OUT_OF_MEMORY = "was killed by the kernel: the container's memory is used up"


class Endings:
    """Says how processes ended, and knows the kernel's kills that it has told of already."""

    def __init__(self) -> None:
        self._oom_kills = cgroup.oom_kills()

    def how(self, returncode: int) -> str:
        """Return how a process ended, after ``it``.

        Args:
            returncode: as in ``subprocess``.
        """
        before, self._oom_kills = self._oom_kills, cgroup.oom_kills()
        if returncode == -signal.SIGKILL and (self._oom_kills or 0) > (before or 0):
            return _OUT_OF_MEMORY
        if returncode < 0:
            return f"died of {signal_name(-returncode)}"
        return f"ended with status {returncode}"

    def cause(self, child: Child, kind: FailureKind) -> Failure:
        """Return why a process ended: what it reported, or else how, and its last lines.

        Args:
            child: the process, ended.
            kind: what its failure is, unless it says otherwise.
        """
        assert child.returncode is not None
        status = exit_status(child.returncode)
        if child.failure is not None:
            with contextlib.suppress(ValueError):
                kind = FailureKind(child.failure.get("kind", kind.value))
            reason, detail = str(child.failure["reason"]), str(child.failure.get("detail", ""))
            return Failure(HOST, child.spec.role, reason, kind, status, detail)
        what = "the model process" if child.spec.role is Role.MODEL else "the installation"
        how = self.how(child.returncode)
        kind = kind_of(how, kind)
        return Failure(HOST, child.spec.role, f"{what} {how}", kind, status, child.stderr.text())


def kind_of(how: str, otherwise: FailureKind) -> FailureKind:
    """Return the kind of a failure that is an end.

    Args:
        how: what ``Endings.how`` says of it.
        otherwise: the kind of one that is not for want of memory.
    """
    return FailureKind.OUT_OF_MEMORY if how == _OUT_OF_MEMORY else otherwise
