"""The coordinator of every host but the first: joins the leader, reports, and takes orders."""

import selectors
import time
from dataclasses import replace
from typing import Callable, List, Optional, Set, Tuple

from sagemaker_mxnet_toolkit.failure import Failure, Outcome
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster import channel, messages, network
from sagemaker_mxnet_training.cluster.coordination import (
    GIVE_UP_DEADLINE,
    REPORT_DEADLINE,
    OrderQueue,
    Orders,
    give,
)
from sagemaker_mxnet_training.cluster.events import (
    CAUSE_LIMIT,
    Action,
    Do,
    End,
    Event,
    Failed,
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
from sagemaker_mxnet_training.cluster.follower_channel import FollowerChannel
from sagemaker_mxnet_training.cluster.keys import JobKeys
from sagemaker_mxnet_training.cluster.leader_connection import Channel, LeaderConnection
from sagemaker_mxnet_training.cluster.link import Clock
from sagemaker_mxnet_training.cluster.network import NameLookup
from sagemaker_mxnet_training.config.job import Job

_ALONE_PERIOD = 0.3
"""Seconds between two looks at how a stop without a leader goes on."""


class Follower:
    """A ``Coordinator`` that reports and obeys.

    It decides for itself where no leader can: when the leader cannot be joined, when it is lost,
    and how a stop goes on without one. A stop without a leader is decided by the same function as
    with one, as in a job of this host alone.

    Args:
        job: what to run.
        log: told of every transition.
        orders: the supervisor of this host.
        look_up, open_channel: as ``LeaderConnection`` takes them.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        job: Job,
        log: Log,
        orders: Orders,
        look_up: Callable[[Callable[[NameLookup], None]], NameLookup],
        open_channel: Callable[[str, channel.Post], Channel],
        clock: Clock = time.monotonic,
    ) -> None:
        self._job = job
        self._log = log
        self._orders = orders
        self._clock = clock
        self._attempt = 1
        self._first_cause = ""
        self._events: List[Tuple[float, Event]] = []  # with the time at which each was seen
        self._failure: Optional[Failed] = None
        self._report_by = 0.0  # when the leader has had its time to answer to that
        self._queue: OrderQueue[Action] = OrderQueue(self._carry_out)
        self._given: Set[object] = set()
        self._gave_up = False
        self._ended_at: Optional[float] = None
        self._leader = LeaderConnection(job, log, self, look_up, open_channel, clock)

    # What this host reports.

    def report_step(self, step: Step) -> None:
        """See ``Coordinator``."""
        self._leader.send(messages.StepReport(step, self._attempt))
        self._record(Reported(step, self._job.current_host, self._attempt))

    def report_ready(self, resume: str) -> None:
        """See ``Coordinator``; the leader's checkpoint is the one that counts."""
        self.report_step(Step.READY)

    def report_failure(self, failure: Failure, when: float) -> None:
        """See ``Coordinator``."""
        failed = Failed(failure, when, self._attempt)
        if self._failure is None:
            self._failure = failed
            self._report_by = self._clock() + REPORT_DEADLINE
        self._leader.send(messages.FailureReport(failure, self._attempt, 0.0), when)
        self._record(failed)

    def report_stop(self, stop: Stop, when: float) -> None:
        """See ``Coordinator``. The script is asked at once, whatever the leader does."""
        self._leader.send(messages.StopReport(stop.signal, 0.0), when)
        self._stop(stop, when)

    def report_idle(self, idle: float) -> None:
        """See ``Coordinator``."""
        if self._leader.joined:
            self._leader.send(messages.IdleReport(idle))

    def give_up(self) -> None:
        """See ``Coordinator``."""
        self._gave_up = True
        self._record(Own.GAVE_UP)

    # What the leader says, see ``leader_connection.Listener``.

    def on_order(self, message: messages.Message) -> None:
        """Take an order."""
        if isinstance(message, messages.Note):
            self._log("entrypoint", message.text)
        elif isinstance(message, StopScripts):
            self._stop(message.stop, self._clock())
        elif isinstance(message, (Start, Restart, Do, End)):
            self._queue.put([message])
        else:
            raise ValueError(f"{type(message).__name__} is not an order")

    def on_lost(self, reason: str) -> None:
        """Go on without the leader, as far as that is possible."""
        if self._ended_at is not None:
            return
        failure = lost(self._job.leader, reason)
        if StopScripts in self._given:
            self._decide_alone()
        elif self._job.settings.rejoin_timeout:
            self._queue.put([Restart(self._attempt + 1, failure)])
            self._leader.find_again(failure)
        else:
            self._fail(failure if self._failure is None else self._failure.failure)

    def on_refused(self, failure: Failure) -> None:
        """End this host: the leader cannot be joined."""
        self._fail(failure)

    # What follows from it.

    def _stop(self, stop: Stop, when: float) -> None:
        self._events.append((self._clock(), StopRequested(stop, when)))
        self._queue.put([StopScripts(stop)])
        self._decide_alone()

    def _record(self, event: Event) -> None:
        self._events.append((self._clock(), event))
        self._decide_alone()

    def _decide_alone(self) -> None:
        """Give the orders that the leader would give, in a stop in which there is none."""
        alone = self._gave_up or (StopScripts in self._given and not self._leader.joined)
        if not alone or self._ended_at is not None:
            return
        # Few followers come to this, and all would wait for the import before they join.
        from sagemaker_mxnet_training.cluster.decision import Cluster, advance  # noqa: PLC0415

        host = self._job.current_host
        cluster = Cluster.of([host], host, attempt=self._attempt)
        actions: List[Action] = []
        for seen, event in [*self._events, (self._clock(), Own.TICK)]:
            cluster, orders = advance(cluster, event, seen)
            actions.extend(order.action for order in orders)
        self._queue.put(actions)

    def _fail(self, failure: Failure) -> None:
        verdict = Verdict(Outcome.FAILURE, failure, self._attempt - 1, self._first_cause)
        self._queue.put([End(verdict)])

    def _carry_out(self, action: Action) -> None:
        """Pass an order on, once, whether it comes from the leader or from this host alone."""
        if isinstance(action, Restart):
            self._restart(action)
            return
        what = action.command if isinstance(action, Do) else type(action)
        if what in self._given or self._ended_at is not None:
            return
        if isinstance(action, Start):
            if StopScripts in self._given or action.attempt != self._attempt:
                return
            action = self._completed(action)
        elif isinstance(action, End):
            self._ended_at = self._clock()
            self._leader.goodbye()
        self._given.add(what)
        give(action, self._orders)

    def _restart(self, action: Restart) -> None:
        """Begin another attempt: nothing of the one before counts any more."""
        if action.attempt <= self._attempt or self._ended_at is not None:
            return
        self._attempt = action.attempt
        self._first_cause = self._first_cause or action.failure.headline()[:CAUSE_LIMIT]
        self._failure = None
        # A stop, of which the leader may not have known, stays.
        self._given &= {StopScripts}
        self._events = [pair for pair in self._events if isinstance(pair[1], StopRequested)]
        self._orders.restart(action)

    def _completed(self, order: Start) -> Start:
        rendezvous = order.rendezvous
        if rendezvous is not None:
            interface = network.interface_address(self._job.network_interface)
            rendezvous = replace(rendezvous, own_address=interface or self._leader.own_address)
        return replace(order, rendezvous=rendezvous)

    # What is due.

    def tick(self, now: float) -> float:
        """See ``Coordinator``."""
        due = min(now + 1.0, self._leader.tick(now))
        if self._ended_at is not None:
            return due
        if StopScripts in self._given:
            self._decide_alone()
            return due if self._leader.joined else min(due, now + _ALONE_PERIOD)
        if self._failure is not None and now >= self._report_by:
            self._fail(self._failure.failure)
        elif not self._leader.joined:
            obstacle = self._leader.obstacle(now)
            if obstacle is not None:
                self._fail(obstacle)
        return due

    def settled(self, now: float) -> bool:
        """See ``Coordinator``."""
        if self._ended_at is None:
            return True
        deadline = GIVE_UP_DEADLINE if self._gave_up else REPORT_DEADLINE
        return not self._leader.pending() or now - self._ended_at >= deadline

    def close(self) -> None:
        """See ``Coordinator``."""
        self._leader.close()


def open_follower(job: Job, log: Log, orders: Orders, selector: selectors.BaseSelector) -> Follower:
    """Begin to look for the leader."""
    keys = JobKeys.of(job)
    settings = job.settings

    def look_up(on_answer: Callable[[NameLookup], None]) -> NameLookup:
        return NameLookup(
            job.leader, settings.host_addresses, settings.join_timeout, selector, log, on_answer
        )

    def open_channel(address: str, post: channel.Post) -> FollowerChannel:
        return FollowerChannel(
            job.current_host,
            job.leader,
            (address, settings.control_port),
            keys,
            settings.peer_timeout,
            selector,
            post,
        )

    return Follower(job, log, orders, look_up, open_channel)
