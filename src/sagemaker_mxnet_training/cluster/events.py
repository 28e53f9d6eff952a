"""Events of the hosts of a job, and orders to them, as plain records.

``decision`` turns events into orders. Hosts exchange both; ``control.wire`` encodes all their
fields.
"""

import enum
from dataclasses import dataclass, field, replace
from typing import Any, Mapping, Optional, TypeVar, Union

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role

CAUSE_LIMIT = 1024
"""Maximum number of characters of the first attempt's cause in a verdict."""


class HostState(enum.Enum):
    """The state of a host. The values are used in the log."""

    JOINED = "joined"
    FETCH = "fetching the code"
    INSTALL = "installing requirements"
    CLEAR = "stopping the processes of the previous attempt"
    READY = "ready"
    TRAINING = "training"
    STEPPED = "training, past its first step"
    CHECKPOINTING = "training with checkpoints"
    CHECKPOINTED = "training, past a checkpoint"
    FINISHED = "finished"
    SAVED = "finished, with a model"
    """There are files in the host's model directory; reported before ``DRAINED``."""
    DRAINED = "drained"
    """All processes of the job have ended on the host, and it can write its result."""


@dataclass(frozen=True)
class Stop:
    """A request to stop, which is not a failure.

    Attributes:
        host: the host that got it.
        signal: the number of the signal.
    """

    host: str
    signal: int


@dataclass(frozen=True)
class Verdict:
    """How the job ended, the same on every host.

    Attributes:
        outcome: success, failure or stop.
        failure: the cause, the earliest failure of the last attempt; only for
            ``Outcome.FAILURE``.
        restarts: number of restarts.
        first_cause: headline of the failure of the first attempt, if there were several.
        saved: whether a host has a model, after a success.
    """

    outcome: Outcome
    failure: Optional[Failure] = None
    restarts: int = 0
    first_cause: str = ""
    saved: bool = False

    def to_json(self) -> Mapping[str, Any]:
        """Return a JSON object, for the timeline."""
        failure = None if self.failure is None else self.failure.to_json()
        return {
            "outcome": self.outcome.value,
            "failure": failure,
            "restarts": self.restarts,
            "first_cause": self.first_cause,
            "saved": self.saved,
        }


def lost(host: str, reason: str) -> Failure:
    """Return the failure of a lost host."""
    return Failure(host, Role.ENTRYPOINT, f"lost: {reason}", kind=FailureKind.LOST)


# Events. Times are monotonic seconds of the host that has the record (see ``moved``).


@dataclass(frozen=True)
class Reported:
    """A host has reached a state in an attempt."""

    state: HostState
    host: str
    attempt: int = 1


@dataclass(frozen=True)
class RankFinished:
    """A worker with Horovod has exited with status 0 in an attempt."""

    host: str
    rank: int
    attempt: int = 1


@dataclass(frozen=True)
class Idle:
    """The worker of a host has not made progress for some seconds."""

    host: str
    seconds: float


@dataclass(frozen=True)
class Failed:
    """Something failed in an attempt."""

    failure: Failure
    time: float
    attempt: int = 1


@dataclass(frozen=True)
class StopRequested:
    """A host was asked to stop."""

    stop: Stop
    time: float


@dataclass(frozen=True)
class Lost:
    """A host that had joined was lost before the end of the job.

    Attributes:
        host: the host.
        reason: why.
        time: when this was noticed.
        dropped: whether it is the host that considers the first one lost, which was suspended.
    """

    host: str
    reason: str
    time: float
    dropped: bool = False


class LocalEvent(enum.Enum):
    """A local event of the deciding host."""

    TICK = "time has passed"
    GAVE_UP = "a second stop signal: do not wait for other hosts"


Report = Union[Reported, RankFinished, Idle, Failed, StopRequested]
"""The reports of a host."""

REPORTS = (Reported, RankFinished, Idle, Failed, StopRequested)

Event = Union[Reported, RankFinished, Failed, StopRequested, Lost, LocalEvent]
"""The events for ``decision``."""

R = TypeVar("R", bound=Report)


def moved(report: R, seconds: float) -> R:
    """Return a report with its time, if it has one, shifted by some seconds.

    Clocks of two machines are not comparable. The sender subtracts its clock, so that the time is
    relative to the sending, and the receiver adds its own.
    """
    if isinstance(report, (Failed, StopRequested)):
        return replace(report, time=report.time + seconds)
    return report


# Orders, from the first host to all. A host obeys them in ``host.steps.Steps.obey``.


@dataclass(frozen=True)
class Rendezvous:
    """The address of the kvstore's scheduler, or of Horovod's rendezvous.

    Attributes:
        address: its IP address, since ps-lite cannot bind a name.
        port: its TCP port.
        own_address: IP address of the host that gets the order, which sets it itself.
        servers_per_host: number of servers on each host. The first host decides it, since the
            scheduler waits for all of them.
        listener: file descriptor of Horovod's listening socket, on the first host; 0 elsewhere.
        peers: IP addresses of the other hosts, by name, which Horovod's rendezvous serves.
    """

    address: str
    port: int
    own_address: str
    servers_per_host: int = 1
    listener: int = 0
    peers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """Start the roles: the kvstore and the worker.

    Attributes:
        attempt: number of the attempt, from 1.
        resume: name of the checkpoint to resume from; empty for none.
        rendezvous: the scheduler or rendezvous; ``None`` if there is none. The leader sets this and
            ``resume``, not ``decision``.
    """

    attempt: int
    resume: str = ""
    rendezvous: Optional[Rendezvous] = None


@dataclass(frozen=True)
class FirstStep:
    """Record the first step of training, on any host."""


@dataclass(frozen=True)
class Restart:
    """End the processes of the previous attempt, and get ready for this one.

    Attributes:
        attempt: number of the new attempt.
        failure: the failure of the previous one.
    """

    attempt: int
    failure: Failure


@dataclass(frozen=True)
class StopScripts:
    """Ask the worker, or a process that prepares for it, to stop."""

    stop: Stop


@dataclass(frozen=True)
class EndScripts:
    """End workers that still run after a stop, since the checkpoint is written."""


@dataclass(frozen=True)
class DrainRoles:
    """Wait for the other processes after all workers have finished, and stop those that remain."""


@dataclass(frozen=True)
class End:
    """Stop all processes, and report this verdict."""

    verdict: Verdict


@dataclass(frozen=True)
class Note:
    """Log a message. The first host sends it only to the others."""

    text: str


Action = Union[Start, FirstStep, Restart, StopScripts, EndScripts, DrainRoles, End]
"""The orders. In an attempt, no host gets the same order twice."""

ORDERS = (Start, FirstStep, Restart, StopScripts, EndScripts, DrainRoles, End, Note)


@dataclass(frozen=True)
class Order:
    """An action and its recipients.

    Attributes:
        action: the action.
        to: the host; ``None`` for all that have joined, including the first one.
    """

    action: Action
    to: Optional[str] = None
