"""The first host's coordinator: has the state of the job, and gives orders to all hosts."""

import os
import selectors
import time
from dataclasses import replace
from typing import Any, Callable, Dict, Optional, Set

from sagemaker_mxnet_toolkit import listening
from sagemaker_mxnet_toolkit.failure import Failure, NetworkError, Outcome, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.coordinator import (
    GIVE_UP_DEADLINE,
    REPORT_DEADLINE,
    Coordinator,
    OrderQueue,
    listed,
)
from sagemaker_mxnet_training.cluster.decision import Cluster, Phase, advance
from sagemaker_mxnet_training.cluster.events import (
    Action,
    End,
    Event,
    HostState,
    Idle,
    LocalEvent,
    Lost,
    Note,
    Order,
    RankFinished,
    Rendezvous,
    Report,
    Reported,
    Restart,
    Start,
    moved,
)
from sagemaker_mxnet_training.cluster.waiting import Waiting
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.control.addresses import scheduler_port
from sagemaker_mxnet_training.control.members import MemberConnections

_EVERY_ADDRESS = "0.0.0.0"


class Leader(Coordinator):
    """Passes the events of all hosts to ``decision.advance``, and carries out the orders.

    Args:
        job, log, obey, clock: see ``Coordinator``.
        connect: opens the connections to the other hosts.

    Raises:
        NetworkError: the control port is not available.
    """

    def __init__(
        self,
        job: Job,
        log: Log,
        obey: Callable[[Action], None],
        selector: selectors.BaseSelector,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[..., MemberConnections] = MemberConnections,
    ) -> None:
        super().__init__(job, log, obey, clock)
        self._cluster = Cluster.of(job.hosts, job.current_host, job.settings.max_restarts)
        self._resume = ""
        self._queue: OrderQueue[Order] = OrderQueue(self._carry_out)
        self._waiting = Waiting(job, clock())
        self._informed: Set[str] = {job.current_host}  # hosts that have joined, or were rejected
        self._gave_up = False
        self._ended_at: Optional[float] = None
        self._members: Optional[MemberConnections] = None
        self._address = "127.0.0.1"
        self._peers: Dict[str, str] = {}  # IP addresses of the others
        if len(job.hosts) > 1:
            self._members = connect(
                job,
                log,
                selector,
                self._on_joined,
                self._on_lost,
                self._on_report,
                self._on_disagreement,
                clock,
            )
            self._address = self._members.address
        if self._needs_rendezvous and job.settings.explicit_ps_port:
            self._check_port()

    @property
    def attempt(self) -> int:
        """See ``Coordinator``."""
        return self._cluster.attempt

    # Reports of this host.

    def report(self, report: Report) -> None:
        """See ``Coordinator``."""
        if isinstance(report, Idle):
            self._waiting.idle[report.host] = report.seconds
            return
        if isinstance(report, Reported):
            self._waiting.states[report.host] = report.state
        self._feed(report)
        if isinstance(report, Reported) and report.state is HostState.FINISHED:
            self._log_finished(report)

    def report_ready(self, resume: str) -> None:
        """See ``Coordinator``."""
        self._resume = resume
        super().report_ready(resume)

    def give_up(self) -> None:
        """See ``Coordinator``."""
        self._gave_up = True
        self._feed(LocalEvent.GAVE_UP)

    # Callbacks of ``MemberConnections``.

    def _on_joined(self, host: str, address: str, own_address: str) -> None:
        self._informed.add(host)
        self._peers[host] = address
        if self._address == _EVERY_ADDRESS:
            # Use the address that the other host has connected to.
            self._address = own_address
        self._feed(Reported(HostState.JOINED, host))
        count = f"{len(self._cluster.joined)} of {len(self._job.hosts)}"
        self._log("entrypoint", f"{host} joined from {address} ({count})")

    def _on_lost(self, host: str, reason: str, dropped: bool) -> None:
        if self._cluster.phase is not Phase.ENDED:
            what = f"{host} considers this host lost" if dropped else f"lost {host}"
            self._log.warning("entrypoint", f"{what}: {reason}")
        self._feed(Lost(host, reason, self._clock(), dropped))

    def _on_report(self, host: str, report: Report) -> None:
        if isinstance(report, (Reported, RankFinished, Idle)):
            report = replace(report, host=host)  # the authenticated name
        self.report(moved(report, self._clock()))

    def _on_disagreement(self, failure: Failure) -> None:
        self._informed.add(failure.host)
        self.report_failure(failure, self._clock())

    # Decisions and orders.

    def _feed(self, event: Event) -> None:
        self._cluster, orders = advance(self._cluster, event, self._clock())
        self._queue.put(orders)

    def _carry_out(self, order: Order) -> None:
        action = order.action
        if order.to is not None:
            self._send(action, order.to)
            return
        if isinstance(action, Start):
            try:
                action = self._completed(action)
            except NetworkError as error:
                self._report_port(error)
                return
        elif isinstance(action, End):
            self._ended_at = self._clock()
        if isinstance(action, (Start, Restart)):
            self._waiting.reset(self._clock())
        self._send(action)
        self._obey(action)
        if isinstance(action, Start) and action.rendezvous is not None:
            self._release(action.rendezvous)

    def _send(self, message: Any, host: Optional[str] = None) -> None:
        if self._members is not None:
            self._members.send(message, host)

    def _completed(self, start: Start) -> Start:
        """Return the order with the checkpoint to resume from, and the rendezvous."""
        rendezvous = None
        settings = self._job.settings
        if self._needs_rendezvous:
            # Processes of an earlier attempt must not reach the scheduler of this one.
            preferred = settings.ps_port if start.attempt == 1 or settings.explicit_ps_port else 0
            port = scheduler_port(self._address, preferred, settings.explicit_ps_port, self._log)
            rendezvous = Rendezvous(self._address, port, self._address, settings.servers_per_host)
            if self._job.horovod is not None:
                # Listen before the clients start, since they give up soon.
                listener = listening.listen(self._address, port).detach()
                rendezvous = replace(rendezvous, listener=listener, peers=dict(self._peers))
        return replace(start, resume=self._resume, rendezvous=rendezvous)

    @property
    def _needs_rendezvous(self) -> bool:
        """Whether the job needs a kvstore scheduler or Horovod's rendezvous."""
        return self._job.parameter_server or self._job.ranks > 1

    def _release(self, rendezvous: Rendezvous) -> None:
        """Close the listening socket, which the rendezvous process has inherited."""
        if rendezvous.listener:
            os.close(rendezvous.listener)

    def _check_port(self) -> None:
        """Report that an explicit port is taken, before anything is fetched."""
        try:
            scheduler_port(self._address, self._job.settings.ps_port, True, self._log)
        except NetworkError as error:
            self._report_port(error)  # not raised, so that the other hosts get the cause

    def _report_port(self, error: NetworkError) -> None:
        host = self._job.current_host
        role = Role.SCHEDULER if self._job.parameter_server else Role.RENDEZVOUS
        failure = Failure(host, role, str(error), kind=error.kind)
        self.report_failure(failure, self._clock())

    def _log_finished(self, report: Reported) -> None:
        left = sorted(self._cluster.hosts - self._cluster.finished)
        if left and self._cluster.phase is Phase.TRAINING and report.attempt == self.attempt:
            self._log("entrypoint", f"{report.host} finished; still training: {listed(left)}")

    # Deadlines.

    def tick(self, now: float) -> float:
        """See ``Coordinator``."""
        due = now + 1.0
        if self._members is not None:
            due = min(due, self._members.tick(now))
        self._feed(LocalEvent.TICK)
        if self._cluster.failure is None and self._cluster.stop is None:
            self._watch(now)
        if self._cluster.due is not None:
            due = min(due, max(now, self._cluster.due))
        return due

    def _watch(self, now: float) -> None:
        """Check timeouts, and log the hosts that the job waits for."""
        failure = self._waiting.stalled(self._cluster)
        if self._members is not None and failure is None:
            failure = self._waiting.join_failure(self._cluster, self._members, now)
        if failure is not None:
            self.report_failure(failure, now)
            return
        text = self._waiting.line(self._cluster, now)
        if text:
            self._log("entrypoint", text)
            self._send(Note(text))

    def delivered(self, now: float) -> bool:
        """See ``Coordinator``."""
        if self._members is None:
            return True
        if self._ended_at is None:
            return False
        deadline = GIVE_UP_DEADLINE if self._gave_up else REPORT_DEADLINE
        if now - self._ended_at >= deadline:
            return True
        # Followers that have the verdict send goodbye. Wait for others to join, so that they get
        # the failure instead of waiting for a leader that has ended.
        verdict = self._cluster.verdict
        success = verdict is not None and verdict.outcome is Outcome.SUCCESS
        expected = not success and len(self._informed) < len(self._job.hosts)
        gone = self._cluster.joined == {self._job.current_host} and not self._members.pending()
        return gone and (self._gave_up or not expected)

    def close(self) -> None:
        """See ``Coordinator``."""
        if self._members is not None:
            self._members.close()
