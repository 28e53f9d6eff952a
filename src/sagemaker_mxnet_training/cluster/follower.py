"""The coordinator of all hosts except the first: joins the leader, reports, and gets orders."""

import selectors
import time
from dataclasses import replace
from typing import Any, Callable, List, Optional, Set, Tuple

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.coordinator import (
    GIVE_UP_DEADLINE,
    PROGRESS_PERIOD,
    REPORT_DEADLINE,
    Coordinator,
    OrderQueue,
)
from sagemaker_mxnet_training.cluster.decision import Cluster, advance
from sagemaker_mxnet_training.cluster.events import (
    CAUSE_LIMIT,
    Action,
    End,
    Event,
    Failed,
    Idle,
    LocalEvent,
    Note,
    Report,
    Restart,
    Start,
    Stop,
    StopRequested,
    StopScripts,
    Verdict,
    moved,
)
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.control import addresses
from sagemaker_mxnet_training.control.leader_connection import LeaderConnection

_ALONE_PERIOD = 0.3
"""Seconds between two decisions in a stop without a leader."""


class Follower(Coordinator):
    """Reports to the leader and carries out its orders.

    It decides by itself only if the leader cannot be joined, if the leader is lost, and how a stop
    proceeds without the leader. For such a stop it uses the same function as the leader, as in a
    job of this host alone.

    Args:
        job, log, obey, clock: see ``Coordinator``.
        connect: creates the connection to the leader.
    """

    def __init__(
        self,
        job: Job,
        log: Log,
        obey: Callable[[Action], None],
        selector: selectors.BaseSelector,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[..., LeaderConnection] = LeaderConnection,
    ) -> None:
        super().__init__(job, log, obey, clock)
        self._attempt = 1
        self._first_cause = ""
        self._unsent: List[Report] = []
        self._events: List[Tuple[float, Event]] = []  # with the time of each
        self._failure: Optional[Failure] = None
        self._answer_by = 0.0  # deadline for the leader's response to the failure
        self._queue: OrderQueue[Action] = OrderQueue(self._carry_out)
        self._obeyed: Set[type] = set()
        self._gave_up = False
        self._ended_at: Optional[float] = None
        self._opened = self._logged = clock()
        self._leader = connect(
            job,
            log,
            selector,
            self._on_joined,
            self._on_order,
            self._on_lost,
            self._fail,
            clock,
        )

    @property
    def attempt(self) -> int:
        """See ``Coordinator``."""
        return self._attempt

    # Reports of this host.

    def report(self, report: Report) -> None:
        """See ``Coordinator``. Reports before joining are sent later."""
        if self._leader.joined:
            self._leader.send(moved(report, -self._clock()))
        elif not isinstance(report, Idle):
            self._unsent.append(report)
        if isinstance(report, Idle):
            return
        if isinstance(report, StopRequested):
            # Stop the script at once, without waiting for the leader.
            self._stop(report.stop, report.time)
            return
        if isinstance(report, Failed) and not self._knows_cause:
            self._failure = report.failure
            self._answer_by = self._clock() + REPORT_DEADLINE
        self._record(report)

    def give_up(self) -> None:
        """See ``Coordinator``."""
        self._gave_up = True
        self._record(LocalEvent.GAVE_UP)

    # Callbacks of ``LeaderConnection``.

    def _on_joined(self, address: str) -> None:
        self._log("entrypoint", f"joined {self._job.leader} at {address}")
        unsent, self._unsent = self._unsent, []
        for report in unsent:
            self._leader.send(moved(report, -self._clock()))

    def _on_order(self, order: Any) -> None:
        if isinstance(order, Note):
            self._log("entrypoint", order.text)
        elif isinstance(order, StopScripts):
            self._stop(order.stop, self._clock())
        else:
            self._queue.put([order])

    def _on_lost(self, failure: Failure) -> None:
        """Continue without the leader, as far as that is possible."""
        if StopScripts in self._obeyed:
            self._decide_alone()
        else:
            known = self._failure if self._knows_cause else None
            self._fail(known or failure)

    @property
    def _knows_cause(self) -> bool:
        """Whether there is a failure on this host that is not a consequence of another one."""
        return self._failure is not None and self._failure.kind is not FailureKind.PEER

    # Decisions and orders.

    def _stop(self, stop: Stop, when: float) -> None:
        self._events.append((self._clock(), StopRequested(stop, when)))
        self._queue.put([StopScripts(stop)])
        self._decide_alone()

    def _record(self, event: Event) -> None:
        self._events.append((self._clock(), event))
        self._decide_alone()

    def _decide_alone(self) -> None:
        """Carry out the orders that the leader would give, in a stop without the leader."""
        alone = self._gave_up or (StopScripts in self._obeyed and not self._leader.joined)
        if not alone or self._ended_at is not None:
            return
        host = self._job.current_host
        cluster = Cluster.of([host], host, attempt=self._attempt)
        actions: List[Action] = []
        for seen, event in [*self._events, (self._clock(), LocalEvent.TICK)]:
            cluster, orders = advance(cluster, event, seen)
            actions.extend(order.action for order in orders)
        self._queue.put(actions)

    def _fail(self, failure: Failure) -> None:
        verdict = Verdict(Outcome.FAILURE, failure, self._attempt - 1, self._first_cause)
        self._queue.put([End(verdict)])

    def _carry_out(self, action: Action) -> None:
        """Carry out an order of the leader or of this host, once."""
        if isinstance(action, Restart):
            self._restart(action)
            return
        if type(action) in self._obeyed or self._ended_at is not None:
            return
        if isinstance(action, Start):
            if StopScripts in self._obeyed or action.attempt != self._attempt:
                return
            action = self._completed(action)
        elif isinstance(action, End):
            self._ended_at = self._clock()
            self._leader.goodbye()
        self._obeyed.add(type(action))
        self._obey(action)

    def _restart(self, action: Restart) -> None:
        """Start another attempt."""
        if action.attempt <= self._attempt or self._ended_at is not None:
            return
        self._attempt = action.attempt
        self._first_cause = self._first_cause or action.failure.headline()[:CAUSE_LIMIT]
        self._failure = None
        # Keep a stop, which the leader may not have known.
        self._obeyed &= {StopScripts}
        self._events = [pair for pair in self._events if isinstance(pair[1], StopRequested)]
        self._obey(action)

    def _completed(self, order: Start) -> Start:
        rendezvous = order.rendezvous
        if rendezvous is not None:
            own_address = addresses.chosen_address(self._job) or self._leader.own_address
            rendezvous = replace(rendezvous, own_address=own_address)
        return replace(order, rendezvous=rendezvous)

    # Deadlines.

    def tick(self, now: float) -> float:
        """See ``Coordinator``."""
        due = min(now + 1.0, self._leader.tick(now))
        if self._ended_at is not None:
            return due
        if StopScripts in self._obeyed:
            self._decide_alone()
            return due if self._leader.joined else min(due, now + _ALONE_PERIOD)
        if self._failure is not None and now >= self._answer_by:
            self._fail(self._failure)
        elif not self._leader.joined:
            self._watch(now)
        return due

    def _watch(self, now: float) -> None:
        """Fail if the time to join is over; until then, log why this host has not joined."""
        timeout, leader = self._job.settings.join_timeout, self._job.leader
        left = self._opened + timeout - now
        if left <= 0:
            reason = f"could not be joined within {timeout:g} s: {self._leader.obstacle}"
            self._fail(Failure(leader, Role.ENTRYPOINT, reason, kind=FailureKind.JOIN))
        elif now - self._logged >= PROGRESS_PERIOD:
            self._logged = now
            text = f"waiting to join {leader}, {left:.0f} s left: {self._leader.obstacle}"
            self._log("entrypoint", text)

    def delivered(self, now: float) -> bool:
        """See ``Coordinator``."""
        if self._ended_at is None:
            return True
        deadline = GIVE_UP_DEADLINE if self._gave_up else REPORT_DEADLINE
        return not self._leader.pending() or now - self._ended_at >= deadline

    def close(self) -> None:
        """See ``Coordinator``."""
        self._leader.close()
