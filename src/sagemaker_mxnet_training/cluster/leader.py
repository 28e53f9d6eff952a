"""The first host's coordinator: keeps the state of the whole job, and gives orders to all hosts."""

import selectors
import time
from dataclasses import replace
from typing import Callable, Optional, Protocol, Sequence, Set

from sagemaker_mxnet_toolkit.errors import NetworkError
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.coordination import (
    GIVE_UP_DEADLINE,
    REPORT_DEADLINE,
    OrderQueue,
    Orders,
    give,
    listed,
)
from sagemaker_mxnet_training.cluster.decision import Cluster, Phase, advance
from sagemaker_mxnet_training.cluster.events import (
    Action,
    End,
    Event,
    Failed,
    Lost,
    Order,
    Own,
    Rendezvous,
    Reported,
    Restart,
    Start,
    Step,
    Stop,
    StopRequested,
)
from sagemaker_mxnet_training.cluster.restarts import RestartPolicy
from sagemaker_mxnet_training.cluster.waiting import Waiting
from sagemaker_mxnet_training.config.job import Job

_EVERY_ADDRESS = "0.0.0.0"


class Members(Protocol):
    """What the leader needs of ``members.Members``."""

    def tell(self, action: Action, to: Optional[str] = None) -> None:
        """Give an order to one member, or to all."""

    def note(self, text: str) -> None:
        """Send all members a line for their logs."""

    def missing(self, hosts: Sequence[str], now: float) -> Optional[Failure]:
        """Return why the job cannot begin without the hosts that have not joined, if it cannot."""

    def join_time_left(self, now: float) -> float:
        """Return the seconds that hosts still have to join."""

    def tick(self, now: float) -> float:
        """Do what is due; return when to be called again."""

    def pending(self) -> bool:
        """Tell whether something sent may not have arrived."""

    def close(self) -> None:
        """Leave."""


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
        address: this host's address for the scheduler; ``0.0.0.0`` for the one that a follower
            reaches it at.
        guard: holds the scheduler's port, where there is a scheduler.
        open_members: opens the way to the other hosts, whose reports come to the argument;
            ``None`` for a host alone.
        new_port: returns a TCP port for the scheduler of another attempt.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        job: Job,
        log: Log,
        orders: Orders,
        address: str,
        guard: Optional[Guard],
        open_members: "Optional[Callable[[Leader], Members]]",
        new_port: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._log = log
        self._orders = orders
        self._address = address
        self._guard = guard
        self._new_port = new_port
        self._clock = clock
        now = clock()
        start_time = now if guard is None else guard.until
        settings = job.settings
        policy = RestartPolicy(settings.max_restarts, settings.rejoin_timeout)
        self._cluster = Cluster.of(job.hosts, job.current_host, start_time, policy)
        self._resume = ""
        self._queue: OrderQueue[Order] = OrderQueue(self._carry_out)
        self._waiting = Waiting(job.hosts, settings.stall_timeout, now)
        self._ever_joined: Set[str] = {job.current_host}
        self._gave_up = False
        self._ended_at: Optional[float] = None
        self._members = None if open_members is None else open_members(self)
        if guard is not None and guard.conflict:
            # A report rather than an exception: the other hosts must hear of it too.
            self._report_port(guard.conflict)

    # What this host reports.

    def report_step(self, step: Step) -> None:
        """See ``Coordinator``."""
        self.on_step(self._job.current_host, step, self._cluster.attempt)

    def report_ready(self, resume: str) -> None:
        """See ``Coordinator``."""
        self._resume = resume
        self.report_step(Step.READY)

    def report_failure(self, failure: Failure, when: float) -> None:
        """See ``Coordinator``."""
        self.on_failure(failure, when, self._cluster.attempt)

    def report_stop(self, stop: Stop, when: float) -> None:
        """See ``Coordinator``."""
        self.on_stop(stop, when)

    def report_idle(self, idle: float) -> None:
        """See ``Coordinator``."""
        self.on_idle(self._job.current_host, idle)

    def give_up(self) -> None:
        """See ``Coordinator``."""
        self._gave_up = True
        self._feed(Own.GAVE_UP)

    # What the others report, see ``members.Listener``.

    def on_joined(self, host: str, own_address: str) -> str:
        """Take in a host, and return how many there are."""
        self._ever_joined.add(host)
        if self._address == _EVERY_ADDRESS:
            # The address under which the others reach us is the one that works.
            self._address = own_address
        self._feed(Reported(Step.JOINED, host))
        return f"{len(self._cluster.joined)} of {len(self._job.hosts)}"

    def on_lost(self, host: str, reason: str) -> None:
        """Take note that a host is gone."""
        if self._cluster.phase is not Phase.ENDED:
            self._log.warning("entrypoint", f"lost {host}: {reason}")
        self._feed(Lost(host, reason, self._clock()))

    def on_step(self, host: str, step: Step, attempt: int) -> None:
        """Take note of what a host does."""
        self._waiting.status[host].step = step
        self._feed(Reported(step, host, attempt))
        if step is Step.FINISHED and attempt == self._cluster.attempt:
            left = sorted(self._cluster.hosts - self._cluster.finished)
            if left and self._cluster.phase is Phase.TRAINING:
                self._log("entrypoint", f"{host} finished; still training: {listed(left)}")

    def on_idle(self, host: str, seconds: float) -> None:
        """Take note of how long a host's worker has made no progress."""
        self._waiting.status[host].idle = seconds

    def on_failure(self, failure: Failure, when: float, attempt: int) -> None:
        """Take note of a failure."""
        self._feed(Failed(failure, when, attempt))

    def on_stop(self, stop: Stop, when: float) -> None:
        """Take note of a request to stop."""
        self._feed(StopRequested(stop, when))

    # What follows from it.

    def _feed(self, event: Event) -> None:
        self._cluster, orders = advance(self._cluster, event, self._clock())
        self._queue.put(orders)

    def _carry_out(self, order: Order) -> None:
        action = order.action
        if order.to is not None:
            if self._members is not None:
                self._members.tell(action, order.to)
            return
        if isinstance(action, Start):
            try:
                action = self._completed(action)
            except NetworkError as error:
                self._report_port(str(error))
                return
        elif isinstance(action, End):
            self._ended_at = self._clock()
        if isinstance(action, (Start, Restart)):
            self._waiting.begin_anew(self._clock())
        if self._members is not None:
            self._members.tell(action)
        give(action, self._orders)

    def _completed(self, start: Start) -> Start:
        """Return the order with the checkpoint to go on from, and the kvstore's place."""
        rendezvous = None
        if self._guard is not None:
            if start.attempt == 1:
                port = self._guard.release(self._log)
            else:
                self._guard.close()  # of a first host that was started again
                port = self._new_port(self._address)
            servers = self._job.settings.servers_per_host
            rendezvous = Rendezvous(self._address, port, self._address, servers)
        return replace(start, resume=self._resume, rendezvous=rendezvous)

    def _report_port(self, reason: str) -> None:
        failure = Failure(self._job.current_host, Role.SCHEDULER, reason, kind=FailureKind.NETWORK)
        self._feed(Failed(failure, self._clock(), self._cluster.attempt))

    # What is due.

    def tick(self, now: float) -> float:
        """See ``Coordinator``."""
        due = now + 1.0
        if self._members is not None:
            due = min(due, self._members.tick(now))
        self._feed(Own.TICK)
        if self._cluster.failure is None and self._cluster.stop is None:
            self._watch(now)
        if self._cluster.due is not None:
            due = min(due, max(now, self._cluster.due))
        return due

    def _watch(self, now: float) -> None:
        """Find failures that are only a matter of time, and tell for whom the job waits."""
        cluster = self._cluster
        failure = self._waiting.stalled(cluster)
        left = 0.0
        if cluster.gather_by is not None:
            left = max(0.0, cluster.gather_by - now)
        elif self._members is not None and cluster.phase is Phase.GATHERING:
            failure = self._members.missing(sorted(cluster.hosts - cluster.joined), now)
            left = self._members.join_time_left(now)
        if failure is not None:
            self.on_failure(failure, now, cluster.attempt)
            return
        text = self._waiting.line(cluster, left, now)
        if text:
            self._log("entrypoint", text)
            if self._members is not None:
                self._members.note(text)

    def settled(self, now: float) -> bool:
        """See ``Coordinator``."""
        if self._members is None:
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
        told = self._cluster.joined == {self._job.current_host} and not self._members.pending()
        return told and (self._gave_up or not expected)

    def close(self) -> None:
        """See ``Coordinator``."""
        if self._guard is not None:
            self._guard.close()
        if self._members is not None:
            self._members.close()


def open_leader(job: Job, log: Log, orders: Orders, selector: selectors.BaseSelector) -> Leader:
    """Open the coordinator of the first host: the others can join from then on.

    Raises:
        NetworkError: the port on which they join cannot be listened on.
    """
    # A host alone needs no network, and without the parameter server no port either.
    address, settings = "127.0.0.1", job.settings
    open_members: Optional[Callable[[Leader], Members]] = None
    guard = None
    if len(job.hosts) > 1:
        from sagemaker_mxnet_training.cluster import members, network  # noqa: PLC0415

        listening = address = network.listening_address(job)

        def open_members(leader: Leader) -> Members:
            return members.open_members(job, listening, log, leader, selector, time.monotonic)

    if job.parameter_server:
        from sagemaker_mxnet_training.cluster.port_guard import PortGuard  # noqa: PLC0415

        guard = PortGuard(address, settings.ps_port, settings.ps_port_given, selector)

    def new_port(address: str) -> int:
        from sagemaker_mxnet_training.cluster import port_guard  # noqa: PLC0415

        given = settings.ps_port if settings.ps_port_given else 0
        return given or port_guard.free_port(address)

    return Leader(job, log, orders, address, guard, open_members, new_port)
