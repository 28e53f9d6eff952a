"""Every error that is the user's or the environment's, not ours.

They are raised where the fault is seen and turned, once, into a message, a failure file and an
exit status (see ``result``). Their text is complete: cause, source, what was expected, what to do.
"""

from typing import Any, Sequence

from sagemaker_mxnet_toolkit.failure import FailureKind


class JobError(Exception):
    """A fault that ends the job, told in words a user can act on.

    Attributes:
        kind: the kind of the failure that it becomes.
    """

    kind = FailureKind.INTERNAL


class ConfigurationError(JobError):
    """The job description is wrong. All faults found are reported together.

    Attributes:
        faults: one complete sentence for each fault, in the order they were found.
        job: the ``Job`` with a default in each faulty place, good for telling its other hosts.
    """

    kind = FailureKind.CONFIGURATION

    def __init__(self, faults: Sequence[str], job: Any = None) -> None:
        self.faults = tuple(faults)
        self.job = job
        if len(self.faults) == 1:
            text = f"configuration: {self.faults[0]}"
        else:
            listed = "".join(f"\n  - {fault}" for fault in self.faults)
            text = f"configuration: {len(self.faults)} faults:{listed}"
        super().__init__(text)


class CodeError(JobError):
    """The user's code cannot be fetched, unpacked or found."""

    kind = FailureKind.CODE


class RequirementsError(JobError):
    """The user's requirements cannot be installed, or would break the job."""

    kind = FailureKind.REQUIREMENTS


class NetworkError(JobError):
    """A port, an address or a name that the job needs cannot be had."""

    kind = FailureKind.NETWORK


class StartError(JobError):
    """A process of the job cannot be started."""

    kind = FailureKind.CODE
