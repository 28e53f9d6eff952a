"""The interface between a supervisor and the other hosts: it sends reports and gets orders.

The first host is the leader (``leader``), the others are followers (``follower``). All send reports
to the leader, which passes them to the decision function (``decision.advance``) and sends the
resulting orders. A single host is its own leader, without a network.
"""

import abc
from collections import deque
from typing import Callable, Deque, Generic, Sequence, TypeVar

from sagemaker_mxnet_toolkit.failure import Failure
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.events import (
    Action,
    Failed,
    HostState,
    Idle,
    RankFinished,
    Report,
    Reported,
    Stop,
    StopRequested,
)
from sagemaker_mxnet_training.config.job import Job

PROGRESS_PERIOD = 15.0
"""Seconds between two log messages about the same wait."""

REPORT_DEADLINE = 3.0
"""Seconds for which an ending host tries to notify the others."""

GIVE_UP_DEADLINE = 1.0
"""The same after a second stop signal."""


class Coordinator(abc.ABC):
    """Sends reports of a host and receives orders. Times are monotonic, in seconds.

    Args:
        log: logs every transition.
        obey: carries out an order on this host; called at most once per order in an attempt.
    """

    def __init__(
        self, job: Job, log: Log, obey: Callable[[Action], None], clock: Callable[[], float]
    ) -> None:
        self._job = job
        self._log = log
        self._obey = obey
        self._clock = clock

    def report_state(self, state: HostState) -> None:
        """Report the state of this host in the current attempt."""
        self.report(Reported(state, self._job.current_host, self.attempt))

    def report_ready(self, resume: str) -> None:
        """Report ``HostState.READY``.

        Args:
            resume: name of the checkpoint to resume from, empty for none; that of the first host is
                used.
        """
        self.report_state(HostState.READY)

    def report_rank_finished(self, rank: int) -> None:
        """Report that a worker with Horovod has exited with status 0 in this attempt."""
        self.report(RankFinished(self._job.current_host, rank, self.attempt))

    def report_failure(self, failure: Failure, when: float) -> None:
        """Report a failure on this host, and when it happened."""
        self.report(Failed(failure.bounded(), when, self.attempt))

    def report_stop(self, stop: Stop, when: float) -> None:
        """Report that this host was asked to stop, and when."""
        self.report(StopRequested(stop, when))

    def report_idle(self, seconds: float) -> None:
        """Report the seconds since this host's worker last made progress."""
        self.report(Idle(self._job.current_host, seconds))

    @property
    @abc.abstractmethod
    def attempt(self) -> int:
        """Number of the current attempt, from 1."""

    @abc.abstractmethod
    def report(self, report: Report) -> None:
        """Send a report of this host."""

    @abc.abstractmethod
    def give_up(self) -> None:
        """Stop waiting for other hosts, after a second stop signal.

        This host ends alone, with ``Outcome.STOP`` unless something failed before the stop. The
        leader notifies the others, which also end.
        """

    @abc.abstractmethod
    def tick(self, now: float) -> float:
        """Check deadlines; return when to call again."""

    @abc.abstractmethod
    def delivered(self, now: float) -> bool:
        """Return whether all hosts that can be reached have got the verdict."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close all connections."""


T = TypeVar("T")


class OrderQueue(Generic[T]):
    """Carries out orders one after the other, even if one of them adds more.

    Args:
        carry_out: carries out one order.
    """

    def __init__(self, carry_out: Callable[[T], None]) -> None:
        self._carry_out = carry_out
        self._orders: Deque[T] = deque()
        self._busy = False

    def put(self, orders: Sequence[T]) -> None:
        """Carry out orders, after those that are still queued."""
        self._orders.extend(orders)
        if self._busy:
            return
        self._busy = True
        try:
            while self._orders:
                self._carry_out(self._orders.popleft())
        finally:
            self._busy = False


def listed(hosts: Sequence[str]) -> str:
    """Return ``a, b and c``; at most ten are named."""
    shown = list(hosts[:10])
    if len(hosts) > 10:
        return ", ".join(shown) + f" and {len(hosts) - 10} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
