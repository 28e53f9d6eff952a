"""How a job ends: one pure function of what has happened on all its hosts.

The first host keeps one ``Cluster`` and feeds it events through ``advance``. What the hosts must
do follows from the phase it is in; how the job ended is its verdict. Nothing here knows of
processes, sockets or clocks, so every ending can be tested without any of them.
"""

import enum
from dataclasses import dataclass, replace
from typing import Any, FrozenSet, Iterable, Mapping, Optional, Tuple, Union

from sagemaker_mxnet_toolkit.failure import Failure, Outcome

SETTLE = 0.3
"""Seconds between the first failure seen and the verdict.

Failures reach the first host in another order than they happened in. A worker that loses its
peer may be heard before the peer; this is the time an earlier failure has to arrive.
"""


class Phase(enum.Enum):
    """Where the job as a whole is."""

    GATHERING = "gathering"
    """Hosts join, fetch the code and install requirements."""
    TRAINING = "training"
    """Every host was ready: scheduler, servers and workers run."""
    DRAINING = "draining"
    """Every worker has finished: scheduler and servers leave."""
    ENDED = "ended"
    """There is a verdict. Nothing that happens now can change it."""


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
        failure: the first failure in time, for ``Outcome.FAILURE`` only.
    """

    outcome: Outcome
    failure: Optional[Failure] = None

    def to_json(self) -> Mapping[str, Any]:
        """Return a JSON object."""
        failure = None if self.failure is None else self.failure.to_json()
        return {"outcome": self.outcome.value, "failure": failure}

    @classmethod
    def from_json(cls, data: Any) -> "Verdict":
        """Read what ``to_json`` wrote; anything else raises ``ValueError``."""
        if not isinstance(data, Mapping):
            raise ValueError("a verdict must be a JSON object")
        outcome = Outcome(data.get("outcome"))
        failure = Failure.from_json(data["failure"]) if outcome is Outcome.FAILURE else None
        return cls(outcome, failure)


@dataclass(frozen=True)
class Ready:
    """A host has joined, has its code and its requirements."""

    host: str


@dataclass(frozen=True)
class Finished:
    """The worker of a host has finished with status 0, or has ended after a stop."""

    host: str


@dataclass(frozen=True)
class Drained:
    """No process of the job is left on a host, and it can write its result."""

    host: str


@dataclass(frozen=True)
class Failed:
    """Something failed, at a time on the first host's clock (seconds, monotonic)."""

    failure: Failure
    time: float


@dataclass(frozen=True)
class StopRequested:
    """A host was asked to stop, at a time on the first host's clock."""

    stop: Stop
    time: float


@dataclass(frozen=True)
class Tick:
    """Time has passed; nothing else happened."""

    time: float


Event = Union[Ready, Finished, Drained, Failed, StopRequested, Tick]


@dataclass(frozen=True)
class Cluster:
    """What the first host knows of the whole job.

    Attributes:
        hosts: every host of the job.
        ready, finished, drained: the hosts that got that far.
        phase: where the job is.
        failure: the earliest failure so far, with its time.
        stop: the earliest request to stop so far, with its time.
        settled: when the failure becomes the verdict; ``None`` without a failure that counts.
        verdict: how the job ended, once ``phase`` is ``ENDED``.
    """

    hosts: FrozenSet[str]
    ready: FrozenSet[str] = frozenset()
    finished: FrozenSet[str] = frozenset()
    drained: FrozenSet[str] = frozenset()
    phase: Phase = Phase.GATHERING
    failure: Optional[Tuple[float, Failure]] = None
    stop: Optional[Tuple[float, Stop]] = None
    settled: Optional[float] = None
    verdict: Optional[Verdict] = None

    @classmethod
    def of(cls, hosts: Iterable[str]) -> "Cluster":
        """Return the state in which every job begins."""
        return cls(hosts=frozenset(hosts))

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for, and no earlier failure is known."""
        if self.stop is None:
            return False
        return self.failure is None or self.stop[0] <= self.failure[0]


def advance(cluster: Cluster, event: Event, now: float) -> Cluster:
    """Return the state after ``event``, seen at ``now`` (seconds, monotonic, never going back)."""
    if cluster.phase is Phase.ENDED:
        return cluster
    return _judge(_note(cluster, event, now), now)


def _note(cluster: Cluster, event: Event, now: float) -> Cluster:
    if isinstance(event, Ready):
        return replace(cluster, ready=cluster.ready | ({event.host} & cluster.hosts))
    if isinstance(event, Finished):
        return replace(cluster, finished=cluster.finished | ({event.host} & cluster.hosts))
    if isinstance(event, Drained):
        return replace(cluster, drained=cluster.drained | ({event.host} & cluster.hosts))
    if isinstance(event, Failed) and (cluster.failure is None or event.time < cluster.failure[0]):
        cluster = replace(cluster, failure=(event.time, event.failure))
    if isinstance(event, StopRequested) and (cluster.stop is None or event.time < cluster.stop[0]):
        cluster = replace(cluster, stop=(event.time, event.stop))
    if cluster.failure is not None and cluster.settled is None and not cluster.stopping:
        cluster = replace(cluster, settled=now + SETTLE)
    return cluster


def _judge(cluster: Cluster, now: float) -> Cluster:
    if cluster.stopping:
        # A host that is lost while the job stops is gone as asked: nobody waits for it.
        cluster = replace(cluster, settled=None)
    elif cluster.failure is not None:
        if cluster.settled is not None and now >= cluster.settled:
            verdict = Verdict(Outcome.FAILURE, cluster.failure[1])
            return replace(cluster, phase=Phase.ENDED, verdict=verdict)
        return cluster
    if cluster.stopping and cluster.phase is Phase.GATHERING:
        cluster = replace(cluster, phase=Phase.TRAINING)
    if cluster.phase is Phase.GATHERING and cluster.ready == cluster.hosts:
        cluster = replace(cluster, phase=Phase.TRAINING)
    if cluster.phase is Phase.TRAINING and cluster.finished == cluster.hosts:
        cluster = replace(cluster, phase=Phase.DRAINING)
    if cluster.phase is Phase.DRAINING and cluster.drained == cluster.hosts:
        outcome = Outcome.STOP if cluster.stopping else Outcome.SUCCESS
        return replace(cluster, phase=Phase.ENDED, verdict=Verdict(outcome))
    return cluster
