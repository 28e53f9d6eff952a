"""A follower's connection to the leader."""

import errno
import math
import os
import selectors
import socket
import time
from typing import Any, Callable, Optional, Union

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_training.cluster.events import ORDERS, lost
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.control import handshake, wire
from sagemaker_mxnet_training.control.addresses import NameLookup
from sagemaker_mxnet_training.control.handshake import Join, Refused, Welcome
from sagemaker_mxnet_training.control.link import (
    HANDSHAKE_TIMEOUT,
    Beat,
    Clock,
    Dropped,
    Goodbye,
    Heartbeats,
    Link,
)
from sagemaker_mxnet_training.control.wire import WireError

RETRY_DELAYS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Seconds between attempts to join; the last one repeats."""

_LOOKUP_PERIOD = 2.0
"""Seconds between two lookups of the leader's name before joining, since its address may change."""


class LeaderConnection:
    """Resolves the leader's name, joins the leader, and exchanges messages with it.

    If the leader cannot be reached, has another key, or its job has ended, the connection is
    retried; ``obstacle`` has the reason. The caller enforces the deadline.

    Args:
        log: logs a changed address of the leader.
        on_joined: called with the leader's address when this host has joined.
        on_order: called with one of ``events.ORDERS``.
        on_lost: called with the failure when the connection is lost after joining.
        on_refused: called with the failure when the leader has rejected this host for good.
        clock: monotonic seconds, as passed to ``tick``.

    Attributes:
        joined: whether this host is a member.
        own_address: this host's address, as the leader sees it.
    """

    def __init__(
        self,
        job: Job,
        log: Log,
        selector: selectors.BaseSelector,
        on_joined: Callable[[str], None],
        on_order: Callable[[Any], None],
        on_lost: Callable[[Failure], None],
        on_refused: Callable[[Failure], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self._job = job
        self._log = log
        self._selector = selector
        self._on_joined = on_joined
        self._on_order = on_order
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._clock = clock
        self._key = handshake.derive_key(job)
        self._peer_timeout = job.settings.peer_timeout
        self._heartbeats = Heartbeats(self._peer_timeout, clock())
        self._address = ""
        self._link: Optional[Link] = None
        self._hello = b""
        self._reason = "not tried yet"
        self._attempts = 0
        self._next_attempt = self._looked_up = clock()
        self._leaving = False
        self._over = False
        self.joined = False
        self.own_address = ""
        self._lookup = self._look_up()

    def send(self, message: Any) -> None:
        """Queue a message to the leader. It is discarded before joining and after goodbye."""
        if self.joined and not self._leaving and self._link is not None:
            self._link.send(message)

    def tick(self, now: float) -> float:
        """Send heartbeats, check timeouts, and retry; return when to call again."""
        if self._over:
            return math.inf
        if self.joined:
            self._keep(now)
            return self._heartbeats.next
        # A lookup without an address is still being tried.
        if self._lookup.address and now - self._looked_up >= _LOOKUP_PERIOD:
            self._looked_up = now
            self._lookup.close()
            self._lookup = self._look_up()
        due = now + _LOOKUP_PERIOD
        if not self._address:
            return due
        if self._link is not None and now - self._link.opened >= HANDSHAKE_TIMEOUT:
            self._link.end(f"did not accept this host within {HANDSHAKE_TIMEOUT:g} s")
        if self._link is None and now >= self._next_attempt:
            self._connect()
        if self._link is not None:
            return min(due, self._link.opened + HANDSHAKE_TIMEOUT)
        return min(due, self._next_attempt)

    @property
    def obstacle(self) -> str:
        """Why this host has not joined yet."""
        if not self._address:
            return self._lookup.obstacle
        port = self._job.settings.control_port
        return f"{self._job.leader} at {self._address}:{port}: {self._reason}"

    def goodbye(self) -> None:
        """Send goodbye. The leader's disconnect after this is not a loss."""
        if not self._leaving:
            self._leaving = True
            if self.joined and self._link is not None:
                self._link.send(Goodbye())
            else:
                self.close()

    def pending(self) -> bool:
        """Return whether messages may not have arrived.

        After ``goodbye`` this is true until the leader has closed the connection.
        """
        if self._over or self._link is None or not self.joined:
            return False
        return self._leaving or self._link.unsent > 0

    def close(self) -> None:
        """Close at once. Without a goodbye, the leader considers this host lost."""
        self._over = True
        self._lookup.close()
        if self._link is not None:
            self._link.close()
            self._link = None

    def _look_up(self) -> NameLookup:
        settings = self._job.settings
        return NameLookup(
            self._job.leader,
            settings.host_addresses,
            settings.join_timeout,
            self._selector,
            self._log,
            self._on_address,
        )

    def _on_address(self, lookup: NameLookup) -> None:
        if self.joined or self._over:
            return
        if lookup.invalid:
            self._refuse(self._job.leader, f"cannot be joined: {lookup.obstacle}")
        elif lookup.address != self._address:
            if self._link is not None:
                self._link.close()
                self._link = None
            if self._address:
                self._log("entrypoint", f"{self._job.leader} is now at {lookup.address}")
            self._address = lookup.address
            self._attempts = 0
            self._connect()

    def _connect(self) -> None:
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            return self._retry(f"cannot create a socket: {error.strerror}")
        sock.setblocking(False)
        code = sock.connect_ex((self._address, self._job.settings.control_port))
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            return self._retry(f"its connection failed: {os.strerror(code)}")
        self._link = Link(
            sock, self._address, self._selector, self._clock, self._take_hello, self._on_end
        )
        self._hello = wire.encode(handshake.hello(self._job.current_host))
        # It is sent when the connection is established; if that fails, reading has the error.
        self._link.send_frame(self._hello)

    def _retry(self, reason: str) -> None:
        self._reason = reason
        delay = RETRY_DELAYS[min(self._attempts, len(RETRY_DELAYS) - 1)]
        self._attempts += 1
        self._next_attempt = self._clock() + delay

    def _take_hello(self, link: Link, payload: bytes) -> None:
        hello = handshake.read_hello(payload)
        if hello.host != self._job.leader:
            raise WireError(f"claims to be {hello.host}: the port belongs to another job")
        link.hellos = self._hello + wire.frame(payload)
        link.on_payload = self._take_answer
        join = Join(handshake.digests(self._job, self._key))
        link.send(handshake.signed(join, self._key, link.hellos))

    def _take_answer(self, link: Link, payload: bytes) -> None:
        answer: Union[Welcome, Refused] = wire.decode(payload, Welcome, Refused)
        if not handshake.proves(answer, self._key, link.hellos):
            raise WireError("failed to authenticate with this job's key")
        if isinstance(answer, Refused):
            if answer.final:
                self._refuse(self._job.current_host, answer.reason)
                return
            raise WireError(f"{self._job.current_host} {answer.reason}")
        self.joined = True
        self._lookup.close()
        self.own_address = link.local_address
        self._heartbeats = Heartbeats(self._peer_timeout, self._clock())
        link.inbox.limit = wire.FRAME_LIMIT
        link.on_payload = self._take_message
        link.send(Beat())
        self._on_joined(link.address)

    def _refuse(self, host: str, reason: str) -> None:
        self.close()
        self._on_refused(Failure(host, Role.ENTRYPOINT, reason, kind=FailureKind.JOIN))

    def _take_message(self, link: Link, payload: bytes) -> None:
        message = wire.decode(payload, *ORDERS, Beat, Dropped)
        if isinstance(message, Dropped):
            me = self._job.current_host
            text = f"{self._job.leader} considers this host lost: {message.reason}"
            self._lose(lost(me, message.reason), text)
        elif not isinstance(message, Beat):
            self._on_order(message)

    def _keep(self, now: float) -> None:
        """Send a heartbeat, and check those of the leader."""
        link = self._link
        if link is None or not self._heartbeats.due(now):
            return
        if self._heartbeats.keep(link, now) and not self._leaving:
            link.send(Beat())

    def _on_end(self, link: Link, reason: str) -> None:
        self._link = None
        if self.joined:
            leader = self._job.leader
            self._lose(lost(leader, reason), f"lost {leader}: {reason}")
        elif link.on_payload == self._take_answer and reason.startswith("its connection closed"):
            self._retry("rejected this host: the job keys differ, or the port is another job's")
        else:
            self._retry(reason)

    def _lose(self, failure: Failure, text: str) -> None:
        leaving = self._leaving
        self.close()
        self.joined = False
        if not leaving:
            self._log.warning("entrypoint", text)
            self._on_lost(failure)
