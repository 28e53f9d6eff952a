"""What hosts report of a job, and what they are ordered to do: plain records.

``decision`` reads the events and gives the orders, ``messages`` carries both between hosts.
"""

import enum
from dataclasses import dataclass
from typing import Any, Mapping, NamedTuple, Optional, Union

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role

CAUSE_LIMIT = 1024
"""Characters of the first attempt's cause that a verdict carries."""


class Step(enum.Enum):
    """What a host does, or has done, as the log tells it."""

    JOINED = "joined"
    FETCH = "fetching the code"
    INSTALL = "installing requirements"
    CLEAR = "ending the processes of the attempt before"
    READY = "ready"
    TRAINING = "training"
    STEPPED = "training, past its first step"
    CHECKPOINTING = "training with checkpoints"
    CHECKPOINTED = "training, past a checkpoint"
    FINISHED = "finished"
    DRAINED = "empty"
    """No process of the job is left on the host, and it can write its result."""


@dataclass(frozen=True)
class Stop:
    """A request to stop, which is no failure.

    Attributes:
        host: where it arrived.
        signal: the signal it came as, by number.
    """

    host: str
    signal: int


@dataclass(frozen=True)
class Verdict:
    """How the job ended, the same on every host.

    Attributes:
        outcome: success, failure or stop.
        failure: what ended the last attempt, the first failure in time; for ``Outcome.FAILURE``
            only.
        restarts: how often the job began again.
        first_cause: headline of what ended the first attempt, if there were several.
    """

    outcome: Outcome
    failure: Optional[Failure] = None
    restarts: int = 0
    first_cause: str = ""

    def to_json(self) -> Mapping[str, Any]:
        """Return a JSON object."""
        failure = None if self.failure is None else self.failure.to_json()
        return {
            "outcome": self.outcome.value,
            "failure": failure,
            "restarts": self.restarts,
            "first_cause": self.first_cause,
        }

    @classmethod
    def from_json(cls, data: Any) -> "Verdict":
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: when ``data`` is anything else.
        """
        if not isinstance(data, Mapping):
            raise ValueError("a verdict must be a JSON object")
        outcome = Outcome(data.get("outcome"))
        failed = outcome is Outcome.FAILURE
        failure = Failure.from_json(data.get("failure")) if failed else None
        restarts, first_cause = data.get("restarts"), data.get("first_cause")
        if type(restarts) is not int or restarts < 0:
            raise ValueError("'restarts' of a verdict must be a whole number")
        if not isinstance(first_cause, str) or len(first_cause) > CAUSE_LIMIT:
            raise ValueError("'first_cause' of a verdict must be a short text")
        return cls(outcome, failure, restarts, first_cause)


def lost(host: str, reason: str) -> Failure:
    """Return the failure that a host's disappearance is."""
    return Failure(host, Role.ENTRYPOINT, f"lost: {reason}", kind=FailureKind.LOST)


# Events. Times are on the first host's monotonic clock, in seconds.


class Reported(NamedTuple):
    """A host does something, or has done it, in some attempt."""

    step: Step
    host: str
    attempt: int = 1


class Lost(NamedTuple):
    """A host that had joined is gone, without an end of the job."""

    host: str
    reason: str
    time: float


class Failed(NamedTuple):
    """Something failed, in some attempt."""

    failure: Failure
    time: float
    attempt: int = 1


class StopRequested(NamedTuple):
    """A host was asked to stop."""

    stop: Stop
    time: float


class Own(enum.Enum):
    """An event of the deciding host itself."""

    TICK = "time has passed; nothing else happened"
    GAVE_UP = "a second request to stop: it waits for nobody any more"


Event = Union[Reported, Lost, Failed, StopRequested, Own]


# Orders.


class Command(enum.Enum):
    """An order without particulars."""

    FIRST_STEP = "take note that the first step of training is done"
    LEAVE = "end a worker that still waits: the checkpoint of the stop is written"
    DRAIN = "all workers have finished: see the rest of the processes out"


class Do(NamedTuple):
    """Do what the command says."""

    command: Command


@dataclass(frozen=True)
class Rendezvous:
    """Where the kvstore meets.

    Attributes:
        address: IP address of the scheduler; ps-lite cannot bind a name.
        port: TCP port of the scheduler.
        own_address: this host's IP address, as the scheduler's host reaches it.
        servers_per_host: how many servers each host runs. The leader says it, since the scheduler
            waits for all of them.
    """

    address: str
    port: int
    own_address: str
    servers_per_host: int = 1


@dataclass(frozen=True)
class Start:
    """Start the kvstore and the worker.

    Attributes:
        attempt: number of the attempt, from 1.
        resume: name of the checkpoint that training goes on from; empty for none.
        rendezvous: where the kvstore meets; ``None`` without the parameter server. What is in this
            and in ``resume`` is not decided here: the leader fills it in.
    """

    attempt: int
    resume: str = ""
    rendezvous: Optional[Rendezvous] = None


class Restart(NamedTuple):
    """End what belongs to the attempt before, and get ready for this one.

    Attributes:
        attempt: number of the attempt that begins.
        failure: what ended the one before.
    """

    attempt: int
    failure: Failure


class StopScripts(NamedTuple):
    """Ask the worker to stop, or whatever prepares for it."""

    stop: Stop


class End(NamedTuple):
    """Make an end of whatever still runs, and report this verdict."""

    verdict: Verdict


Action = Union[Do, Start, Restart, StopScripts, End]


class Order(NamedTuple):
    """Something to be done, by one host or by all that have joined.

    Attributes:
        action: what is to be done. In an attempt, no host is given the same action twice.
        to: the host; ``None`` for all that have joined, the first one included.
    """

    action: Action
    to: Optional[str] = None
