"""How a job goes on and how it ends: one pure function of what happened on all its hosts.

The first host keeps one ``Cluster`` and feeds it events through ``advance``, which returns the next
state and the orders that follow from the event. Nothing here knows of processes, sockets or clocks,
so every ending can be tested without any of them.

Another attempt of a failed job would be decided in ``_judge_failure``: where the verdict is given
today, it would return to ``GATHERING`` with a higher attempt number.
"""

import enum
from dataclasses import dataclass, replace
from typing import Any, FrozenSet, Iterable, List, Mapping, Optional, Tuple, Union

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role

VERDICT_DELAY = 0.3
"""Seconds between the first failure seen and the verdict.

Failures reach the first host in another order than they happened in. A worker that loses its
peer may be heard before the peer; this is the time an earlier failure has to arrive.
"""


class Phase(enum.Enum):
    """Where the job as a whole is. Phases only move forward; some may be skipped."""

    GATHERING = "gathering"
    """Hosts join, fetch the code and install requirements."""
    TRAINING = "training"
    """Every host was ready: scheduler, servers and workers run."""
    STOPPING = "stopping"
    """A stop was asked for: scripts write their checkpoints, and preparation is given up."""
    DRAINING = "draining"
    """Every worker has finished: scheduler and servers leave."""
    ENDED = "ended"
    """There is a verdict. Nothing that happens afterwards can change it."""


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
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: when ``data`` is anything else.
        """
        if not isinstance(data, Mapping):
            raise ValueError("a verdict must be a JSON object")
        outcome = Outcome(data.get("outcome"))
        failed = outcome is Outcome.FAILURE
        return cls(outcome, Failure.from_json(data.get("failure")) if failed else None)


def lost(host: str, reason: str) -> Failure:
    """Return the failure that a host's disappearance is."""
    return Failure(host, Role.ENTRYPOINT, f"lost: {reason}", kind=FailureKind.LOST)


# Events. Times are on the first host's monotonic clock, in seconds.


@dataclass(frozen=True)
class Joined:
    """A host joined the first one. It must be told what was ordered before."""

    host: str


@dataclass(frozen=True)
class Lost:
    """A host that had joined is gone, without an end of the job. None comes back."""

    host: str
    reason: str
    time: float


@dataclass(frozen=True)
class Ready:
    """A host has its code and its requirements."""

    host: str


@dataclass(frozen=True)
class Stepped:
    """The first step of training is done, as one host noticed."""


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
    """Something failed."""

    failure: Failure
    time: float


@dataclass(frozen=True)
class StopRequested:
    """A host was asked to stop."""

    stop: Stop
    time: float


@dataclass(frozen=True)
class GaveUp:
    """The deciding host was asked to stop for the second time: it waits for nobody any more."""


@dataclass(frozen=True)
class Tick:
    """Time has passed; nothing else happened."""


Event = Union[
    Joined, Lost, Ready, Stepped, Finished, Drained, Failed, StopRequested, GaveUp, Tick
]  # fmt: skip


# Orders.


@dataclass(frozen=True)
class Start:
    """Start the kvstore and the worker."""


@dataclass(frozen=True)
class FirstStep:
    """Take note that the first step of training is done."""


@dataclass(frozen=True)
class StopScripts:
    """Ask the worker to stop, or whatever prepares for it."""

    stop: Stop


@dataclass(frozen=True)
class Drain:
    """All workers have finished: see the rest of the processes out."""


@dataclass(frozen=True)
class End:
    """Make an end of whatever still runs, and report this verdict."""

    verdict: Verdict


Action = Union[Start, FirstStep, StopScripts, Drain, End]


@dataclass(frozen=True)
class Order:
    """Something to be done, by one host or by all that have joined.

    Attributes:
        action: what is to be done. No host is given two actions of one type.
        to: the host; ``None`` for all that have joined, the first one included.
    """

    action: Action
    to: Optional[str] = None


@dataclass(frozen=True)
class Cluster:
    """What the first host knows of the whole job.

    Attributes:
        hosts: every host of the job.
        joined: the hosts that can be given orders: the first one, and members that are not lost.
        ready, finished, drained: the hosts that got that far.
        start_time: no sooner than this the roles start (monotonic, seconds).
        phase: where the job is.
        stepped: whether the first step was announced.
        stop_ordered: whether the hosts were told to stop.
        failure: the earliest failure so far, with its time.
        stop: the earliest request to stop so far, with its time.
        verdict_time: when the failure becomes the verdict; ``None`` without a failure that counts.
        verdict: how the job ended, once ``phase`` is ``ENDED``.
    """

    hosts: FrozenSet[str]
    joined: FrozenSet[str]
    ready: FrozenSet[str] = frozenset()
    finished: FrozenSet[str] = frozenset()
    drained: FrozenSet[str] = frozenset()
    start_time: float = 0.0
    phase: Phase = Phase.GATHERING
    stepped: bool = False
    stop_ordered: bool = False
    failure: Optional[Tuple[float, Failure]] = None
    stop: Optional[Tuple[float, Stop]] = None
    verdict_time: Optional[float] = None
    verdict: Optional[Verdict] = None

    @classmethod
    def of(cls, hosts: Iterable[str], first: str, start_time: float = 0.0) -> "Cluster":
        """Return the state in which every job begins, as its first host sees it."""
        return cls(frozenset(hosts), frozenset((first,)), start_time=start_time)

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for, and no earlier failure is known."""
        if self.stop is None:
            return False
        return self.failure is None or self.stop[0] <= self.failure[0]

    @property
    def awaited(self) -> FrozenSet[str]:
        """The hosts without which the job cannot go on.

        A job that stops waits for none that is lost or has never joined: it is gone as asked.
        """
        return self.joined if self.stopping else self.hosts

    @property
    def due(self) -> Optional[float]:
        """When a ``Tick`` will change something, if it will (monotonic, seconds)."""
        if self.phase is Phase.GATHERING and self.ready == self.hosts and self.failure is None:
            return self.start_time
        return self.verdict_time


Decision = Tuple[Cluster, Tuple[Order, ...]]


def advance(cluster: Cluster, event: Event, now: float) -> Decision:
    """Return the state after an event, and what is to be done because of it, in this order.

    Args:
        cluster: the state before.
        event: what happened.
        now: when it was seen (seconds, monotonic, never going back).
    """
    if isinstance(event, Joined):
        return _admit(cluster, event.host)
    if cluster.phase is Phase.ENDED:
        # A verdict is final; who has still to hear it is not.
        gone = {event.host} if isinstance(event, Lost) else set()
        return replace(cluster, joined=cluster.joined - gone), ()
    if isinstance(event, GaveUp):
        # An earlier failure stays the cause, although nobody waits for one still earlier.
        failed = None if cluster.stopping or cluster.failure is None else cluster.failure[1]
        return _end(cluster, Verdict(Outcome.FAILURE if failed else Outcome.STOP, failed))
    if isinstance(event, Stepped):
        orders = () if cluster.stepped else (Order(FirstStep()),)
        return replace(cluster, stepped=True), orders
    cluster = _record(cluster, event)
    if cluster.failure is not None and not cluster.stopping:
        return _judge_failure(cluster, cluster.failure[1], now)
    return _judge_progress(replace(cluster, verdict_time=None), now)


def _admit(cluster: Cluster, host: str) -> Decision:
    """Take a host in, and tell it what the others were told before."""
    if host not in cluster.hosts - cluster.joined:
        return cluster, ()
    actions: List[Action] = []
    if cluster.stop_ordered and cluster.stop is not None:
        actions.append(StopScripts(cluster.stop[1]))
    if cluster.phase is Phase.DRAINING:
        actions.append(Drain())
    if cluster.verdict is not None:
        actions = [End(cluster.verdict)]
    joined = cluster.joined | {host}
    return replace(cluster, joined=joined), tuple(Order(each, host) for each in actions)


def _record(cluster: Cluster, event: Event) -> Cluster:
    if isinstance(event, Ready):
        return replace(cluster, ready=cluster.ready | ({event.host} & cluster.hosts))
    if isinstance(event, Finished):
        return replace(cluster, finished=cluster.finished | ({event.host} & cluster.hosts))
    if isinstance(event, Drained):
        return replace(cluster, drained=cluster.drained | ({event.host} & cluster.hosts))
    if isinstance(event, Lost) and event.host in cluster.joined:
        cluster = replace(cluster, joined=cluster.joined - {event.host})
        event = Failed(lost(event.host, event.reason), event.time)
    if isinstance(event, Failed) and (cluster.failure is None or event.time < cluster.failure[0]):
        return replace(cluster, failure=(event.time, event.failure))
    if isinstance(event, StopRequested) and (cluster.stop is None or event.time < cluster.stop[0]):
        return replace(cluster, stop=(event.time, event.stop))
    return cluster


def _judge_failure(cluster: Cluster, failure: Failure, now: float) -> Decision:
    if cluster.verdict_time is None:
        return replace(cluster, verdict_time=now + VERDICT_DELAY), ()
    if now < cluster.verdict_time:
        return cluster, ()
    return _end(cluster, Verdict(Outcome.FAILURE, failure))


def _judge_progress(cluster: Cluster, now: float) -> Decision:
    orders: List[Order] = []
    if cluster.stopping and not cluster.stop_ordered and cluster.stop is not None:
        orders.append(Order(StopScripts(cluster.stop[1])))
        cluster = replace(cluster, stop_ordered=True)
        if cluster.phase is not Phase.DRAINING:
            cluster = replace(cluster, phase=Phase.STOPPING)
    if (
        cluster.phase is Phase.GATHERING
        and cluster.ready == cluster.hosts
        and now >= cluster.start_time
    ):
        orders.append(Order(Start()))
        cluster = replace(cluster, phase=Phase.TRAINING)
    working = cluster.phase in (Phase.TRAINING, Phase.STOPPING)
    if working and cluster.awaited <= cluster.finished:
        orders.append(Order(Drain()))
        cluster = replace(cluster, phase=Phase.DRAINING)
    if cluster.phase is Phase.DRAINING and cluster.awaited <= cluster.drained:
        outcome = Outcome.STOP if cluster.stopping else Outcome.SUCCESS
        cluster, last = _end(cluster, Verdict(outcome))
        orders.extend(last)
    return cluster, tuple(orders)


def _end(cluster: Cluster, verdict: Verdict) -> Decision:
    ended = replace(cluster, phase=Phase.ENDED, verdict=verdict, verdict_time=None)
    return ended, (Order(End(verdict)),)
