"""Failures and outcomes of a job: records that hosts exchange, and exceptions of their kinds.

A ``JobError`` is an error that the user or the environment caused. Its text is complete: cause,
source, what was expected, what to do.
"""

import enum
import errno
import signal
from dataclasses import dataclass, replace
from typing import Any, Mapping, Optional, Sequence

DETAIL_LIMIT = 8192
"""Maximum number of characters of a traceback or of stderr in a failure; the end is kept."""

REASON_LIMIT = 2048
"""Maximum number of characters of a reason in a failure; the beginning is kept."""


class Role(enum.Enum):
    """The role of a process of the job."""

    ENTRYPOINT = "entrypoint"
    """The supervisor, which owns all other processes of its host."""
    FETCH = "fetch"
    """Fetches the user's code into the code directory."""
    INSTALL = "install"
    """Installs the requirements of the user's code."""
    SCHEDULER = "scheduler"
    """MXNet's kvstore scheduler, on the first host only."""
    SERVER = "server"
    """One of MXNet's kvstore servers."""
    WORKER = "worker"
    """The user's script."""
    RENDEZVOUS = "rendezvous"
    """Horovod's store of addresses, on the first host only."""
    SYNC = "sync"
    """Uploads intermediate output to S3 while the job runs."""
    MODEL = "model"
    """Loads a model that is served; its workers are forked from this process."""


class Outcome(enum.Enum):
    """How a job ends."""

    SUCCESS = "success"
    """Every worker finished with status 0."""
    FAILURE = "failure"
    """Something failed; the earliest failure is the cause."""
    STOP = "stop"
    """The job was asked to stop before anything failed."""


class FailureKind(enum.Enum):
    """The kind of a failure. Advice, restarts and reports depend on it, never on the message."""

    EXCEPTION = "exception"
    """User code raised an exception."""
    EXIT_STATUS = "exit status"
    """A process exited with a status other than 0, without an exception or a message."""
    SIGNAL = "signal"
    """A process was killed by a signal that this program did not send."""
    PEER = "peer"
    """A worker lost another one, which is a consequence of the failure of the other one."""
    OUT_OF_MEMORY = "out of memory"
    """The kernel killed a process because the container's memory limit was reached."""
    LOST = "lost"
    """A host was lost: its connection closed, or it is silent."""
    FROZEN = "frozen"
    """A process is suspended, for example by SIGSTOP."""
    STALLED = "stalled"
    """Processes run, but training makes no progress."""
    UNEVEN = "uneven"
    """A host waits for others whose scripts have finished: they had fewer batches."""
    JOIN = "join"
    """Hosts did not find each other, or have different configurations of the job."""
    CONFIGURATION = "configuration"
    """The configuration of the job is invalid."""
    CODE = "code"
    """The user's code cannot be fetched, unpacked, found or started."""
    REQUIREMENTS = "requirements"
    """The user's requirements cannot be installed, or would break MXNet."""
    NETWORK = "network"
    """A port or an address that the job needs is not available."""
    MODEL = "model"
    """A model cannot be loaded for serving, or does not respond."""
    OUTPUT = "output"
    """Results cannot be written."""
    CHECKPOINT = "checkpoint"
    """The first checkpoint, or the last one before a stop or the end, cannot be written."""
    CHECKPOINT_USE = "use of checkpoints"
    """The script and its checkpoints do not match, or their directory is in use."""
    INTERNAL = "internal"
    """A bug in this program."""


UNWRITTEN = frozenset((FailureKind.CHECKPOINT, FailureKind.CHECKPOINT_USE))
"""Kinds of failures that count even after a stop, since the last checkpoint was not written."""


@dataclass(frozen=True)
class Failure:
    """One failure.

    Attributes:
        host: the host that it happened on.
        role: the role of the process that failed.
        reason: the cause in one line, such as ``ValueError: boom at step 20``.
        kind: the kind of the failure.
        status: exit status in the shell's convention (128+N for signal N), if there is one.
        detail: additional lines, such as the end of a traceback or of stderr; may be empty.
        rank: Horovod's rank of the worker; ``None`` for other processes.
    """

    host: str
    role: Role
    reason: str
    kind: FailureKind
    status: Optional[int] = None
    detail: str = ""
    rank: Optional[int] = None

    @property
    def process(self) -> str:
        """The process that failed: ``worker``, or ``rank 3``."""
        return self.role.value if self.rank is None else f"rank {self.rank}"

    def headline(self) -> str:
        """Return the cause in one line: host, role, what happened, exit status.

        >>> Failure("algo-2", Role.WORKER, "ValueError: boom", FailureKind.EXCEPTION, 1).headline()
        'algo-2: worker failed: ValueError: boom (exit status 1)'
        """
        suffix = "" if self.status is None else f" (exit status {self.status})"
        return f"{self.host}: {self.process} failed: {self.reason}{suffix}"

    def text(self) -> str:
        """Return the headline and the detail."""
        return f"{self.headline()}\n{self.detail}".rstrip()

    def bounded(self) -> "Failure":
        """Return the failure with its reason and detail cut to the limits."""
        return replace(self, reason=self.reason[:REASON_LIMIT], detail=self.detail[-DETAIL_LIMIT:])

    def to_json(self) -> Mapping[str, Any]:
        """Return a JSON object of bounded size, for the timeline."""
        bounded = self.bounded()
        return {
            "host": bounded.host,
            "role": bounded.role.value,
            "reason": bounded.reason,
            "status": bounded.status,
            "detail": bounded.detail,
            "kind": bounded.kind.value,
            "rank": bounded.rank,
        }

    @classmethod
    def from_json(cls, data: Any) -> "Failure":
        """Parse the result of ``to_json``.

        Raises:
            ValueError: it is not a failure.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"a failure must be a JSON object, not {type(data).__name__}")
        host, reason, status = data.get("host"), data.get("reason"), data.get("status")
        detail = data.get("detail")
        if not (isinstance(host, str) and isinstance(reason, str) and isinstance(detail, str)):
            raise ValueError("a failure must have the strings 'host', 'reason' and 'detail'")
        if status is not None and (isinstance(status, bool) or not isinstance(status, int)):
            raise ValueError("the 'status' of a failure must be an integer or null")
        rank = data.get("rank")  # timelines of earlier releases lack it
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
            raise ValueError("the 'rank' of a failure must be an integer or null")
        return cls(
            host=host,
            role=Role(data.get("role")),
            reason=reason[:REASON_LIMIT],
            kind=FailureKind(data.get("kind")),
            status=status,
            detail=detail[-DETAIL_LIMIT:],
            rank=rank,
        )


def exit_status(returncode: int) -> int:
    """Convert a return code of ``subprocess`` to the shell's convention: 128+N for signal N."""
    return 128 - returncode if returncode < 0 else returncode


def signal_name(number: int) -> str:
    """Return the name of a signal, such as ``SIGKILL`` for 9, or ``signal N``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


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
