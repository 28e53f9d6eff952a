"""The other hosts of a job, as the leader hears and reaches them."""

import selectors
from typing import Any, Callable, Mapping, Optional, Protocol, Sequence

from sagemaker_mxnet_toolkit.failure import Failure
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster import channel, messages, network
from sagemaker_mxnet_training.cluster.events import Action, Step, Stop
from sagemaker_mxnet_training.cluster.joining import LOOKUP_TIME, JoinWatch
from sagemaker_mxnet_training.cluster.keys import JobKeys
from sagemaker_mxnet_training.cluster.leader_channel import LeaderChannel
from sagemaker_mxnet_training.cluster.link import Clock
from sagemaker_mxnet_training.cluster.network import NameLookup
from sagemaker_mxnet_training.config.job import Job


class Channel(Protocol):
    """What is needed of ``LeaderChannel``."""

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


class Listener(Protocol):
    """Who is told what the members report: the ``leader``. Times are its clock's, in seconds."""

    def on_joined(self, host: str, own_address: str) -> str:
        """Take in a host, which calls this one by ``own_address``; return how many there are."""

    def on_lost(self, host: str, reason: str) -> None:
        """Take note that a host is gone."""

    def on_step(self, host: str, step: Step, attempt: int) -> None:
        """Take note of what a host does."""

    def on_idle(self, host: str, seconds: float) -> None:
        """Take note of how long a host's worker has made no progress."""

    def on_failure(self, failure: Failure, when: float, attempt: int) -> None:
        """Take note of a failure."""

    def on_stop(self, stop: Stop, when: float) -> None:
        """Take note of a request to stop."""


class Members:
    """Speaks with the other hosts, in ``messages``; knows who is missing, and why.

    Args:
        log: told of who comes and goes.
        joining: watches over those who have not joined.
        listener: is told what the members report.
        open_channel: opens the control channel, which posts its events to the argument.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        log: Log,
        joining: JoinWatch,
        listener: Listener,
        open_channel: Callable[[channel.Post], Channel],
        clock: Clock,
    ) -> None:
        self._log = log
        self._joining = joining
        self._listener = listener
        self._clock = clock
        self._channel = open_channel(self._on_event)

    def tell(self, action: Action, to: Optional[str] = None) -> None:
        """Give an order to one member, or to all."""
        self._send(action, to)

    def note(self, text: str) -> None:
        """Send all members a line for their logs."""
        self._send(messages.Note(text))

    def missing(self, hosts: Sequence[str], now: float) -> Optional[Failure]:
        """Return why the job cannot begin without the hosts that have not joined, if it cannot."""
        return self._joining.check(hosts, now)

    def join_time_left(self, now: float) -> float:
        """Return the seconds that hosts still have to join."""
        return self._joining.left(now)

    def tick(self, now: float) -> float:
        """Do what is due; return when to be called again."""
        return self._channel.tick(now)

    def pending(self) -> bool:
        """Tell whether something sent may not have arrived."""
        return self._channel.pending()

    def close(self) -> None:
        """Leave."""
        self._joining.close()
        self._channel.close()

    def _send(self, message: messages.Message, to: Optional[str] = None) -> None:
        body = messages.encode(message)
        if to is None:
            self._channel.broadcast(body)
        else:
            self._channel.send(to, body)

    def _on_event(self, event: channel.Event) -> None:
        now = self._clock()
        if isinstance(event, channel.PeerJoined):
            count = self._listener.on_joined(event.host, event.local_address)
            self._log("entrypoint", f"{event.host} joined from {event.address} ({count})")
        elif isinstance(event, channel.PeerMessage):
            try:
                self._on_message(event.host, messages.decode(event.body), now)
            except ValueError as error:
                self._log.warning("entrypoint", f"{event.host} sent a wrong message: {error}")
        elif isinstance(event, channel.PeerLeft):
            self._listener.on_lost(event.host, "it left before the job had ended")
        elif isinstance(event, channel.PeerLost):
            self._listener.on_lost(event.host, event.reason)
        elif isinstance(event, channel.PeerDiffers):
            self._joining.on_differs(event, now)
        elif isinstance(event, channel.Stranger):
            self._joining.on_stranger(event)
            self._log.warning("entrypoint", f"turned {event.address} away: {event.reason}")

    def _on_message(self, host: str, message: messages.Message, now: float) -> None:
        listener = self._listener
        if isinstance(message, messages.StepReport) and message.step is not Step.JOINED:
            listener.on_step(host, message.step, message.attempt)
        elif isinstance(message, messages.IdleReport):
            listener.on_idle(host, message.seconds)
        elif isinstance(message, messages.FailureReport):
            listener.on_failure(message.failure, now - message.age, message.attempt)
        elif isinstance(message, messages.StopReport):
            listener.on_stop(Stop(host, message.signal), now - message.age)
        else:
            raise ValueError(f"{type(message).__name__} is not a report")


def open_members(
    job: Job,
    address: str,
    log: Log,
    listener: Listener,
    selector: selectors.BaseSelector,
    clock: Clock,
) -> Members:
    """Open the control channel of the first host: the others can join from then on.

    Args:
        job: the job.
        address: the address to listen on.
        log: told of who comes and goes.
        listener: is told what the members report.
        selector: the supervisor's.
        clock: monotonic seconds.

    Raises:
        NetworkError: its port cannot be listened on.
    """
    settings = job.settings
    keys = JobKeys.of(job)
    socket = network.listen(address, settings.control_port, settings.control_fd)
    if not keys.secret and not address.startswith("127."):
        log(
            "entrypoint",
            "job_key is not set: who knows the job's name, ARN and hyperparameters, and "
            f"reaches port {settings.control_port}, can take part in the job",
        )

    def look_up(host: str) -> NameLookup:
        return NameLookup(
            host, settings.host_addresses, LOOKUP_TIME, selector, log, lambda lookup: None
        )

    def open_channel(post: channel.Post) -> LeaderChannel:
        return LeaderChannel(
            socket,
            keys,
            job.current_host,
            job.hosts,
            settings.peer_timeout,
            selector,
            post,
            rejoin=settings.rejoin_timeout > 0,
        )

    joining = JoinWatch(keys, job.current_host, settings.join_timeout, look_up, clock())
    return Members(log, joining, listener, open_channel, clock)
