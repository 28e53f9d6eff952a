"""Errors that the user or the environment caused.

``result`` turns them into a message, a failure file and an exit status. Their text is complete:
cause, source, what was expected, what to do.
"""

import errno
from typing import Sequence

from sagemaker_mxnet_toolkit.failure import FailureKind


class JobError(Exception):
    """An error that ends the job, with a message that a user can act on.

    Attributes:
        kind: the kind of the failure that it is reported as.
    """

    kind = FailureKind.INTERNAL


class ConfigurationError(JobError):
    """The job's configuration is invalid. All faults are reported together.

    Attributes:
        faults: a message for each fault, in the order in which they were found.
    """

    kind = FailureKind.CONFIGURATION

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        if len(self.faults) == 1:
            text = f"configuration: {self.faults[0]}"
        else:
            listed = "".join(f"\n  - {fault}" for fault in self.faults)
            text = f"configuration: {len(self.faults)} errors:{listed}"
        super().__init__(text)


class CodeError(JobError):
    """The user's code cannot be fetched, unpacked or found."""

    kind = FailureKind.CODE


class RequirementsError(JobError):
    """The user's requirements cannot be installed, or would break MXNet."""

    kind = FailureKind.REQUIREMENTS


class NetworkError(JobError):
    """A port, an address or a host name that the job needs is not available."""

    kind = FailureKind.NETWORK


_LIMITS = {
    errno.EAGAIN: "the limit on processes and threads is reached (docker run --pids-limit, "
    "ulimit -u)",
    errno.EMFILE: "the limit on open files is reached (docker run --ulimit nofile, ulimit -n)",
}


def start_error_reason(error: Exception) -> str:
    """Return why a process cannot be started, naming the limit if one was reached."""
    if isinstance(error, OSError):
        return _LIMITS.get(error.errno or 0) or error.strerror or str(error)
    # A thread that cannot be started is a RuntimeError without an error number.
    return _LIMITS[errno.EAGAIN] if "start new thread" in str(error) else str(error)


class StartError(JobError):
    """A process of the job cannot be started.

    Args:
        what: name of the program.
        error: the exception from starting it.
    """

    def __init__(self, what: str, error: Exception) -> None:
        reason = start_error_reason(error)
        super().__init__(f"cannot start {what}: {reason}")
        limited = reason in _LIMITS.values()
        self.kind = FailureKind.CONFIGURATION if limited else FailureKind.CODE
