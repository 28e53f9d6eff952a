"""Every other host's end of the control channel, see ``channel``."""

import errno
import math
import os
import selectors
import socket
import time
from typing import Any, List, Mapping, Optional, Tuple

from sagemaker_mxnet_training.cluster import frames
from sagemaker_mxnet_training.cluster.channel import (
    HANDSHAKE_TIMEOUT,
    Heartbeats,
    PeerDiffers,
    PeerJoined,
    PeerLeft,
    PeerLost,
    PeerMessage,
    Post,
    Refused,
    expect,
)
from sagemaker_mxnet_training.cluster.frames import FrameError, Kind, Opening, Packed
from sagemaker_mxnet_training.cluster.keys import JobKeys
from sagemaker_mxnet_training.cluster.link import QUEUE_LIMIT, Clock, Link

RETRY_DELAYS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Seconds between a follower's attempts to join; the last one repeats."""

DIFFERENT_DELAY = 0.4
"""Seconds between attempts to join a leader that was given another job."""


class FollowerChannel:
    """Every other host's end: joins the leader, tries again until it has, and stays.

    The caller owns the deadline of joining. What is sent before is delivered once it has joined.

    Args:
        me: this host's name.
        leader: the first host's name.
        address: IP address and port of the leader's control channel.
        keys: the job's keys.
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
        keys: JobKeys,
        peer_timeout: float,
        selector: selectors.BaseSelector,
        post: Post,
        clock: Clock = time.monotonic,
    ) -> None:
        self.obstacle = "not tried yet"
        self._me = me
        self._leader = leader
        self._address = address
        self._keys = keys
        self._peer_timeout = peer_timeout
        self._selector = selector
        self._post = post
        self._clock = clock
        self._heartbeats = Heartbeats(peer_timeout, clock())
        self._link: Optional[Link] = None
        self._opening = b""
        self._attempt_keys: List[Tuple[str, bytes]] = []
        self._difference = ""
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
            self._link.send(packed)
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
        if self._heartbeats.due(now):
            if self._heartbeats.away:
                link.last_received = now
            fault = link.fault(now, self._peer_timeout)
            if fault:
                link.end(fault)
            elif not self._leaving:
                link.send(frames.pack(Kind.BEAT))
        return self._heartbeats.next

    def goodbye(self) -> None:
        """End what is to be said. From then on the leader's end is no loss.

        A follower that has not joined, and has nothing to deliver, ends at once.
        """
        if not self._leaving:
            self._leaving = True
            if self._joined and self._link is not None:
                self._link.send(frames.pack(Kind.GOODBYE))
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
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
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
        self._link.send_unsigned(*frames.frame(self._opening))

    def _retry(self, obstacle: str, delay: Optional[float] = None) -> None:
        self.obstacle = obstacle
        if delay is None:
            delay = RETRY_DELAYS[min(self._attempts, len(RETRY_DELAYS) - 1)]
            self._attempts += 1
            self._attempt_keys.clear()
        self._next_attempt = self._clock() + delay

    def _take_opening(self, link: Link, payload: bytes) -> None:
        opening = Opening.from_bytes(payload)
        if opening.host != self._leader:
            raise FrameError(f"calls itself {opening.host}: its port belongs to another job")
        if not self._attempt_keys:
            self._attempt_keys = [("", self._keys.full), *self._keys.without.items()]
        self._difference, key = self._attempt_keys.pop(0)
        link.outgoing, link.incoming = frames.signers(key, self._opening, payload)
        link.on_payload = self._take_welcome
        link.send(frames.pack(Kind.JOIN))

    def _take_welcome(self, link: Link, payload: bytes) -> None:
        try:
            kind, body = link.receive(payload)
        except FrameError:
            raise FrameError("does not hold this job's key") from None
        if self._difference:
            # Nobody is a member by a key that leaves a part of the job out.
            expect(kind, Kind.REFUSED)
            link.close()
            self._link = None
            self._attempt_keys.clear()
            self._retry(f"was given another job: different {self._difference}", DIFFERENT_DELAY)
            self._post(PeerDiffers(self._leader, link.address, self._difference))
            return
        if kind is Kind.REFUSED:
            self.close()
            self._post(Refused(str(body.get("reason"))))
            return
        expect(kind, Kind.WELCOME)
        self._joined = True
        self._heartbeats = Heartbeats(self._peer_timeout, self._clock())
        link.inbox.limit = frames.FRAME_LIMIT
        link.on_payload = self._take_frame
        link.send(frames.pack(Kind.BEAT))
        for early in self._early:
            link.send(early)
        self._early.clear()
        if self._leaving:
            link.send(frames.pack(Kind.GOODBYE))
        self._post(PeerJoined(self._leader, link.address, link.local_address))

    def _take_frame(self, link: Link, payload: bytes) -> None:
        kind, body = link.receive(payload)
        if kind is Kind.MESSAGE:
            self._post(PeerMessage(self._leader, body))
        elif kind is Kind.GOODBYE:
            self.close()
            self._post(PeerLeft(self._leader))
        elif kind is Kind.DROPPED:
            link.end(f"it counts this host as lost: {body.get('reason')}")
        else:
            expect(kind, Kind.BEAT)

    def _ended(self, link: Link, reason: str) -> None:
        self._link = None
        if self._joined:
            self._over = True
            self._post(PeerLeft(self._leader) if self._leaving else PeerLost(self._leader, reason))
        elif link.on_payload == self._take_welcome:
            # It may share one of the other keys: that is known before the next full attempt.
            reason += ", on this host's proof: their keys differ, or its port is another job's"
            self._retry(reason, RETRY_DELAYS[0] if self._attempt_keys else None)
        else:
            self._retry(reason)
