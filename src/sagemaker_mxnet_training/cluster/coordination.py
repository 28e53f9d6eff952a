"""How the hosts of a job agree: on when to start, when to leave and how it ended.

The first host leads (``leader``), the others follow (``follower``). All report what happens to
them; the leader feeds that to the one decision function (``decision.advance``) and gives orders,
in ``messages`` over the control channel. A host alone is its own leader and needs no network.

Here is what the supervisor sees of it.
"""

from collections import deque
from typing import Callable, Deque, Generic, Protocol, Sequence, TypeVar

from sagemaker_mxnet_toolkit.failure import Failure
from sagemaker_mxnet_training.cluster.events import (
    Action,
    Command,
    End,
    Rendezvous,
    Restart,
    Start,
    Step,
    Stop,
    StopScripts,
    Verdict,
)

__all__ = [
    "GIVE_UP_DEADLINE",
    "PROGRESS_PERIOD",
    "REPORT_DEADLINE",
    "Coordinator",
    "OrderQueue",
    "Orders",
    "Rendezvous",
    "Restart",
    "Start",
    "Step",
    "Stop",
    "Verdict",
    "give",
    "listed",
]

PROGRESS_PERIOD = 15.0
"""Seconds between two lines about the same wait."""

REPORT_DEADLINE = 3.0
"""Seconds that a host which must end goes on trying to tell the others why."""

GIVE_UP_DEADLINE = 1.0
"""Seconds of the same after a second stop signal."""


class Orders(Protocol):
    """What a coordinator asks of the supervisor. Each is given once in an attempt at the most."""

    def start(self, order: Start) -> None:
        """Start the kvstore and the worker."""

    def stepped(self) -> None:
        """Take note that the first step of training is done, on whichever host."""

    def restart(self, order: Restart) -> None:
        """End the processes of the attempt, and report ``READY`` when the next one can start."""

    def stop(self, stop: Stop) -> None:
        """Ask the worker to stop."""

    def leave(self) -> None:
        """End a worker that was asked to stop: the checkpoint is written."""

    def drain(self) -> None:
        """All workers have finished: see the rest of the processes out."""

    def end(self, verdict: Verdict) -> None:
        """Make an end of whatever still runs, and report this verdict."""


class Coordinator(Protocol):
    """A host's way to tell the others. Times are this host's monotonic clock, in seconds."""

    def report_step(self, step: Step) -> None:
        """Say what this host does, or has done, in the present attempt."""

    def report_ready(self, resume: str) -> None:
        """Say ``Step.READY``.

        Args:
            resume: name of the checkpoint that training shall go on from, empty for none; the first
                host's counts.
        """

    def report_failure(self, failure: Failure, when: float) -> None:
        """Say that something failed here."""

    def report_stop(self, stop: Stop, when: float) -> None:
        """Say that this host was asked to stop."""

    def report_idle(self, idle: float) -> None:
        """Say for how many seconds this host's worker has made no progress."""

    def give_up(self) -> None:
        """Wait for no other host any more: a second stop signal arrived.

        This host ends alone, with ``Outcome.STOP`` unless something failed before the stop. The
        leader tells the others, which end too.
        """

    def tick(self, now: float) -> float:
        """Do what is due; return when to be called again."""

    def settled(self, now: float) -> bool:
        """Return whether everybody who must know the verdict knows it, or cannot be told."""

    def close(self) -> None:
        """Leave, with a goodbye."""


T = TypeVar("T")


class OrderQueue(Generic[T]):
    """Carries orders out one after the other, also where one of them leads to more.

    Args:
        carry_out: does one.
    """

    def __init__(self, carry_out: Callable[[T], None]) -> None:
        self._carry_out = carry_out
        self._orders: Deque[T] = deque()
        self._busy = False

    def put(self, orders: Sequence[T]) -> None:
        """Carry orders out; behind the one that is being carried out, if there is one."""
        self._orders.extend(orders)
        if self._busy:
            return
        self._busy = True
        try:
            while self._orders:
                self._carry_out(self._orders.popleft())
        finally:
            self._busy = False


def give(action: Action, orders: Orders) -> None:
    """Give the supervisor an order."""
    if isinstance(action, Start):
        orders.start(action)
    elif isinstance(action, Restart):
        orders.restart(action)
    elif isinstance(action, StopScripts):
        orders.stop(action.stop)
    elif isinstance(action, End):
        orders.end(action.verdict)
    elif action.command is Command.FIRST_STEP:
        orders.stepped()
    elif action.command is Command.LEAVE:
        orders.leave()
    else:
        orders.drain()


def listed(hosts: Sequence[str]) -> str:
    """Return ``a, b and c``, cut short after ten."""
    shown = list(hosts[:10])
    if len(hosts) > 10:
        return ", ".join(shown) + f" and {len(hosts) - 10} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
