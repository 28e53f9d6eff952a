"""The control channel: how the hosts of a job prove membership, talk, and notice each other's loss.

One leader, any number of followers, one TCP connection each, small JSON objects both ways. Neither
side has a thread or a loop of its own: both live in the caller's selector, where each registered
file has a callable as its ``data``::

    while True:
        wake = channel.tick(time.monotonic())
        for ready, mask in selector.select(max(0.0, wake - time.monotonic())):
            ready.data(mask)

A follower joins in four frames (see ``frames``), follower first: opening, opening, ``join``,
``welcome``. Its next frame confirms the welcome, and only then does the leader call it a member: a
follower that gave up meanwhile is not taken for a lost one. A member whose connection ends without
a goodbye is lost, for good: a process of an earlier job, or one half of a healed network, must not
slip back in.

``post`` receives the events, from within ``tick`` and the selector's callables only. It may call
any method here but ``tick``.
"""

import errno
import math
import os
import resource
import selectors
import socket
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

from sagemaker_mxnet_training.cluster import frames
from sagemaker_mxnet_training.cluster.frames import FrameError, Kind, Opening, Packed, derive_key
from sagemaker_mxnet_training.cluster.link import QUEUE_LIMIT, Clock, Link
from sagemaker_mxnet_training.cluster.ports import listen, port_owner

__all__ = [
    "Event",
    "Follower",
    "Leader",
    "PeerJoined",
    "PeerLeft",
    "PeerLost",
    "PeerMessage",
    "Refused",
    "Stranger",
    "derive_key",
    "listen",
    "port_owner",
]

HANDSHAKE_TIMEOUT = 5.0
"""Seconds a new connection has to prove that it belongs to the job."""

RETRY_DELAYS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Seconds between a follower's attempts to join; the last one repeats."""

STRANGERS_REPORTED = 64
"""Pairs of address and reason that one leader reports: neither its log nor its memory grow."""

SPARE_STRANGERS = 128
"""Connections without proof that a leader keeps, beyond one for each host; the oldest make way."""

_ACCEPTS = 64
"""Connections accepted before the others have their turn."""

_NO_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


@dataclass(frozen=True)
class PeerJoined:
    """A host proved that it belongs to the job. For a follower: it was accepted by the leader.

    Attributes:
        host: the peer's name.
        address: its IP address, as seen from here.
        local_address: this host's IP address, as seen by the peer (unless there is NAT between).
    """

    host: str
    address: str
    local_address: str


@dataclass(frozen=True)
class PeerMessage:
    """A member said something."""

    host: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class PeerLeft:
    """A member said goodbye; that its connection ends is no loss."""

    host: str


@dataclass(frozen=True)
class PeerLost:
    """A member is gone without a goodbye. ``reason`` reads well after a colon."""

    host: str
    reason: str


@dataclass(frozen=True)
class Refused:
    """To a follower: the leader, which holds the job's key, will never accept it."""

    reason: str


@dataclass(frozen=True)
class Stranger:
    """To a leader: somebody connected who is no member. Once for each address and reason."""

    address: str
    reason: str


Event = Union[PeerJoined, PeerMessage, PeerLeft, PeerLost, Refused, Stranger]
Post = Callable[[Event], None]


class _Rounds:
    """When to look after connections: a few times in each ``peer_timeout``."""

    def __init__(self, peer_timeout: float, now: float) -> None:
        self.period = min(peer_timeout / 5, 3.0)
        self.next = now + self.period
        self.away = False

    def due(self, now: float) -> bool:
        """Tell whether it is time.

        Sets ``away`` when this process itself was stopped or starved meanwhile: what it did not
        read is not its peers' silence.
        """
        if now < self.next:
            return False
        self.away = now - self.next > self.period
        self.next = now + self.period
        return True


class Leader:
    """The first host's end: listens, proves, carries, and notices who is lost.

    Nothing that a stranger does costs more than one of a bounded number of connections, which the
    next stranger takes over. For many hosts the process's soft limit of open files is raised here,
    as far as the hard limit allows; child processes inherit it.

    Args:
        listener: a listening socket, see ``listen``. It is closed by ``goodbye`` and ``close``.
        key: the job's key, see ``frames.derive_key``.
        me: this host's name.
        hosts: names of all hosts of the job.
        peer_timeout: seconds of silence after which a member is lost. It is noticed up to 3 s
            later.
        selector: the caller's selector.
        post: receives events.
        clock: monotonic seconds; the same as what ``tick`` is given.
    """

    def __init__(
        self,
        listener: socket.socket,
        key: bytes,
        me: str,
        hosts: Sequence[str],
        peer_timeout: float,
        selector: selectors.BaseSelector,
        post: Post,
        clock: Clock = time.monotonic,
    ) -> None:
        self._key = key
        self._me = me
        self._hosts = frozenset(hosts) - {me}
        self._peer_timeout = peer_timeout
        self._selector = selector
        self._post = post
        self._clock = clock
        self._rounds = _Rounds(peer_timeout, clock())
        self._strangers: Dict[Link, None] = {}
        self._strangers_limit = len(self._hosts) + SPARE_STRANGERS
        self._reported: Set[Tuple[str, str]] = set()
        self._welcomed: Dict[str, Link] = {}
        self._members: Dict[str, Link] = {}
        self._gone: Set[str] = set()
        self._leaving = False
        self._accepting = False
        self._listener = listener
        listener.setblocking(False)
        _allow_files(len(self._hosts) + self._strangers_limit + 256)
        self._accept_more(True)

    def send(self, host: str, body: Mapping[str, Any]) -> None:
        """Queue a message to one member. Nothing happens while ``host`` is none, or after goodbye.

        Raises:
            ValueError: when ``body`` cannot be carried, see ``frames.pack``.
        """
        packed = frames.pack(Kind.MESSAGE, body)
        if host in self._members and not self._leaving:
            self._members[host].say(packed)

    def broadcast(self, body: Mapping[str, Any]) -> None:
        """Queue a message to all members there are now. Serialised once; the cost is linear.

        Raises:
            ValueError: when ``body`` cannot be carried, see ``frames.pack``.
        """
        packed = frames.pack(Kind.MESSAGE, body)
        for link in () if self._leaving else self._members.values():
            link.say(packed)

    def tick(self, now: float) -> float:
        """Do what time asks for; return when to call again, in the clock's seconds."""
        if self._rounds.due(now):
            if not self._leaving:
                self._accept_more(True)
            for link in [each for each in self._strangers if now - each.opened > HANDSHAKE_TIMEOUT]:
                link.end(f"proved nothing within {HANDSHAKE_TIMEOUT:g} s")
            beat = frames.pack(Kind.BEAT)
            for link in [*self._members.values(), *self._welcomed.values()]:
                if self._rounds.away:
                    link.heard = now
                trouble = link.trouble(now, self._peer_timeout)
                if trouble:
                    link.say(frames.pack(Kind.DROPPED, {"reason": trouble}))
                    link.end(trouble)
                elif not self._leaving:
                    link.say(beat)
        return self._rounds.next

    def goodbye(self) -> None:
        """Say that nothing more follows. Whoever leaves from now on, however, is no loss."""
        if not self._leaving:
            self._leaving = True
            self._stop_listening()
            packed = frames.pack(Kind.GOODBYE)
            for link in [*self._members.values(), *self._welcomed.values()]:
                link.say(packed)

    def pending(self) -> bool:
        """Tell whether something said here may not have arrived.

        Those are bytes that the kernel did not take and, after ``goodbye``, members that have not
        answered it by closing: only that says that they read everything.
        """
        if self._leaving:
            return bool(self._members or self._welcomed)
        return any(link.unsent for link in self._members.values())

    def close(self) -> None:
        """Close everything at once. Members that got no goodbye see a loss."""
        self._leaving = True
        self._stop_listening()
        for link in [*self._members.values(), *self._welcomed.values()]:
            link.close()
        self._members.clear()
        self._welcomed.clear()

    def _stop_listening(self) -> None:
        self._accept_more(False)
        self._listener.close()
        for link in self._strangers:
            link.close()
        self._strangers.clear()

    def _accept_more(self, wanted: bool) -> None:
        if wanted and not self._accepting:
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        elif self._accepting and not wanted:
            self._selector.unregister(self._listener)
        self._accepting = wanted

    def _accept(self, mask: int) -> None:
        for _ in range(_ACCEPTS):
            if not self._accepting:
                return
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_RESOURCES and not self._make_room():
                    # The listener stays readable: wait for the next round rather than spin.
                    self._accept_more(False)
                continue
            link = Link(
                sock, address[0], self._selector, self._clock, self._take_opening, self._ended
            )
            self._strangers[link] = None
            if len(self._strangers) > self._strangers_limit:
                self._make_room()

    def _make_room(self) -> bool:
        oldest = next(iter(self._strangers), None)
        if oldest is not None:
            oldest.end("had to make way for newer connections before it proved anything")
        return oldest is not None

    def _take_opening(self, link: Link, payload: bytes) -> None:
        opening = Opening.from_bytes(payload)
        link.host, link.version = opening.host, opening.version
        mine = Opening(self._me).to_bytes()
        link.incoming, link.outgoing = frames.signers(self._key, payload, mine)
        link.takes = self._take_join
        link.put(*frames.frame(mine))

    def _take_join(self, link: Link, payload: bytes) -> None:
        try:
            kind, _ = link.hear(payload)
        except FrameError:
            raise FrameError("does not hold this job's key") from None
        _expect(kind, Kind.JOIN)
        refusal = self._refusal(link)
        if refusal:
            link.say(frames.pack(Kind.REFUSED, {"reason": refusal}))
            raise FrameError(f"was refused: {refusal}")
        # Its own earlier attempt, which it gave up, or it would be a member.
        earlier = self._welcomed.pop(link.host, None)
        if earlier is not None:
            earlier.close()
        del self._strangers[link]
        self._welcomed[link.host] = link
        link.inbox.limit = frames.FRAME_LIMIT
        link.takes = self._take_confirmation
        link.say(frames.pack(Kind.WELCOME))

    def _refusal(self, link: Link) -> str:
        if link.version != frames.VERSION:
            return (
                f"{link.host} speaks version {link.version} of the control protocol,"
                f" {self._me} version {frames.VERSION}: all hosts need the same toolkit"
            )
        if link.host not in self._hosts:
            return f"{link.host} is not another host of this job"
        if link.host in self._members:
            return f"{link.host} is taken by a live member"
        if link.host in self._gone:
            return f"{link.host} was a member before, and none comes back"
        return ""

    def _take_confirmation(self, link: Link, payload: bytes) -> None:
        _expect(link.hear(payload)[0], Kind.BEAT)
        self._members[link.host] = self._welcomed.pop(link.host)
        link.takes = self._take_frame
        self._post(PeerJoined(link.host, link.address, link.local_address))

    def _take_frame(self, link: Link, payload: bytes) -> None:
        kind, body = link.hear(payload)
        if kind is Kind.MESSAGE:
            self._post(PeerMessage(link.host, body))
        elif kind is Kind.GOODBYE:
            link.close()
            self._forget(link, PeerLeft(link.host))
        else:
            _expect(kind, Kind.BEAT)

    def _ended(self, link: Link, reason: str) -> None:
        if self._members.get(link.host) is link:
            left = PeerLeft(link.host) if self._leaving else PeerLost(link.host, reason)
            self._forget(link, left)
        elif self._welcomed.get(link.host) is link:
            del self._welcomed[link.host]
        elif link in self._strangers:
            del self._strangers[link]
            self._report(link.address, reason)

    def _forget(self, link: Link, event: Event) -> None:
        del self._members[link.host]
        self._gone.add(link.host)
        self._post(event)

    def _report(self, address: str, reason: str) -> None:
        if len(self._reported) < STRANGERS_REPORTED and (address, reason) not in self._reported:
            self._reported.add((address, reason))
            self._post(Stranger(address, reason))


class Follower:
    """Every other host's end: joins the leader, tries again until it has, and stays.

    The caller owns the deadline of joining. What is sent before is delivered once it has joined.

    Args:
        me: this host's name.
        leader: the first host's name.
        address: IP address and port of the leader's control channel.
        key: the job's key, see ``frames.derive_key``.
        peer_timeout: seconds of silence after which the leader is lost. It is noticed up to 3 s
            later.
        selector: the caller's selector.
        post: receives events.
        clock: monotonic seconds; the same as what ``tick`` is given.

    Attributes:
        obstacle: why it has not joined yet, as far as is known; reads well after the leader's name
            and a colon.
    """

    def __init__(
        self,
        me: str,
        leader: str,
        address: Tuple[str, int],
        key: bytes,
        peer_timeout: float,
        selector: selectors.BaseSelector,
        post: Post,
        clock: Clock = time.monotonic,
    ) -> None:
        self.obstacle = "not tried yet"
        self._me = me
        self._leader = leader
        self._address = address
        self._key = key
        self._peer_timeout = peer_timeout
        self._selector = selector
        self._post = post
        self._clock = clock
        self._rounds = _Rounds(peer_timeout, clock())
        self._link: Optional[Link] = None
        self._opening = b""
        self._joined = False
        self._leaving = False
        self._over = False
        self._attempts = 0
        self._next_attempt = clock()
        self._early: List[Packed] = []

    def send(self, body: Mapping[str, Any]) -> None:
        """Queue a message to the leader. Nothing happens after the end, or after goodbye.

        Raises:
            ValueError: when ``body`` cannot be carried, see ``frames.pack``; or when too much is
                waiting for the join.
        """
        packed = frames.pack(Kind.MESSAGE, body)
        if self._over or self._leaving:
            return
        if self._joined and self._link is not None:
            self._link.say(packed)
        else:
            if sum(len(early.text) for early in self._early) > QUEUE_LIMIT:
                raise ValueError(f"more than {QUEUE_LIMIT} bytes are waiting for {self._leader}")
            self._early.append(packed)

    def tick(self, now: float) -> float:
        """Do what time asks for; return when to call again, in the clock's seconds.

        That is ``math.inf`` after the end.
        """
        if self._link is None and not self._over and now >= self._next_attempt:
            self._connect()
        link = self._link
        if link is None:
            return math.inf if self._over else self._next_attempt
        if not self._joined:
            if now - link.opened >= HANDSHAKE_TIMEOUT:
                link.end(f"did not let us in within {HANDSHAKE_TIMEOUT:g} s")
                return self._next_attempt
            return link.opened + HANDSHAKE_TIMEOUT
        if self._rounds.due(now):
            if self._rounds.away:
                link.heard = now
            trouble = link.trouble(now, self._peer_timeout)
            if trouble:
                link.end(trouble)
            elif not self._leaving:
                link.say(frames.pack(Kind.BEAT))
        return self._rounds.next

    def goodbye(self) -> None:
        """End what is to be said. From then on the leader's end is no loss.

        A follower that has not joined, and has nothing to deliver, ends at once.
        """
        if not self._leaving:
            self._leaving = True
            if self._joined and self._link is not None:
                self._link.say(frames.pack(Kind.GOODBYE))
            elif not self._early:
                self.close()

    def pending(self) -> bool:
        """Tell whether something said here may not have arrived.

        Those are bytes that the kernel did not take, messages that wait for the join and, after
        ``goodbye``, everything until the leader has closed: only that says that it read all.
        """
        if self._over:
            return False
        return self._leaving or bool(self._early or (self._link and self._link.unsent))

    def close(self) -> None:
        """Close at once. A leader that got no goodbye sees a loss."""
        self._over = True
        self._early.clear()
        if self._link is not None:
            self._link.close()
            self._link = None

    def _connect(self) -> None:
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            return self._retry(f"no socket to reach it: {error.strerror}")
        sock.setblocking(False)
        code = sock.connect_ex(self._address)
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            return self._retry(f"its connection failed: {os.strerror(code)}")
        self._link = Link(
            sock, self._address[0], self._selector, self._clock, self._take_opening, self._ended
        )
        self._opening = Opening(self._me).to_bytes()
        # Until the connection is there, the kernel takes nothing; if it fails, reading tells why.
        self._link.put(*frames.frame(self._opening))

    def _retry(self, obstacle: str) -> None:
        self.obstacle = obstacle
        delay = RETRY_DELAYS[min(self._attempts, len(RETRY_DELAYS) - 1)]
        self._attempts += 1
        self._next_attempt = self._clock() + delay

    def _take_opening(self, link: Link, payload: bytes) -> None:
        opening = Opening.from_bytes(payload)
        if opening.host != self._leader:
            raise FrameError(f"calls itself {opening.host}: its port belongs to another job")
        link.outgoing, link.incoming = frames.signers(self._key, self._opening, payload)
        link.takes = self._take_welcome
        link.say(frames.pack(Kind.JOIN))

    def _take_welcome(self, link: Link, payload: bytes) -> None:
        try:
            kind, body = link.hear(payload)
        except FrameError:
            raise FrameError("does not hold this job's key") from None
        if kind is Kind.REFUSED:
            self.close()
            self._post(Refused(str(body.get("reason"))))
            return
        _expect(kind, Kind.WELCOME)
        self._joined = True
        self._rounds = _Rounds(self._peer_timeout, self._clock())
        link.inbox.limit = frames.FRAME_LIMIT
        link.takes = self._take_frame
        link.say(frames.pack(Kind.BEAT))
        for early in self._early:
            link.say(early)
        self._early.clear()
        if self._leaving:
            link.say(frames.pack(Kind.GOODBYE))
        self._post(PeerJoined(self._leader, link.address, link.local_address))

    def _take_frame(self, link: Link, payload: bytes) -> None:
        kind, body = link.hear(payload)
        if kind is Kind.MESSAGE:
            self._post(PeerMessage(self._leader, body))
        elif kind is Kind.GOODBYE:
            self.close()
            self._post(PeerLeft(self._leader))
        elif kind is Kind.DROPPED:
            link.end(f"it counts this host as lost: {body.get('reason')}")
        else:
            _expect(kind, Kind.BEAT)

    def _ended(self, link: Link, reason: str) -> None:
        self._link = None
        if not self._joined:
            if link.takes == self._take_welcome:
                reason += ", on this host's proof: their keys differ, or its port is another job's"
            self._retry(reason)
        else:
            self._over = True
            self._post(PeerLeft(self._leader) if self._leaving else PeerLost(self._leader, reason))


def _expect(kind: Kind, expected: Kind) -> None:
    if kind is not expected:
        raise FrameError(f"sent a {kind.value} frame instead of a {expected.value} frame")


def _allow_files(count: int) -> None:
    """Raise the soft limit of open files to ``count``, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
