"""How a job goes on and how it ends: one pure function of what happened on all its hosts.

The first host keeps one ``Cluster`` and feeds it events through ``advance``, which returns the next
state and the orders that follow from the event. Nothing here knows of processes, sockets or clocks,
so every ending can be tested without any of them.

A job is a sequence of attempts, mostly of one. Whether another one follows a failure is decided by
``restarts``; it begins with gathering, as the first did.
"""

import enum
import signal
from dataclasses import dataclass, replace
from typing import Any, FrozenSet, Iterable, List, Optional, Tuple

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training.cluster.events import (
    CAUSE_LIMIT,
    Action,
    Command,
    Do,
    End,
    Event,
    Failed,
    Lost,
    Order,
    Own,
    Reported,
    Restart,
    Start,
    Step,
    Stop,
    StopRequested,
    StopScripts,
    Verdict,
    lost,
)
from sagemaker_mxnet_training.cluster.restarts import FailedAttempt, RestartPolicy, refusal

VERDICT_DELAY = 0.3
"""Seconds between the first failure seen and the verdict.

Failures reach the first host in another order than they happened in. A worker that loses its
peer may be heard before the peer; this is the time an earlier failure has to arrive.
"""

SHORT_VERDICT_DELAY = 0.05
"""The same where less will do: in a job of one host, whose processes report to one loop, and for a
process that SIGKILL has ended, which no failure of another process can have caused.
"""

CLEAR_TIMEOUT = 300.0
"""Seconds that hosts have to end an attempt, to choose a checkpoint and to be ready again."""


class Phase(enum.Enum):
    """Where an attempt is. Phases only move forward; some may be skipped."""

    GATHERING = "gathering"
    """Hosts join, fetch the code and install requirements; or they clear up after a failure."""
    TRAINING = "training"
    """Every host was ready: scheduler, servers and workers run."""
    STOPPING = "stopping"
    """A stop was asked for: scripts write their checkpoints, and preparation is given up."""
    DRAINING = "draining"
    """Every worker has finished: scheduler and servers leave."""
    ENDED = "ended"
    """There is a verdict. Nothing that happens afterwards can change it."""


_NOBODY: FrozenSet[str] = frozenset()
_NO_RESTARTS = RestartPolicy(max_restarts=0)


@dataclass(frozen=True)
class Cluster:
    """What the first host knows of the whole job.

    Attributes:
        hosts: every host of the job.
        first: the first host, which decides.
        policy: whether a failed attempt is followed by another.
        joined: the hosts that can be given orders: the first one, and members that are not lost.
        attempt: number of the attempt, from 1.
        failed: the attempts before.
        ready, finished, drained: the hosts that got that far in this attempt.
        start_time: no sooner than this the roles start (monotonic, seconds).
        gather_by: when hosts that are not ready again fail the job; ``None`` in the first attempt.
        phase: where the attempt is.
        stepped: whether the first step was announced.
        checkpoints: whether the script uses checkpoints.
        committed: whether one was written in this attempt.
        stop_ordered: whether the hosts were told to stop.
        leave_ordered: whether they were told that the checkpoint of the stop is written.
        failure: the earliest failure of this attempt so far, with its time.
        stop: the earliest request to stop so far, with its time.
        verdict_time: when the failure is acted on; ``None`` without a failure that counts.
        verdict: how the job ended, once ``phase`` is ``ENDED``.
    """

    hosts: FrozenSet[str]
    first: str
    policy: RestartPolicy
    joined: FrozenSet[str]
    attempt: int = 1
    failed: Tuple[FailedAttempt, ...] = ()
    ready: FrozenSet[str] = _NOBODY
    finished: FrozenSet[str] = _NOBODY
    drained: FrozenSet[str] = _NOBODY
    start_time: float = 0.0
    gather_by: Optional[float] = None
    phase: Phase = Phase.GATHERING
    stepped: bool = False
    checkpoints: bool = False
    committed: bool = False
    stop_ordered: bool = False
    leave_ordered: bool = False
    failure: Optional[Tuple[float, Failure]] = None
    stop: Optional[Tuple[float, Stop]] = None
    verdict_time: Optional[float] = None
    verdict: Optional[Verdict] = None

    @classmethod
    def of(
        cls,
        hosts: Iterable[str],
        first: str,
        start_time: float = 0.0,
        policy: RestartPolicy = _NO_RESTARTS,
        attempt: int = 1,
    ) -> "Cluster":
        """Return the state in which every job begins, as its first host sees it."""
        joined = frozenset((first,))
        return cls(frozenset(hosts), first, policy, joined, attempt, start_time=start_time)

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for, and no failure counts.

        One counts that is earlier, and one of the checkpoint for which the stop was given time.
        """
        if self.stop is None or self.failure is None:
            return self.stop is not None
        when, failure = self.failure
        return self.stop[0] <= when and failure.kind is not FailureKind.CHECKPOINT

    @property
    def awaited(self) -> FrozenSet[str]:
        """The hosts without which the job cannot go on.

        A job that stops waits for none that is lost or has never joined: it is gone as asked.
        """
        return self.joined if self.stopping else self.hosts

    @property
    def due(self) -> Optional[float]:
        """When ``Own.TICK`` will change something, if it will (monotonic, seconds)."""
        if self.phase is Phase.GATHERING and self.failure is None:
            return self.start_time if self.ready == self.hosts else self.gather_by
        return self.verdict_time


Decision = Tuple[Cluster, Tuple[Order, ...]]

_REACHED = {Step.READY: "ready", Step.FINISHED: "finished", Step.DRAINED: "drained"}


def advance(cluster: Cluster, event: Event, now: float) -> Decision:
    """Return the state after an event, and what is to be done because of it, in this order.

    Args:
        cluster: the state before.
        event: what happened.
        now: when it was seen (seconds, monotonic, never going back).
    """
    if isinstance(event, Reported):
        if event.host not in cluster.hosts:
            return cluster, ()
        if event.step is Step.JOINED:
            return _admit(cluster, event.host, now)
        if event.attempt > cluster.attempt:
            return _adopt(cluster, event, now)
    if cluster.phase is Phase.ENDED:
        # A verdict is final; who has still to hear it is not.
        gone = {event.host} if isinstance(event, Lost) else set()
        return replace(cluster, joined=cluster.joined - gone), ()
    if event is Own.GAVE_UP:
        # An earlier failure stays the cause, although nobody waits for one still earlier.
        failed = None if cluster.stopping or cluster.failure is None else cluster.failure[1]
        return _end(cluster, Outcome.FAILURE if failed else Outcome.STOP, failed)
    cluster, orders = _record(cluster, event)
    if cluster.failure is not None and not cluster.stopping:
        cluster, more = _judge_failure(cluster, cluster.failure[1], now)
    else:
        cluster, more = _judge_progress(replace(cluster, verdict_time=None), now)
    return cluster, orders + more


def _admit(cluster: Cluster, host: str, now: float) -> Decision:
    """Take a host in, and tell it what the others were told before."""
    if host in cluster.joined:
        return cluster, ()
    actions: List[Action] = []
    if cluster.attempt > 1 and cluster.failed:
        actions.append(Restart(cluster.attempt, cluster.failed[-1].failure))
    if cluster.stop_ordered and cluster.stop is not None:
        actions.append(StopScripts(cluster.stop[1]))
    if cluster.phase is Phase.DRAINING:
        actions.append(Do(Command.DRAIN))
    if cluster.verdict is not None:
        actions = [End(cluster.verdict)]
    joined, gather_by = cluster.joined | {host}, cluster.gather_by
    if gather_by is not None and joined == cluster.hosts:
        gather_by = now + CLEAR_TIMEOUT  # it is back, and gets ready
    cluster = replace(cluster, joined=joined, gather_by=gather_by)
    return cluster, tuple(Order(each, host) for each in actions)


def _record(cluster: Cluster, event: Event) -> Decision:
    if isinstance(event, (Reported, Failed)) and event.attempt != cluster.attempt:
        return cluster, ()  # of an attempt that is over
    if isinstance(event, Reported):
        return _record_step(cluster, event)
    return _record_fault(cluster, event), ()


def _record_step(cluster: Cluster, event: Reported) -> Decision:
    reached = _REACHED.get(event.step)
    if reached is not None:
        changes: Any = {reached: getattr(cluster, reached) | {event.host}}
        return replace(cluster, **changes), ()
    if event.step is Step.STEPPED and not cluster.stepped:
        return replace(cluster, stepped=True), (Order(Do(Command.FIRST_STEP)),)
    if event.step is Step.CHECKPOINTING:
        return replace(cluster, checkpoints=True), ()
    if event.step is Step.CHECKPOINTED:
        return replace(cluster, checkpoints=True, committed=True), ()
    return cluster, ()


def _record_fault(cluster: Cluster, event: Event) -> Cluster:
    if isinstance(event, Lost) and event.host in cluster.joined:
        cluster = replace(
            cluster, joined=cluster.joined - {event.host}, ready=cluster.ready - {event.host}
        )
        event = Failed(lost(event.host, event.reason), event.time)
    if isinstance(event, Failed) and _replaces(event, cluster):
        return replace(cluster, failure=(event.time, event.failure))
    if isinstance(event, StopRequested) and (cluster.stop is None or event.time < cluster.stop[0]):
        return replace(cluster, stop=(event.time, event.stop))
    return cluster


def _replaces(event: Failed, cluster: Cluster) -> bool:
    """Tell whether a failure is the cause, rather than the one that is known."""
    if cluster.failure is None or event.time < cluster.failure[0]:
        return True
    return cluster.stopping and event.failure.kind is FailureKind.CHECKPOINT


def _judge_failure(cluster: Cluster, failure: Failure, now: float) -> Decision:
    killed = failure.kind is FailureKind.SIGNAL and failure.status == 128 + signal.SIGKILL
    delay = SHORT_VERDICT_DELAY if killed or len(cluster.hosts) == 1 else VERDICT_DELAY
    if cluster.verdict_time is None or now + delay < cluster.verdict_time:
        return replace(cluster, verdict_time=now + delay), ()
    if now < cluster.verdict_time:
        return cluster, ()
    started = cluster.phase is not Phase.GATHERING or cluster.attempt > 1
    away = cluster.joined != cluster.hosts
    failed = FailedAttempt(cluster.attempt, failure, started, cluster.committed, away)
    # A first host that was started again knows only that there are restarts.
    checkpoints = cluster.checkpoints or cluster.attempt > 1
    ends = refusal(cluster.policy, checkpoints, failed, cluster.failed)
    if ends or cluster.stop is not None:
        return _end(cluster, Outcome.FAILURE, failure)
    return _begin_anew(cluster, cluster.attempt + 1, failed, now)


def _adopt(cluster: Cluster, event: Reported, now: float) -> Decision:
    """Catch up with a host that has seen more attempts: this one is back after it was lost."""
    if not cluster.policy.rejoin_timeout or cluster.phase is Phase.ENDED:
        return cluster, ()
    failure = lost(cluster.first, "it was started again")
    if cluster.failure is not None:
        failure = cluster.failure[1]
    failed = FailedAttempt(event.attempt - 1, failure, started=True, committed=False)
    if refusal(cluster.policy, True, failed):
        return _end(cluster, Outcome.FAILURE, failure)
    cluster, orders = _begin_anew(cluster, event.attempt, failed, now)
    return _record_step(cluster, event)[0], orders


def _begin_anew(cluster: Cluster, attempt: int, failed: FailedAttempt, now: float) -> Decision:
    away = cluster.joined != cluster.hosts
    fresh = Cluster(
        cluster.hosts,
        cluster.first,
        cluster.policy,
        cluster.joined,
        attempt,
        (*cluster.failed, failed),
        start_time=now,
        gather_by=now + (cluster.policy.rejoin_timeout if away else CLEAR_TIMEOUT),
        checkpoints=cluster.checkpoints,
    )
    return fresh, (Order(Restart(attempt, failed.failure)),)


def _judge_progress(cluster: Cluster, now: float) -> Decision:
    orders: List[Order] = []
    if cluster.stopping and not cluster.stop_ordered and cluster.stop is not None:
        orders.append(Order(StopScripts(cluster.stop[1])))
        cluster = replace(cluster, stop_ordered=True)
        if cluster.phase is not Phase.DRAINING:
            cluster = replace(cluster, phase=Phase.STOPPING)
    if cluster.phase is Phase.GATHERING:
        if cluster.ready == cluster.hosts and now >= cluster.start_time:
            orders.append(Order(Start(cluster.attempt)))
            cluster = replace(cluster, phase=Phase.TRAINING)
        elif cluster.gather_by is not None and now >= cluster.gather_by:
            return _end(cluster, Outcome.FAILURE, _not_ready(cluster))
    saved = cluster.checkpoints and cluster.first in cluster.finished
    if cluster.phase is Phase.STOPPING and saved and not cluster.leave_ordered:
        orders.append(Order(Do(Command.LEAVE)))
        cluster = replace(cluster, leave_ordered=True)
    working = cluster.phase in (Phase.TRAINING, Phase.STOPPING)
    if working and cluster.awaited <= cluster.finished:
        orders.append(Order(Do(Command.DRAIN)))
        cluster = replace(cluster, phase=Phase.DRAINING)
    if cluster.phase is Phase.DRAINING and cluster.awaited <= cluster.drained:
        cluster, last = _end(cluster, Outcome.STOP if cluster.stopping else Outcome.SUCCESS)
        orders.extend(last)
    return cluster, tuple(orders)


def _not_ready(cluster: Cluster) -> Failure:
    """Return why an attempt cannot begin: who is lost and not back, or does not get ready."""
    before, away = cluster.failed[-1].failure, sorted(cluster.hosts - cluster.joined)
    if away and before.kind is FailureKind.LOST:
        return before
    if away:
        timeout = cluster.policy.rejoin_timeout
        return lost(away[0], f"it did not come back within {timeout:g} s")
    missing = sorted(cluster.hosts - cluster.ready)[0]
    reason = f"was not ready for another attempt within {CLEAR_TIMEOUT:g} s"
    return Failure(missing, Role.ENTRYPOINT, reason, kind=FailureKind.JOIN)


def _end(cluster: Cluster, outcome: Outcome, failure: Optional[Failure] = None) -> Decision:
    first_cause = cluster.failed[0].failure.headline() if cluster.failed else ""
    verdict = Verdict(outcome, failure, cluster.attempt - 1, first_cause[:CAUSE_LIMIT])
    ended = replace(cluster, phase=Phase.ENDED, verdict=verdict, verdict_time=None)
    return ended, (Order(End(verdict)),)
