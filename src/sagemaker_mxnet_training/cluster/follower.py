"""The coordinator of every host but the first: joins the leader, reports, and takes orders."""

import selectors
import time
from dataclasses import replace
from typing import Any, Callable, List, Mapping, Optional, Protocol, Set, Tuple

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster import channel, messages, network
from sagemaker_mxnet_training.cluster.coordination import (
    GIVE_UP_DEADLINE,
    PROGRESS_PERIOD,
    REPORT_DEADLINE,
    OrderQueue,
    Orders,
    Step,
    Stop,
    Verdict,
    give,
)
from sagemaker_mxnet_training.cluster.decision import (
    VERDICT_DELAY,
    Cluster,
    Drain,
    Drained,
    End,
    Event,
    Failed,
    Finished,
    FirstStep,
    GaveUp,
    StopRequested,
    StopScripts,
    Tick,
    advance,
    lost,
)
from sagemaker_mxnet_training.cluster.follower_channel import FollowerChannel
from sagemaker_mxnet_training.cluster.joining import (
    FOLLOWER_GRACE,
    Disagreement,
    disagreement,
    noted,
)
from sagemaker_mxnet_training.cluster.keys import JobKeys
from sagemaker_mxnet_training.cluster.link import Clock
from sagemaker_mxnet_training.cluster.network import NameLookup
from sagemaker_mxnet_training.config.job import Job


class Channel(Protocol):
    """What a follower needs of ``FollowerChannel``."""

    obstacle: str

    def send(self, body: Mapping[str, Any]) -> None:
        """Queue a message to the leader."""

    def tick(self, now: float) -> float:
        """Do what time asks for; return when to call again."""

    def goodbye(self) -> None:
        """End what is to be said."""

    def pending(self) -> bool:
        """Tell whether something sent may not have arrived."""

    def close(self) -> None:
        """Close at once."""


class Follower:
    """A ``Coordinator`` that reports and obeys.

    It decides for itself where no leader can: when the leader cannot be joined, when it is lost,
    and how a stop goes on without one. A stop without a leader is decided by the same function as
    with one, as in a job of this host alone.

    Args:
        job: what to run.
        log: told of every transition.
        orders: the supervisor of this host.
        look_up: starts to look up the leader's name, and calls the argument with the answer.
        open_channel: opens the control channel to an address, and posts its events to the second
            argument.
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
        self._open_channel = open_channel
        self._clock = clock
        self._opened = self._told = clock()
        self._channel: Optional[Channel] = None
        self._own_address = ""
        self._joined = False
        self._unsent: List[Tuple[messages.Message, Optional[float]]] = []
        self._events: List[Tuple[float, Event]] = []  # with the time at which each was seen
        self._failure: Optional[Failed] = None
        self._disagreement: Optional[Disagreement] = None
        self._queue: OrderQueue[object] = OrderQueue(self._carry_out)
        self._given: Set[type] = set()
        self._gave_up = False
        self._ended_at: Optional[float] = None
        self._lookup = look_up(self._on_lookup)

    def _on_lookup(self, lookup: NameLookup) -> None:
        if self._ended_at is not None:
            return
        if lookup.invalid:
            self._fail(self._join_failure(f"cannot be joined: {lookup.obstacle}"))
        else:
            self._channel = self._open_channel(lookup.address, self._on_event)

    # What this host reports.

    def report_step(self, step: Step) -> None:
        """See ``Coordinator``."""
        self._send(messages.StepReport(step))
        if step is Step.FINISHED:
            self._record(Finished(self._job.current_host))

    def report_drained(self) -> None:
        """See ``Coordinator``."""
        self._send(messages.DrainedReport())
        self._record(Drained(self._job.current_host))

    def report_failure(self, failure: Failure, when: float) -> None:
        """See ``Coordinator``."""
        if self._failure is None:
            self._failure = Failed(failure, when)
        self._send(messages.FailureReport(failure, 0.0), when)
        self._record(Failed(failure, when))

    def report_stop(self, stop: Stop, when: float) -> None:
        """See ``Coordinator``. The script is asked at once, whatever the leader does."""
        self._send(messages.StopReport(stop.signal, 0.0), when)
        self._stop(stop, when)

    def report_idle(self, idle: float) -> None:
        """See ``Coordinator``."""
        if self._joined:
            self._send(messages.IdleReport(idle))

    def give_up(self) -> None:
        """See ``Coordinator``."""
        self._gave_up = True
        self._record(GaveUp())

    def _send(self, message: messages.Message, when: Optional[float] = None) -> None:
        if self._channel is None or not self._joined:
            self._unsent.append((message, when))
            return
        if when is not None:
            message = replace(message, age=max(0.0, self._clock() - when))
        self._channel.send(messages.encode(message))

    # What the leader says.

    def _on_event(self, event: channel.Event) -> None:
        if isinstance(event, channel.PeerJoined):
            self._on_joined(event)
        elif isinstance(event, channel.PeerMessage):
            try:
                self._on_message(messages.decode(event.body))
            except ValueError as error:
                self._log.warning("entrypoint", f"{event.host} sent a wrong message: {error}")
        elif isinstance(event, channel.PeerDiffers):
            self._disagreement = noted(self._disagreement, event.difference, self._clock())
        elif isinstance(event, channel.Refused):
            reason = f"{self._job.leader} refused this host: {event.reason}"
            host = self._job.current_host
            self._fail(Failure(host, Role.ENTRYPOINT, reason, kind=FailureKind.JOIN))
        elif isinstance(event, channel.PeerLost):
            self._on_lost(event.reason)
        elif isinstance(event, channel.PeerLeft):
            self._on_lost("it left before the job had ended")

    def _on_joined(self, event: channel.PeerJoined) -> None:
        self._joined = True
        self._own_address = event.local_address
        self._log("entrypoint", f"joined {event.host} at {event.address}")
        unsent, self._unsent = self._unsent, []
        for message, when in unsent:
            self._send(message, when)

    def _on_message(self, message: messages.Message) -> None:
        if isinstance(message, messages.Note):
            self._log("entrypoint", message.text)
        elif isinstance(message, StopScripts):
            self._stop(message.stop, self._clock())
        elif isinstance(message, (messages.StartRoles, FirstStep, Drain, End)):
            self._queue.put([message])
        else:
            raise ValueError(f"{type(message).__name__} is not an order")

    def _on_lost(self, reason: str) -> None:
        if self._ended_at is not None:
            return
        self._log.warning("entrypoint", f"lost {self._job.leader}: {reason}")
        self._joined = False
        if StopScripts in self._given:
            self._decide_alone()
        else:
            failed = self._failure
            self._fail(lost(self._job.leader, reason) if failed is None else failed.failure)

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
        alone = self._gave_up or (StopScripts in self._given and not self._joined)
        if not alone or self._ended_at is not None:
            return
        host = self._job.current_host
        cluster = Cluster.of([host], host)
        actions: List[object] = []
        for seen, event in [*self._events, (self._clock(), Tick())]:
            cluster, orders = advance(cluster, event, seen)
            actions.extend(order.action for order in orders)
        self._queue.put(actions)

    def _fail(self, failure: Failure) -> None:
        self._queue.put([End(Verdict(Outcome.FAILURE, failure))])

    def _carry_out(self, action: object) -> None:
        """Pass an order on, once, whether it comes from the leader or from this host alone."""
        if type(action) in self._given or self._ended_at is not None:
            return
        self._given.add(type(action))
        if isinstance(action, messages.StartRoles):
            if StopScripts not in self._given:
                self._start(action)
            return
        if isinstance(action, End):
            self._ended_at = self._clock()
            if self._channel is not None:
                self._channel.goodbye()
        give(action, self._orders)

    def _start(self, order: messages.StartRoles) -> None:
        rendezvous = order.rendezvous
        if rendezvous is not None:
            own = network.interface_address(self._job.network_interface) or self._own_address
            rendezvous = replace(rendezvous, own_address=own)
        self._orders.start(rendezvous)

    # What is due.

    def tick(self, now: float) -> float:
        """See ``Coordinator``."""
        due = now + 1.0
        if self._channel is not None:
            due = min(due, self._channel.tick(now))
        if self._ended_at is not None:
            return due
        if StopScripts in self._given:
            self._decide_alone()
            return due if self._joined else min(due, now + VERDICT_DELAY)
        if self._failure is not None and now - self._failure.time >= REPORT_DEADLINE:
            self._fail(self._failure.failure)
        elif not self._joined:
            self._watch_joining(now)
        return due

    def _watch_joining(self, now: float) -> None:
        limit = self._job.settings.join_timeout
        left = self._opened + limit - now
        leader = self._job.leader
        if self._disagreement is not None and self._disagreement.lasts(FOLLOWER_GRACE, now):
            difference = self._disagreement.difference
            self._fail(disagreement(self._job.current_host, leader, difference))
        elif left <= 0:
            self._fail(
                self._join_failure(f"could not be joined within {limit:g} s: {self._obstacle()}")
            )
        elif now - self._told >= PROGRESS_PERIOD:
            self._told = now
            text = f"waiting to join {leader}, {left:.0f} s left: {self._obstacle()}"
            self._log("entrypoint", text)

    def _join_failure(self, reason: str) -> Failure:
        return Failure(self._job.leader, Role.ENTRYPOINT, reason, kind=FailureKind.JOIN)

    def _obstacle(self) -> str:
        if self._channel is None:
            return self._lookup.obstacle
        port = self._job.settings.control_port
        return f"on port {port}, {self._job.leader}: {self._channel.obstacle}"

    def settled(self, now: float) -> bool:
        """See ``Coordinator``."""
        if self._channel is None or self._ended_at is None:
            return True
        deadline = GIVE_UP_DEADLINE if self._gave_up else REPORT_DEADLINE
        return not self._channel.pending() or now - self._ended_at >= deadline

    def close(self) -> None:
        """See ``Coordinator``."""
        self._lookup.close()
        if self._channel is not None:
            self._channel.close()


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
