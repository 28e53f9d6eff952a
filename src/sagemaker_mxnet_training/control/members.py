"""The leader's connections to the other hosts.

Followers connect and authenticate (``handshake``). They are members as soon as they confirm the
welcome, so that one that has given up in the meantime is not considered lost. A member whose
connection ends without a goodbye is lost. If its host connects again, it belongs to the next job,
and has to wait for the next leader.

Both ends run in the supervisor's selector and are called with the time by ``tick``.
"""

import errno
import selectors
import socket
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Set

from sagemaker_mxnet_toolkit import listening
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes import own_process
from sagemaker_mxnet_training.cluster.events import REPORTS
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.control import addresses, handshake, wire
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

LOGGED_REJECTIONS = 64
"""Maximum number of rejected connections, by address and reason, that are logged."""

SPARE_CONNECTIONS = 128
"""Maximum number of unauthenticated connections, in addition to one for each host. The oldest are
dropped."""

LOOKUP_TIME = 5.0
"""Seconds in which the names of missing hosts are resolved, for the cause of a join timeout."""

_ACCEPTS = 16
"""Connections that are accepted at once: few enough for a host to authenticate during a flood
before it is dropped."""

_NO_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Acceptor:
    """The listening socket, and a bounded number of connections that have not authenticated yet.

    Args:
        listener: the listening socket.
        limit: maximum number of unauthenticated connections.
        admit: creates the link of a connection.
    """

    def __init__(
        self,
        listener: socket.socket,
        limit: int,
        selector: selectors.BaseSelector,
        admit: Callable[[socket.socket, str], Link],
    ) -> None:
        self._listener = listener
        self._limit = limit
        self._selector = selector
        self._admit = admit
        self._open = False
        self.pending: Dict[Link, None] = {}  # the oldest first
        listener.setblocking(False)
        self.open()

    def open(self) -> None:
        """Accept connections."""
        if not self._open:
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
            self._open = True

    def expire(self, now: float) -> None:
        """End connections that did not authenticate in time."""
        for link in [each for each in self.pending if now - each.opened > HANDSHAKE_TIMEOUT]:
            link.end(f"did not authenticate within {HANDSHAKE_TIMEOUT:g} s")

    def close(self) -> None:
        """Close the listening socket and all pending connections."""
        self._pause()
        self._listener.close()
        for link in self.pending:
            link.close()
        self.pending.clear()

    def _pause(self) -> None:
        if self._open:
            self._selector.unregister(self._listener)
            self._open = False

    def _accept(self, mask: int) -> None:
        for _ in range(_ACCEPTS):
            if not self._open:
                return
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_RESOURCES and not self._drop_oldest():
                    # The listener stays readable; do not spin until the next heartbeat.
                    self._pause()
                continue
            self.pending[self._admit(sock, address[0])] = None
            if len(self.pending) > self._limit:
                self._drop_oldest()

    def _drop_oldest(self) -> bool:
        oldest = next(iter(self.pending), None)
        if oldest is not None:
            oldest.end("was dropped for newer connections before it authenticated")
        return oldest is not None


class MemberConnections:
    """The leader's connections to the other hosts of a job.

    It raises the soft limit on open files for jobs with many hosts; child processes inherit it.

    Args:
        log: logs rejected connections.
        on_joined: called with the name of a new member, its IP address, and this host's address as
            the member sees it.
        on_lost: called with the name of a lost member, the reason, and whether the member considers
            this host lost.
        on_report: called with the name of a member and one of ``events.REPORTS``.
        on_disagreement: called with the failure of a host that has a different job.
        clock: monotonic seconds, as passed to ``tick``.

    Attributes:
        address: the address on which this host listens; ``0.0.0.0`` for all.
        listening: the address with the port.

    Raises:
        NetworkError: the port is not available.
    """

    def __init__(
        self,
        job: Job,
        log: Log,
        selector: selectors.BaseSelector,
        on_joined: Callable[[str, str, str], None],
        on_lost: Callable[[str, str, bool], None],
        on_report: Callable[[str, Any], None],
        on_disagreement: Callable[[Failure], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self._job = job
        self._log = log
        self._selector = selector
        self._on_joined = on_joined
        self._on_lost = on_lost
        self._on_report = on_report
        self._on_disagreement = on_disagreement
        self._clock = clock
        self._key = handshake.derive_key(job)
        self._parts = handshake.digests(job, self._key)
        self._heartbeats = Heartbeats(job.settings.peer_timeout, clock())
        self._welcomed: Dict[str, Link] = {}
        self._members: Dict[str, Link] = {}
        self._seen: Set[str] = set()
        self._logged: Set[str] = set()
        self._rejected: Dict[str, str] = {}  # the last rejection, by the name in the hello
        self._lookups: Dict[str, NameLookup] = {}
        self.address = addresses.listening_address(job)
        listener = _listen(self.address, job)
        self.listening = "{}:{}".format(*listener.getsockname())
        if job.settings.job_key is None and not self.address.startswith("127."):
            log(
                "entrypoint",
                "job_key is not set: anyone who knows the job's name and ARN and can connect to "
                f"{self.listening} can join the job",
            )
        limit = len(job.hosts) + SPARE_CONNECTIONS
        own_process.raise_file_limit(len(job.hosts) + limit + 256)
        self._acceptor = Acceptor(listener, limit, selector, self._admit)

    def send(self, message: Any, host: Optional[str] = None) -> None:
        """Queue a message to one member, or to all."""
        frame = wire.encode(message)
        for name, link in self._members.items():
            if host in (None, name):
                link.send_frame(frame)

    def tick(self, now: float) -> float:
        """Send heartbeats and check timeouts; return when to call again."""
        if self._heartbeats.due(now):
            self._acceptor.open()
            self._acceptor.expire(now)
            beat = wire.encode(Beat())
            for link in self._authenticated():
                if self._heartbeats.keep(link, now):
                    link.send_frame(beat)
        return self._heartbeats.next

    def pending(self) -> bool:
        """Return whether messages are still queued."""
        return any(link.unsent for link in self._members.values())

    def close(self) -> None:
        """Close all connections. Members that have not sent goodbye consider the leader lost."""
        self._acceptor.close()
        for link in self._authenticated():
            link.close()
        self._members.clear()
        self._welcomed.clear()
        for lookup in self._lookups.values():
            lookup.close()

    def look_up(self, hosts: Sequence[str]) -> None:
        """Start to resolve the names of missing hosts, for ``obstacle``."""
        known = self._job.settings.host_addresses
        for host in hosts:
            if host not in self._lookups:
                self._lookups[host] = NameLookup(
                    host, known, LOOKUP_TIME, self._selector, self._log, lambda lookup: None
                )

    def obstacle(self, host: str) -> str:
        """Return why a host has not joined."""
        lookup = self._lookups.get(host)
        if host in self._rejected:
            return self._rejected[host]
        if lookup is None:
            return f"{host} never connected"
        if lookup.address:
            return f"{host} resolves to {lookup.address} but never connected"
        return lookup.obstacle

    def _authenticated(self) -> List[Link]:
        return [*self._members.values(), *self._welcomed.values()]

    def _admit(self, sock: socket.socket, address: str) -> Link:
        return Link(sock, address, self._selector, self._clock, self._take_hello, self._on_end)

    def _take_hello(self, link: Link, payload: bytes) -> None:
        hello = handshake.read_hello(payload)
        link.host, link.version = hello.host, hello.version
        answer = wire.encode(handshake.hello(self._job.current_host))
        link.hellos = wire.frame(payload) + answer
        link.on_payload = self._take_join
        link.send_frame(answer)

    def _take_join(self, link: Link, payload: bytes) -> None:
        join: Join = wire.decode(payload, Join)
        if not handshake.proves(join, self._key, link.hellos):
            claim = f"claims to be {link.host} but " if self._missing(link.host) else ""
            raise WireError(f"{claim}failed to authenticate with this job's key")
        refusal = self._refusal(link, join)
        if refusal is not None:
            link.send(handshake.signed(refusal, self._key, link.hellos))
            raise WireError(f"{link.host} {refusal.reason}")
        # An earlier attempt of this host that it has given up.
        earlier = self._welcomed.pop(link.host, None)
        if earlier is not None:
            earlier.close()
        del self._acceptor.pending[link]
        self._welcomed[link.host] = link
        link.inbox.limit = wire.FRAME_LIMIT
        link.on_payload = self._take_confirmation
        link.send(handshake.signed(Welcome(), self._key, link.hellos))

    def _refusal(self, link: Link, join: Join) -> Optional[Refused]:
        me = self._job.current_host
        if link.version != handshake.VERSION:
            return Refused(
                f"uses version {link.version} of the control protocol, and {me} version "
                f"{handshake.VERSION}: install the same version of this toolkit on all hosts",
                final=True,
            )
        if link.host not in self._job.hosts or link.host == me:
            return Refused(f"is not another host of {me}'s job", final=True)
        if link.host in self._seen:
            return Refused(f"has already joined {me}, and cannot join again", final=False)
        differing = handshake.differences(self._parts, join.parts)
        if not differing:
            return None
        reason = (
            f"does not agree with {me} on the job: they have different "
            f"{' and '.join(differing)}; configure all hosts the same"
        )
        self._on_disagreement(Failure(link.host, Role.ENTRYPOINT, reason, kind=FailureKind.JOIN))
        return Refused(reason, final=True)

    def _take_confirmation(self, link: Link, payload: bytes) -> None:
        wire.decode(payload, Beat)
        self._members[link.host] = self._welcomed.pop(link.host)
        self._seen.add(link.host)
        link.on_payload = self._take_message
        self._on_joined(link.host, link.address, link.local_address)

    def _take_message(self, link: Link, payload: bytes) -> None:
        message = wire.decode(payload, *REPORTS, Beat, Dropped, Goodbye)
        if isinstance(message, Goodbye):
            self._lose(link, "it left before the job ended")
        elif isinstance(message, Dropped):
            self._lose(link, message.reason, dropped=True)
        elif not isinstance(message, Beat):
            self._on_report(link.host, message)

    def _lose(self, link: Link, reason: str, dropped: bool = False) -> None:
        link.close()
        del self._members[link.host]
        self._on_lost(link.host, reason, dropped)

    def _on_end(self, link: Link, reason: str) -> None:
        if self._members.get(link.host) is link:
            self._lose(link, reason)
        elif self._welcomed.get(link.host) is link:
            del self._welcomed[link.host]
        elif link in self._acceptor.pending:
            del self._acceptor.pending[link]
            self._log_rejection(link, reason)

    def _log_rejection(self, link: Link, reason: str) -> None:
        text = f"rejected connection from {link.address}: {reason}"
        if self._missing(link.host):
            self._rejected[link.host] = text
        if len(self._logged) < LOGGED_REJECTIONS and text not in self._logged:
            self._logged.add(text)
            self._log.warning("entrypoint", text)

    def _missing(self, host: str) -> bool:
        return host in self._job.hosts and host not in self._seen


def _listen(address: str, job: Job) -> socket.socket:
    """Return the listening socket: inherited from ``local``, or a new one."""
    if job.settings.control_fd is not None:
        return socket.socket(fileno=job.settings.control_fd)
    return listening.listen(address, job.settings.control_port)
