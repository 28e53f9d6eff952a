"""What went wrong, and how a job ended, as plain records that travel between hosts."""

import enum
import signal
from dataclasses import dataclass
from typing import Any, Mapping, Optional

DETAIL_LIMIT = 8192
"""Characters of a traceback or of stderr that a failure carries; the end is what is kept."""

REASON_LIMIT = 2048
"""Characters of a reason that a failure carries; the beginning is what is kept."""


class Role(enum.Enum):
    """What a process of the job is for."""

    ENTRYPOINT = "entrypoint"
    """The supervisor itself: it owns everything else on its host."""
    FETCH = "fetch"
    """Brings the user's code into the code directory."""
    INSTALL = "install"
    """Installs what the user's code requires."""
    SCHEDULER = "scheduler"
    """MXNet's kvstore scheduler, on the first host only."""
    SERVER = "server"
    """One of MXNet's kvstore servers."""
    WORKER = "worker"
    """The user's script."""
    SYNC = "sync"
    """Copies intermediate output to S3 while the job runs."""
    STANDBY = "standby"
    """Has imported MXNet, and waits to become a role of the next attempt."""
    MODEL = "model"
    """Loads a model that is served, and is what its workers are forked from."""


class Outcome(enum.Enum):
    """How a job ends."""

    SUCCESS = "success"
    """Every worker finished with status 0."""
    FAILURE = "failure"
    """Something failed; the first failure in time is the cause."""
    STOP = "stop"
    """Somebody asked the job to stop, before anything failed."""


class FailureKind(enum.Enum):
    """What sort of thing went wrong. Advice, restarts and reports read it, never the words."""

    EXCEPTION = "exception"
    """User code raised an exception."""
    EXIT_STATUS = "exit status"
    """A process ended with a status other than 0 and no further word."""
    SIGNAL = "signal"
    """A process was ended by a signal that this program did not send."""
    OUT_OF_MEMORY = "out of memory"
    """The kernel killed a process because the container's memory limit was reached."""
    LOST = "lost"
    """A host that took part is gone: its connection closed, or it is silent."""
    FROZEN = "frozen"
    """A process exists and does not run, as after SIGSTOP."""
    STALLED = "stalled"
    """Processes run, and training makes no progress."""
    JOIN = "join"
    """Hosts did not find each other, or do not agree on the job."""
    CONFIGURATION = "configuration"
    """The job description is wrong."""
    CODE = "code"
    """The user's code cannot be fetched, unpacked, found or started."""
    REQUIREMENTS = "requirements"
    """The user's requirements cannot be installed, or would break the job."""
    NETWORK = "network"
    """A port or an address that the job needs cannot be had."""
    MODEL = "model"
    """A model that is to be served cannot be loaded, or does not answer."""
    OUTPUT = "output"
    """Results cannot be written."""
    CHECKPOINT = "checkpoint"
    """The last checkpoint, of a stop or of the end, cannot be written."""
    INTERNAL = "internal"
    """A defect of this program."""


@dataclass(frozen=True)
class Failure:
    """One thing that went wrong, at one place.

    Attributes:
        host: the host where it happened.
        role: the process it happened to.
        reason: one line, such as ``ValueError: boom at step 20``.
        kind: what sort of failure it is.
        status: exit status in the shell's convention (128+N for signal N), if there is one.
        detail: more lines, such as the end of a traceback or of stderr; may be empty.
    """

    host: str
    role: Role
    reason: str
    kind: FailureKind
    status: Optional[int] = None
    detail: str = ""

    def headline(self) -> str:
        """Return the cause in one line: host, role, what happened, exit status.

        >>> Failure("algo-2", Role.WORKER, "ValueError: boom", FailureKind.EXCEPTION, 1).headline()
        'algo-2: worker failed: ValueError: boom (exit status 1)'
        """
        suffix = "" if self.status is None else f" (exit status {self.status})"
        return f"{self.host}: {self.role.value} failed: {self.reason}{suffix}"

    def text(self) -> str:
        """Return the headline, followed by the detail on lines of its own."""
        return f"{self.headline()}\n{self.detail}".rstrip()

    def to_json(self) -> Mapping[str, Any]:
        """Return a JSON object of bounded size."""
        return {
            "host": self.host,
            "role": self.role.value,
            "reason": self.reason[:REASON_LIMIT],
            "status": self.status,
            "detail": self.detail[-DETAIL_LIMIT:],
            "kind": self.kind.value,
        }

    @classmethod
    def from_json(cls, data: Any) -> "Failure":
        """Read what ``to_json`` wrote on another host.

        Raises:
            ValueError: when ``data`` is anything else.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"a failure must be a JSON object, not {type(data).__name__}")
        host, reason, status = data.get("host"), data.get("reason"), data.get("status")
        detail = data.get("detail")
        if not (isinstance(host, str) and isinstance(reason, str) and isinstance(detail, str)):
            raise ValueError("a failure needs the texts 'host', 'reason' and 'detail'")
        if status is not None and (isinstance(status, bool) or not isinstance(status, int)):
            raise ValueError("the 'status' of a failure must be an integer or null")
        return cls(
            host=host,
            role=Role(data.get("role")),
            reason=reason[:REASON_LIMIT],
            kind=FailureKind(data.get("kind")),
            status=status,
            detail=detail[-DETAIL_LIMIT:],
        )


def exit_status(returncode: int) -> int:
    """Turn a return code of ``subprocess`` into the shell's convention.

    A death by signal N is -N there and 128+N here.
    """
    return 128 - returncode if returncode < 0 else returncode


def signal_name(number: int) -> str:
    """Return ``SIGKILL`` for 9; numbers without a name give ``signal N``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
