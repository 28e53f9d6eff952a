"""The first host's coordinator: keeps the state of the whole job, and gives orders to all hosts."""

import selectors
import time
from typing import Any, Callable, Mapping, Optional, Protocol, Set

from sagemaker_mxnet_toolkit.errors import NetworkError
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster import channel, messages, network
from sagemaker_mxnet_training.cluster.coordination import (
    GIVE_UP_DEADLINE,
    REPORT_DEADLINE,
    OrderQueue,
    Orders,
    Step,
    Stop,
    give,
    listed,
)
from sagemaker_mxnet_training.cluster.decision import (
    Cluster,
    Drained,
    End,
    Event,
    Failed,
    Finished,
    GaveUp,
    Joined,
    Lost,
    Order,
    Phase,
    Ready,
    Start,
    Stepped,
    StopRequested,
    Tick,
    advance,
)
from sagemaker_mxnet_training.cluster.joining import LOOKUP_TIME, JoinWatch
from sagemaker_mxnet_training.cluster.keys import JobKeys
from sagemaker_mxnet_training.cluster.leader_channel import LeaderChannel
from sagemaker_mxnet_training.cluster.link import Clock
from sagemaker_mxnet_training.cluster.network import NameLookup, Rendezvous
from sagemaker_mxnet_training.cluster.port_guard import PortGuard
from sagemaker_mxnet_training.cluster.waiting import Waiting
from sagemaker_mxnet_training.config.job import Job

_EVERY_ADDRESS = "0.0.0.0"


class Channel(Protocol):
    """What the leader needs of ``LeaderChannel``."""

    def send(self, host: str, body: Mapping[str, Any]) -> None:
        """Queue a message to one member."""

    def broadcast(self, body: Mapping[str, Any]) -> None:
        """Queue a message to all members."""

    def tick(self, now: float) -> float:
        """Do what time asks for; return when to call again."""

    def pending(self) -> bool:
        """Tell whether something sent may not have arrived."""

    def close(self) -> None:
        """Close everything at once."""


class Guard(Protocol):
    """What the leader needs of ``PortGuard``."""

    conflict: str
    until: float

    def release(self, log: Log) -> int:
        """Release the port, and return the one that the scheduler shall have."""

    def close(self) -> None:
        """Release the port."""


class Leader:
    """A ``Coordinator`` that decides.

    Args:
        job: what to run.
        log: told of every transition.
        orders: the supervisor of this host.
        keys: the job's keys.
        address: this host's address for the scheduler; ``0.0.0.0`` for the one that a follower
            reaches it at.
        guard: holds the scheduler's port, where there is a scheduler.
        open_channel: opens the control channel, which posts its events to the argument; ``None``
            for a host alone.
        look_up: starts to look up the name of a host.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        job: Job,
        log: Log,
        orders: Orders,
        keys: JobKeys,
        address: str,
        guard: Optional[Guard],
        open_channel: Optional[Callable[[channel.Post], Channel]],
        look_up: Callable[[str], NameLookup],
        clock: Clock = time.monotonic,
    ) -> None:
        self._job = job
        self._log = log
        self._orders = orders
        self._address = address
        self._guard = guard
        self._clock = clock
        now = clock()
        start_time = now if guard is None else guard.until
        self._cluster = Cluster.of(job.hosts, job.current_host, start_time)
        self._queue: OrderQueue[Order] = OrderQueue(self._carry_out)
        self._waiting = Waiting(job.hosts, job.settings.stall_timeout, now)
        self._joining = JoinWatch(keys, job.current_host, job.settings.join_timeout, look_up, now)
        self._ever_joined: Set[str] = {job.current_host}
        self._gave_up = False
        self._ended_at: Optional[float] = None
        self._channel = None if open_channel is None else open_channel(self._on_event)
        if guard is not None and guard.conflict:
            # A report rather than an exception: the other hosts must hear of it too.
            self._report_port(guard.conflict)

    # What this host reports.

    def report_step(self, step: Step) -> None:
        """See ``Coordinator``."""
        self._on_step(self._job.current_host, step)

    def report_drained(self) -> None:
        """See ``Coordinator``."""
        self._feed(Drained(self._job.current_host))

    def report_failure(self, failure: Failure, when: float) -> None:
        """See ``Coordinator``."""
        self._feed(Failed(failure, when))

    def report_stop(self, stop: Stop, when: float) -> None:
        """See ``Coordinator``."""
        self._feed(StopRequested(stop, when))

    def report_idle(self, idle: float) -> None:
        """See ``Coordinator``."""
        self._waiting.status[self._job.current_host].idle = idle

    def give_up(self) -> None:
        """See ``Coordinator``."""
        self._gave_up = True
        self._feed(GaveUp())

    # What the others report.

    def _on_event(self, event: channel.Event) -> None:
        now = self._clock()
        if isinstance(event, channel.PeerJoined):
            self._on_joined(event)
        elif isinstance(event, channel.PeerMessage):
            try:
                self._on_message(event.host, messages.decode(event.body), now)
            except ValueError as error:
                self._log.warning("entrypoint", f"{event.host} sent a wrong message: {error}")
        elif isinstance(event, channel.PeerLeft):
            self._feed(Lost(event.host, "it left before the job had ended", now))
        elif isinstance(event, channel.PeerLost):
            if self._cluster.phase is not Phase.ENDED:
                self._log.warning("entrypoint", f"lost {event.host}: {event.reason}")
            self._feed(Lost(event.host, event.reason, now))
        elif isinstance(event, channel.PeerDiffers):
            self._joining.on_differs(event, now)
        elif isinstance(event, channel.Stranger):
            self._joining.on_stranger(event)
            self._log.warning("entrypoint", f"turned {event.address} away: {event.reason}")

    def _on_joined(self, event: channel.PeerJoined) -> None:
        self._ever_joined.add(event.host)
        if self._address == _EVERY_ADDRESS:
            # The address under which the others reach us is the one that works.
            self._address = event.local_address
        self._feed(Joined(event.host))
        count = f"{len(self._cluster.joined)} of {len(self._job.hosts)}"
        self._log("entrypoint", f"{event.host} joined from {event.address} ({count})")

    def _on_message(self, host: str, message: messages.Message, now: float) -> None:
        if isinstance(message, messages.StepReport):
            self._on_step(host, message.step)
        elif isinstance(message, messages.IdleReport):
            self._waiting.status[host].idle = message.seconds
        elif isinstance(message, messages.DrainedReport):
            self._feed(Drained(host))
        elif isinstance(message, messages.FailureReport):
            self._feed(Failed(message.failure, now - message.age))
        elif isinstance(message, messages.StopReport):
            self._feed(StopRequested(Stop(host, message.signal), now - message.age))
        else:
            raise ValueError(f"{type(message).__name__} is not a report")

    def _on_step(self, host: str, step: Step) -> None:
        self._waiting.status[host].step = step
        if step is Step.READY:
            self._feed(Ready(host))
        elif step is Step.STEPPED:
            self._feed(Stepped())
        elif step is Step.FINISHED:
            self._feed(Finished(host))
            left = sorted(self._cluster.hosts - self._cluster.finished)
            if left and self._cluster.phase is Phase.TRAINING:
                self._log("entrypoint", f"{host} finished; still training: {listed(left)}")

    # What follows from it.

    def _feed(self, event: Event) -> None:
        self._cluster, orders = advance(self._cluster, event, self._clock())
        self._queue.put(orders)

    def _carry_out(self, order: Order) -> None:
        action = order.action
        if isinstance(action, Start):
            self._start()
        elif order.to is not None:
            if self._channel is not None:
                self._channel.send(order.to, messages.encode(action))
        else:
            if isinstance(action, End):
                self._ended_at = self._clock()
            self._broadcast(action)
            give(action, self._orders)

    def _start(self) -> None:
        rendezvous = None
        if self._guard is not None:
            try:
                port = self._guard.release(self._log)
            except NetworkError as error:
                self._report_port(str(error))
                return
            servers = self._job.settings.servers_per_host
            rendezvous = Rendezvous(self._address, port, self._address, servers)
        self._broadcast(messages.StartRoles(rendezvous))
        self._orders.start(rendezvous)

    def _report_port(self, reason: str) -> None:
        failure = Failure(self._job.current_host, Role.SCHEDULER, reason, kind=FailureKind.NETWORK)
        self._feed(Failed(failure, self._clock()))

    def _broadcast(self, message: messages.Message) -> None:
        if self._channel is not None:
            self._channel.broadcast(messages.encode(message))

    # What is due.

    def tick(self, now: float) -> float:
        """See ``Coordinator``."""
        due = now + 1.0
        if self._channel is not None:
            due = min(due, self._channel.tick(now))
        self._feed(Tick())
        if self._cluster.failure is None and self._cluster.stop is None:
            self._watch(now)
        if self._cluster.due is not None:
            due = min(due, max(now, self._cluster.due))
        return due

    def _watch(self, now: float) -> None:
        """Find failures that are only a matter of time, and tell for whom the job waits."""
        failure = self._waiting.stalled(self._cluster)
        if self._cluster.phase is Phase.GATHERING:
            missing = sorted(self._cluster.hosts - self._cluster.joined)
            failure = self._joining.check(missing, now)
        if failure is not None:
            self._feed(Failed(failure, now))
            return
        text = self._waiting.line(self._cluster, self._joining.left(now), now)
        if text:
            self._log("entrypoint", text)
            self._broadcast(messages.Note(text))

    def settled(self, now: float) -> bool:
        """See ``Coordinator``."""
        if self._channel is None:
            return True
        if self._ended_at is None:
            return False
        deadline = GIVE_UP_DEADLINE if self._gave_up else REPORT_DEADLINE
        if now - self._ended_at >= deadline:
            return True
        # A follower that has its verdict says goodbye. One that has not joined yet gets its
        # chance to hear of a failure before it waits for a leader that is gone.
        verdict = self._cluster.verdict
        success = verdict is not None and verdict.outcome is Outcome.SUCCESS
        expected = not success and len(self._ever_joined) < len(self._job.hosts)
        told = self._cluster.joined == {self._job.current_host} and not self._channel.pending()
        return told and (self._gave_up or not expected)

    def close(self) -> None:
        """See ``Coordinator``."""
        self._joining.close()
        if self._guard is not None:
            self._guard.close()
        if self._channel is not None:
            self._channel.close()


def open_leader(job: Job, log: Log, orders: Orders, selector: selectors.BaseSelector) -> Leader:
    """Open the control channel of the first host: followers can join from then on.

    Raises:
        NetworkError: its port cannot be listened on.
    """
    address, open_channel = "127.0.0.1", None
    keys = JobKeys.of(job)
    settings = job.settings
    if len(job.hosts) > 1:
        address = network.listening_address(job)
        listener = network.listen(address, settings.control_port, settings.control_fd)

        def open_channel(post: channel.Post) -> LeaderChannel:
            return LeaderChannel(
                listener, keys, job.current_host, job.hosts, settings.peer_timeout, selector, post
            )

        if not keys.secret and not address.startswith("127."):
            log(
                "entrypoint",
                "job_key is not set: who knows the job's name, ARN and hyperparameters, and "
                f"reaches port {settings.control_port}, can take part in the job",
            )
    guard = None
    if job.parameter_server:
        guard = PortGuard(address, settings.ps_port, settings.ps_port_given, selector)

    def look_up(host: str) -> NameLookup:
        return NameLookup(
            host, settings.host_addresses, LOOKUP_TIME, selector, log, lambda lookup: None
        )

    return Leader(job, log, orders, keys, address, guard, open_channel, look_up)
