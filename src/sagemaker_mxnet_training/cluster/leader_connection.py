"""A follower's way to the leader: found by its name, joined, lost, and found again."""

import time
from typing import Any, Callable, List, Mapping, Optional, Protocol, Tuple

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster import channel, messages
from sagemaker_mxnet_training.cluster.coordination import PROGRESS_PERIOD
from sagemaker_mxnet_training.cluster.joining import (
    FOLLOWER_GRACE,
    Disagreement,
    disagreement,
    noted,
)
from sagemaker_mxnet_training.cluster.link import Clock
from sagemaker_mxnet_training.cluster.network import NameLookup
from sagemaker_mxnet_training.config.job import Job

_CALL_SECONDS = 10.0
"""How long a leader that was lost is called at one address: it may come back under another."""


class Channel(Protocol):
    """What is needed of ``FollowerChannel``."""

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


class Listener(Protocol):
    """Who is told what the leader says: the ``follower``."""

    def on_order(self, message: messages.Message) -> None:
        """Take an order. ``ValueError`` if it is none."""

    def on_lost(self, reason: str) -> None:
        """Take note that the leader is gone."""

    def on_refused(self, failure: Failure) -> None:
        """Take note that the leader cannot be joined, now or ever."""


class LeaderConnection:
    """Joins the leader, and carries messages both ways; what is said before arrives later.

    Args:
        job: the job.
        log: told of who is joined, and for what this host waits.
        listener: is told what the leader says.
        look_up: starts to look up the leader's name, and calls the argument with the answer.
        open_channel: opens the control channel to an address, and posts its events to the second
            argument.
        clock: monotonic seconds.

    Attributes:
        joined: whether this host is a member.
        own_address: this host's address, as the leader sees it.
    """

    def __init__(
        self,
        job: Job,
        log: Log,
        listener: Listener,
        look_up: Callable[[Callable[[NameLookup], None]], NameLookup],
        open_channel: Callable[[str, channel.Post], Channel],
        clock: Clock = time.monotonic,
    ) -> None:
        self._job = job
        self._log = log
        self._listener = listener
        self._open_channel = open_channel
        self._clock = clock
        self._look_up = look_up
        self._opened = self._told = self._called = clock()
        self._channel: Optional[Channel] = None
        self._away: Optional[Failure] = None
        self._unsent: List[Tuple[messages.Message, Optional[float]]] = []
        self._disagreement: Optional[Disagreement] = None
        self._closed = False
        self.joined = False
        self.own_address = ""
        self._lookup = look_up(self._on_lookup)

    def send(self, message: messages.Message, when: Optional[float] = None) -> None:
        """Send a message, now or as soon as the leader is joined.

        Args:
            message: the message; its ``age`` is set if ``when`` is given.
            when: when it happened (monotonic, seconds).
        """
        if self._channel is None or not self.joined:
            self._unsent.append((message, when))
            return
        if when is not None:
            message = message._replace(age=max(0.0, self._clock() - when))
        self._channel.send(messages.encode(message))

    def find_again(self, away: Failure) -> None:
        """Look for a leader that was lost, and may be started again; forget what is unsent.

        Args:
            away: the cause, if it does not come back within ``rejoin_timeout``.
        """
        if self._away is None:
            self._away, self._opened = away, self._clock()
        self._unsent = []
        self._look_up_again()

    def goodbye(self) -> None:
        """End what is to be said; a leader that is found from now on is not called."""
        self._closed = True
        if self._channel is not None:
            self._channel.goodbye()

    def pending(self) -> bool:
        """Tell whether something sent may not have arrived."""
        return self._channel is not None and self._channel.pending()

    def close(self) -> None:
        """Leave at once."""
        self._closed = True
        self._lookup.close()
        if self._channel is not None:
            self._channel.close()

    def tick(self, now: float) -> float:
        """Do what is due; return when to be called again."""
        if self._channel is None:
            return now + 1.0
        calling = self._away is not None and not (self.joined or self._closed)
        if calling and now - self._called >= _CALL_SECONDS:
            self._look_up_again()
            return now + 1.0
        return self._channel.tick(now)

    def obstacle(self, now: float) -> Optional[Failure]:
        """Return why the leader will not be joined any more, if it is so; log the wait."""
        settings, leader = self._job.settings, self._job.leader
        limit = settings.join_timeout if self._away is None else settings.rejoin_timeout
        left = self._opened + limit - now
        if self._disagreement is not None and self._disagreement.lasts(FOLLOWER_GRACE, now):
            difference = self._disagreement.difference
            return disagreement(self._job.current_host, leader, difference)
        if left <= 0:
            reason = f"could not be joined within {limit:g} s: {self._hindrance()}"
            return self._away or self._join_failure(leader, reason)
        if now - self._told >= PROGRESS_PERIOD:
            self._told = now
            text = f"waiting to join {leader}, {left:.0f} s left: {self._hindrance()}"
            self._log("entrypoint", text)
        return None

    def _look_up_again(self) -> None:
        self.close()
        self._channel, self._closed = None, False
        self._lookup = self._look_up(self._on_lookup)

    def _hindrance(self) -> str:
        if self._channel is None:
            return self._lookup.obstacle
        port = self._job.settings.control_port
        return f"on port {port}, {self._job.leader}: {self._channel.obstacle}"

    def _join_failure(self, host: str, reason: str) -> Failure:
        return Failure(host, Role.ENTRYPOINT, reason, kind=FailureKind.JOIN)

    def _on_lookup(self, lookup: NameLookup) -> None:
        if self._closed:
            return
        if lookup.invalid:
            reason = f"cannot be joined: {lookup.obstacle}"
            self._listener.on_refused(self._join_failure(self._job.leader, reason))
        else:
            self._called = self._clock()
            self._channel = self._open_channel(lookup.address, self._on_event)

    def _on_event(self, event: channel.Event) -> None:
        if isinstance(event, channel.PeerJoined):
            self._on_joined(event)
        elif isinstance(event, channel.PeerMessage):
            try:
                self._listener.on_order(messages.decode(event.body))
            except ValueError as error:
                self._log.warning("entrypoint", f"{event.host} sent a wrong message: {error}")
        elif isinstance(event, channel.PeerDiffers):
            self._disagreement = noted(self._disagreement, event.difference, self._clock())
        elif isinstance(event, channel.Refused):
            reason = f"{self._job.leader} refused this host: {event.reason}"
            self._listener.on_refused(self._join_failure(self._job.current_host, reason))
        elif isinstance(event, channel.PeerLost):
            self._on_lost(event.reason)
        elif isinstance(event, channel.PeerLeft):
            self._on_lost("it left before the job had ended")

    def _on_joined(self, event: channel.PeerJoined) -> None:
        self.joined = True
        self.own_address = event.local_address
        self._away = None
        self._log("entrypoint", f"joined {event.host} at {event.address}")
        unsent, self._unsent = self._unsent, []
        for message, when in unsent:
            self.send(message, when)

    def _on_lost(self, reason: str) -> None:
        if not self._closed:
            self._log.warning("entrypoint", f"lost {self._job.leader}: {reason}")
            self.joined = False
            self._listener.on_lost(reason)
