"""Decides how a job proceeds and ends: one pure function of the events on all hosts.

The first host has a ``Cluster`` and passes events to ``advance``, which returns the next state and
the resulting orders. Nothing here depends on processes, sockets or clocks, so every ending can be
tested without them.

A job is a sequence of attempts, mostly one. ``restarts`` decides whether another one follows a
failure; it starts with ``GATHERING``, like the first.
"""

import enum
import signal
from dataclasses import dataclass, replace
from typing import Any, FrozenSet, Iterable, List, Optional, Tuple

from sagemaker_mxnet_toolkit.failure import UNWRITTEN, Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_training.cluster.events import (
    CAUSE_LIMIT,
    Action,
    DrainRoles,
    End,
    EndScripts,
    Event,
    Failed,
    FirstStep,
    HostState,
    LocalEvent,
    Lost,
    Order,
    RankFinished,
    Reported,
    Restart,
    Start,
    Stop,
    StopRequested,
    StopScripts,
    Verdict,
    lost,
)
from sagemaker_mxnet_training.cluster.restarts import FailedAttempt, refusal

VERDICT_DELAY = 0.3
"""Seconds between the first reported failure and the verdict.

Reports may arrive in another order than the failures happened. The failure of a worker that lost
its peer may arrive before that of the peer; this is the time to wait for an earlier failure.
"""

PEER_VERDICT_DELAY = 2.0
"""The same after a worker has lost another one, whose failure is the cause."""

SHORT_VERDICT_DELAY = 0.05
"""The same in a job of one host, whose processes report to one loop, and for a process killed by
SIGKILL, which is not a consequence of another failure.
"""

CLEAR_TIMEOUT = 300.0
"""Timeout in seconds for hosts to end an attempt, select a checkpoint and be ready again."""


class Phase(enum.Enum):
    """The phase of an attempt. Phases only move forward; some may be skipped."""

    GATHERING = "gathering"
    """Hosts join, fetch the code and install requirements; or they clean up after a failure."""
    TRAINING = "training"
    """All hosts were ready: scheduler, servers and workers run."""
    STOPPING = "stopping"
    """A stop was requested: scripts write their checkpoints, and preparation is aborted."""
    DRAINING = "draining"
    """All workers have finished: scheduler and servers exit."""
    ENDED = "ended"
    """There is a verdict, which is final."""


_NOBODY: FrozenSet[str] = frozenset()


@dataclass(frozen=True)
class Cluster:
    """The state of the job, as the first host knows it.

    Attributes:
        hosts: all hosts of the job.
        first: the first host, which decides.
        max_restarts: maximum number of restarts, as for ``restarts.limit``.
        joined: hosts that can get orders: the first one, and members that are not lost.
        attempt: number of the attempt, from 1.
        failed: earlier attempts.
        ready, finished, drained: hosts that have reached this state in this attempt.
        gather_by: deadline for hosts to be ready again; ``None`` in the first attempt.
        phase: phase of the attempt.
        ranks_finished: workers with Horovod that have exited with status 0.
        stepped: whether the first step was announced.
        checkpoints: whether the script uses checkpoints.
        committed: whether a checkpoint was written in this attempt.
        saved: whether a host has a model.
        stop_ordered: whether the order to stop was given.
        leave_ordered: whether the order to end scripts was given, after the checkpoint of a stop.
        failure: the earliest failure of this attempt, with its time.
        stop: the earliest request to stop, with its time.
        verdict_time: when the failure becomes the verdict; ``None`` without such a failure.
        verdict: how the job ended, if ``phase`` is ``ENDED``.
    """

    hosts: FrozenSet[str]
    first: str
    max_restarts: Optional[int]
    joined: FrozenSet[str]
    attempt: int = 1
    failed: Tuple[FailedAttempt, ...] = ()
    ready: FrozenSet[str] = _NOBODY
    finished: FrozenSet[str] = _NOBODY
    drained: FrozenSet[str] = _NOBODY
    gather_by: Optional[float] = None
    phase: Phase = Phase.GATHERING
    ranks_finished: Tuple[RankFinished, ...] = ()
    stepped: bool = False
    checkpoints: bool = False
    committed: bool = False
    saved: bool = False
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
        max_restarts: Optional[int] = 0,
        attempt: int = 1,
    ) -> "Cluster":
        """Return the initial state of a job."""
        joined = frozenset((first,))
        return cls(frozenset(hosts), first, max_restarts, joined, attempt)

    @property
    def stopping(self) -> bool:
        """Whether the job is stopping, and not failing.

        An earlier failure takes precedence over a stop, and so does one of the last checkpoint.
        """
        if self.stop is None or self.failure is None:
            return self.stop is not None
        when, failure = self.failure
        return self.stop[0] <= when and failure.kind not in UNWRITTEN

    @property
    def awaited(self) -> FrozenSet[str]:
        """The hosts that the job waits for.

        A stopping job does not wait for hosts that are lost or never joined.
        """
        return self.joined if self.stopping else self.hosts

    @property
    def due(self) -> Optional[float]:
        """When ``LocalEvent.TICK`` will have an effect (monotonic, seconds), or ``None``."""
        if self.phase is Phase.GATHERING and self.failure is None:
            return self.gather_by
        return self.verdict_time


Decision = Tuple[Cluster, Tuple[Order, ...]]

_REACHED = {HostState.READY: "ready", HostState.FINISHED: "finished", HostState.DRAINED: "drained"}


def advance(cluster: Cluster, event: Event, now: float) -> Decision:
    """Return the state after an event, and the resulting orders.

    Args:
        cluster: the state before the event.
        event: the event.
        now: the current time (monotonic, seconds).
    """
    if isinstance(event, Reported):
        if event.host not in cluster.hosts:
            return cluster, ()
        if event.state is HostState.JOINED:
            return _admit(cluster, event.host)
    if cluster.phase is Phase.ENDED:
        # A verdict is final, but hosts may still be lost before they get it.
        gone = {event.host} if isinstance(event, Lost) else set()
        return replace(cluster, joined=cluster.joined - gone), ()
    if event is LocalEvent.GAVE_UP:
        # An earlier failure is the cause, without waiting for one that is earlier still.
        failed = None if cluster.stopping or cluster.failure is None else cluster.failure[1]
        return _end(cluster, Outcome.FAILURE if failed else Outcome.STOP, failed)
    cluster, orders = _record(cluster, event)
    if cluster.failure is not None and not cluster.stopping:
        cluster, more = _judge_failure(cluster, cluster.failure[1], now)
    else:
        cluster, more = _judge_progress(replace(cluster, verdict_time=None), now)
    return cluster, orders + more


def _admit(cluster: Cluster, host: str) -> Decision:
    """Add a host, and give it the orders that the others have already got."""
    if host in cluster.joined:
        return cluster, ()
    actions: List[Action] = []
    if cluster.stop_ordered and cluster.stop is not None:
        actions.append(StopScripts(cluster.stop[1]))
    if cluster.phase is Phase.DRAINING:
        actions.append(DrainRoles())
    if cluster.verdict is not None:
        actions = [End(cluster.verdict)]
    cluster = replace(cluster, joined=cluster.joined | {host})
    return cluster, tuple(Order(each, host) for each in actions)


def _record(cluster: Cluster, event: Event) -> Decision:
    if isinstance(event, (Reported, RankFinished, Failed)) and event.attempt != cluster.attempt:
        return cluster, ()  # reports from other attempts are ignored
    if isinstance(event, Reported):
        return _record_step(cluster, event)
    if isinstance(event, RankFinished):
        return replace(cluster, ranks_finished=(*cluster.ranks_finished, event)), ()
    return _record_fault(cluster, event), ()


def _record_step(cluster: Cluster, event: Reported) -> Decision:
    reached = _REACHED.get(event.state)
    if reached is not None:
        changes: Any = {reached: getattr(cluster, reached) | {event.host}}
        return replace(cluster, **changes), ()
    if event.state is HostState.STEPPED and not cluster.stepped:
        return replace(cluster, stepped=True), (Order(FirstStep()),)
    if event.state is HostState.SAVED:
        return replace(cluster, saved=True), ()
    if event.state is HostState.CHECKPOINTING:
        return replace(cluster, checkpoints=True), ()
    if event.state is HostState.CHECKPOINTED:
        return replace(cluster, checkpoints=True, committed=True), ()
    return cluster, ()


def _record_fault(cluster: Cluster, event: Event) -> Cluster:
    if isinstance(event, Lost) and event.host in cluster.joined:
        cluster = replace(
            cluster, joined=cluster.joined - {event.host}, ready=cluster.ready - {event.host}
        )
        named = cluster.first if event.dropped else event.host
        event = Failed(lost(named, event.reason), event.time)
    if isinstance(event, Failed) and _replaces(event, cluster):
        return replace(cluster, failure=(event.time, event.failure))
    if isinstance(event, StopRequested) and (cluster.stop is None or event.time < cluster.stop[0]):
        return replace(cluster, stop=(event.time, event.stop))
    return cluster


def _replaces(event: Failed, cluster: Cluster) -> bool:
    """Return whether a failure replaces the current one as the cause."""
    if cluster.failure is None:
        return True
    when, known = cluster.failure
    consequence = event.failure.kind is FailureKind.PEER
    if consequence != (known.kind is FailureKind.PEER):
        return not consequence
    return event.time < when or (cluster.stopping and event.failure.kind in UNWRITTEN)


def _verdict_delay(cluster: Cluster, failure: Failure) -> float:
    if failure.kind is FailureKind.PEER:
        return VERDICT_DELAY if cluster.ranks_finished else PEER_VERDICT_DELAY
    killed = failure.kind is FailureKind.SIGNAL and failure.status == 128 + signal.SIGKILL
    return SHORT_VERDICT_DELAY if killed or len(cluster.hosts) == 1 else VERDICT_DELAY


def _left_early(finished: RankFinished) -> Failure:
    """Return the failure of a worker that exited while others still needed it."""
    reason = "left early: its script ended with exit status 0 while other ranks still trained"
    kind = FailureKind.EXIT_STATUS
    return Failure(finished.host, Role.WORKER, reason, kind, rank=finished.rank)


def _judge_failure(cluster: Cluster, failure: Failure, now: float) -> Decision:
    delay = _verdict_delay(cluster, failure)
    if cluster.verdict_time is None or now + delay < cluster.verdict_time:
        return replace(cluster, verdict_time=now + delay), ()
    if now < cluster.verdict_time:
        return cluster, ()
    if failure.kind is FailureKind.PEER and cluster.ranks_finished:
        failure = _left_early(cluster.ranks_finished[0])
    started = cluster.phase is not Phase.GATHERING or cluster.attempt > 1
    away = cluster.joined != cluster.hosts
    failed = FailedAttempt(cluster.attempt, failure, started, cluster.committed, away)
    ends = refusal(cluster.max_restarts, cluster.checkpoints, failed, cluster.failed)
    if ends or cluster.stop is not None:
        return _end(cluster, Outcome.FAILURE, failure)
    return _restart(cluster, failed, now)


def _restart(cluster: Cluster, failed: FailedAttempt, now: float) -> Decision:
    attempt = cluster.attempt + 1
    fresh = Cluster(
        cluster.hosts,
        cluster.first,
        cluster.max_restarts,
        cluster.joined,
        attempt,
        (*cluster.failed, failed),
        gather_by=now + CLEAR_TIMEOUT,
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
        if cluster.ready == cluster.hosts:
            orders.append(Order(Start(cluster.attempt)))
            cluster = replace(cluster, phase=Phase.TRAINING)
        elif cluster.gather_by is not None and now >= cluster.gather_by:
            return _end(cluster, Outcome.FAILURE, _not_ready(cluster))
    saved = cluster.checkpoints and cluster.first in cluster.finished
    if cluster.phase is Phase.STOPPING and saved and not cluster.leave_ordered:
        orders.append(Order(EndScripts()))
        cluster = replace(cluster, leave_ordered=True)
    working = cluster.phase in (Phase.TRAINING, Phase.STOPPING)
    if working and cluster.awaited <= cluster.finished:
        orders.append(Order(DrainRoles()))
        cluster = replace(cluster, phase=Phase.DRAINING)
    if cluster.phase is Phase.DRAINING and cluster.awaited <= cluster.drained:
        cluster, last = _end(cluster, Outcome.STOP if cluster.stopping else Outcome.SUCCESS)
        orders.extend(last)
    return cluster, tuple(orders)


def _not_ready(cluster: Cluster) -> Failure:
    """Return the failure of a host that was not ready in time for another attempt."""
    missing = sorted(cluster.hosts - cluster.ready)[0]
    reason = f"was not ready for another attempt within {CLEAR_TIMEOUT:g} s"
    return Failure(missing, Role.ENTRYPOINT, reason, kind=FailureKind.JOIN)


def _end(cluster: Cluster, outcome: Outcome, failure: Optional[Failure] = None) -> Decision:
    first_cause = cluster.failed[0].failure.headline() if cluster.failed else ""
    verdict = Verdict(
        outcome, failure, cluster.attempt - 1, first_cause[:CAUSE_LIMIT], cluster.saved
    )
    ended = replace(cluster, phase=Phase.ENDED, verdict=verdict, verdict_time=None)
    return ended, (Order(End(verdict)),)
