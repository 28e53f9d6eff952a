"""The first host's end of the control channel, see ``channel``."""

import errno
import resource
import selectors
import socket
import time
from typing import Any, Dict, Mapping, Sequence, Set, Tuple

from sagemaker_mxnet_training.cluster import frames
from sagemaker_mxnet_training.cluster.channel import (
    HANDSHAKE_TIMEOUT,
    Event,
    Heartbeats,
    PeerDiffers,
    PeerJoined,
    PeerLeft,
    PeerLost,
    PeerMessage,
    Post,
    Stranger,
    expect,
)
from sagemaker_mxnet_training.cluster.frames import FrameError, Kind, Opening
from sagemaker_mxnet_training.cluster.keys import JobKeys
from sagemaker_mxnet_training.cluster.link import Clock, Link

STRANGERS_REPORTED = 64
"""Pairs of address and reason that one leader reports: neither its log nor its memory grow."""

SPARE_STRANGERS = 128
"""Connections without proof that a leader keeps, beyond one for each host; the oldest make way."""

_ACCEPTS = 64
"""Connections accepted before the others have their turn."""

_NO_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class LeaderChannel:
    """The first host's end: listens, proves, carries, and notices who is lost.

    Nothing that a stranger does costs more than one of a bounded number of connections, which the
    next stranger takes over. For many hosts the process's soft limit of open files is raised here,
    as far as the hard limit allows; child processes inherit it.

    Args:
        listener: a listening socket, see ``listen``. It is closed by ``goodbye`` and ``close``.
        keys: the job's keys.
        me: this host's name.
        hosts: names of all hosts of the job.
        peer_timeout: seconds of silence after which a member is lost. It is noticed up to 3 s
            later.
        selector: the caller's selector.
        post: receives events.
        clock: monotonic seconds; the same as what ``tick`` is given.
        rejoin: whether a member that was lost may come back.
    """

    def __init__(
        self,
        listener: socket.socket,
        keys: JobKeys,
        me: str,
        hosts: Sequence[str],
        peer_timeout: float,
        selector: selectors.BaseSelector,
        post: Post,
        clock: Clock = time.monotonic,
        rejoin: bool = False,
    ) -> None:
        self._keys = keys
        self._me = me
        self._rejoin = rejoin
        self._hosts = frozenset(hosts) - {me}
        self._peer_timeout = peer_timeout
        self._selector = selector
        self._post = post
        self._clock = clock
        self._heartbeats = Heartbeats(peer_timeout, clock())
        self._strangers: Dict[Link, None] = {}
        self._strangers_limit = len(self._hosts) + SPARE_STRANGERS
        self._reported: Set[Tuple[str, str]] = set()
        self._welcomed: Dict[str, Link] = {}
        self._members: Dict[str, Link] = {}
        self._gone: Set[str] = set()
        self._leaving = self._accepting = False
        self._listener = listener
        listener.setblocking(False)
        _allow_files(len(self._hosts) + self._strangers_limit + 256)
        self._accept_more(True)

    def send(self, host: str, body: Mapping[str, Any]) -> None:
        """Queue a message to one member. Nothing happens for another host, or after goodbye.

        Raises:
            ValueError: when ``body`` cannot be carried, see ``frames.pack``.
        """
        packed = frames.pack(Kind.MESSAGE, body)
        if host in self._members and not self._leaving:
            self._members[host].send(packed)

    def broadcast(self, body: Mapping[str, Any]) -> None:
        """Queue a message to all members there are now, as ``send`` does; it is serialised once."""
        packed = frames.pack(Kind.MESSAGE, body)
        for link in () if self._leaving else self._members.values():
            link.send(packed)

    def tick(self, now: float) -> float:
        """Do what time asks for; return when to call again, in the clock's seconds."""
        if self._heartbeats.due(now):
            if not self._leaving:
                self._accept_more(True)
            for link in [each for each in self._strangers if now - each.opened > HANDSHAKE_TIMEOUT]:
                link.end(f"proved nothing within {HANDSHAKE_TIMEOUT:g} s")
            beat = frames.pack(Kind.BEAT)
            for link in [*self._members.values(), *self._welcomed.values()]:
                if self._heartbeats.away:
                    link.last_received = now
                fault = link.fault(now, self._peer_timeout)
                if fault:
                    link.send(frames.pack(Kind.DROPPED, {"reason": fault}))
                    link.end(fault)
                elif not self._leaving:
                    link.send(beat)
        return self._heartbeats.next

    def goodbye(self) -> None:
        """Say that nothing more follows. Whoever leaves from now on, however, is no loss."""
        if not self._leaving:
            self._leaving = True
            self._stop_listening()
            packed = frames.pack(Kind.GOODBYE)
            for link in [*self._members.values(), *self._welcomed.values()]:
                link.send(packed)

    def pending(self) -> bool:
        """Tell whether something said here may not have arrived.

        Those are bytes that the kernel did not take and, after ``goodbye``, members that have not
        answered it by closing: only that says that they read everything.
        """
        waiting = self._members or self._welcomed
        return bool(waiting) if self._leaving else any(m.unsent for m in self._members.values())

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
            caller = (sock, address[0], self._selector, self._clock)
            self._strangers[Link(*caller, self._take_opening, self._ended)] = None
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
        link.openings = (payload, mine)
        link.incoming, link.outgoing = frames.signers(self._keys.full, *link.openings)
        link.on_payload = self._take_join
        link.send_unsigned(*frames.frame(mine))

    def _take_join(self, link: Link, payload: bytes) -> None:
        try:
            kind, _ = link.receive(payload)
        except FrameError:
            raise FrameError(self._compare(link, payload)) from None
        expect(kind, Kind.JOIN)
        refusal = self._refusal(link)
        if refusal:
            link.send(frames.pack(Kind.REFUSED, {"reason": refusal}))
            raise FrameError(f"was refused: {refusal}")
        if link.host in self._members:
            self._members[link.host].end("it was started again")
        # Its own earlier attempt, which it gave up, or it would be a member.
        earlier = self._welcomed.pop(link.host, None)
        if earlier is not None:
            earlier.close()
        del self._strangers[link]
        self._welcomed[link.host] = link
        link.inbox.limit = frames.FRAME_LIMIT
        link.on_payload = self._take_confirmation
        link.send(frames.pack(Kind.WELCOME))

    def _compare(self, link: Link, payload: bytes) -> str:
        """Return why a peer without the job's key is turned away; answer it if it shares a part."""
        expected = link.host in self._hosts - self._gone and link.host not in self._members
        claim = f"calls itself {link.host} but " if expected else ""
        for difference, key in self._keys.without.items():
            link.incoming, link.outgoing = frames.signers(key, *link.openings)
            try:
                expect(link.receive(payload)[0], Kind.JOIN)
            except FrameError:
                continue
            link.send(frames.pack(Kind.REFUSED))
            if expected:
                self._post(PeerDiffers(link.host, link.address, difference))
            return f"{claim}was given another job: different {difference}"
        return f"{claim}does not hold this job's key"

    def _refusal(self, link: Link) -> str:
        if link.version != frames.VERSION:
            return _other_version(link.host, link.version, self._me)
        if link.host not in self._hosts:
            return f"{link.host} is not another host of this job"
        if link.host in self._members and not self._rejoin:
            return f"{link.host} is taken by a live member"
        if link.host in self._gone:
            return f"{link.host} was a member before, and none comes back"
        return ""

    def _take_confirmation(self, link: Link, payload: bytes) -> None:
        expect(link.receive(payload)[0], Kind.BEAT)
        self._members[link.host] = self._welcomed.pop(link.host)
        link.on_payload = self._take_frame
        self._post(PeerJoined(link.host, link.address, link.local_address))

    def _take_frame(self, link: Link, payload: bytes) -> None:
        kind, body = link.receive(payload)
        if kind is Kind.MESSAGE:
            self._post(PeerMessage(link.host, body))
        elif kind is Kind.GOODBYE:
            link.close()
            self._forget(link, PeerLeft(link.host))
        else:
            expect(kind, Kind.BEAT)

    def _ended(self, link: Link, reason: str) -> None:
        if self._members.get(link.host) is link:
            left = PeerLeft(link.host) if self._leaving else PeerLost(link.host, reason)
            self._forget(link, left)
        elif self._welcomed.get(link.host) is link:
            del self._welcomed[link.host]
        elif link in self._strangers:
            del self._strangers[link]
            self._report(link, reason)

    def _forget(self, link: Link, event: Event) -> None:
        del self._members[link.host]
        self._gone |= set() if self._rejoin else {link.host}
        self._post(event)

    def _report(self, link: Link, reason: str) -> None:
        seen = (link.address, reason)
        if len(self._reported) < STRANGERS_REPORTED and seen not in self._reported:
            self._reported.add(seen)
            self._post(Stranger(*seen, link.host if link.host in self._hosts else ""))


def _other_version(host: str, version: int, me: str) -> str:
    return (
        f"{host} speaks version {version} of the control protocol,"
        f" {me} version {frames.VERSION}: all hosts need the same toolkit"
    )


def _allow_files(count: int) -> None:
    """Raise the soft limit of open files to ``count``, as far as the hard one allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
