"""The control channel: how the hosts of a job prove membership, talk, and notice each other's loss.

One leader, any number of followers, one TCP connection each, small JSON objects both ways:
``leader_channel`` and ``follower_channel``. Neither side has a thread or a loop of its own: both
live in the caller's selector, where each registered file has a callable as its ``data``::

    while True:
        wake = channel.tick(time.monotonic())
        for ready, mask in selector.select(max(0.0, wake - time.monotonic())):
            ready.data(mask)

A follower joins in four frames (see ``frames``), follower first: opening, opening, ``join``,
``welcome``. Its next frame confirms the welcome, and only then does the leader call it a member: a
follower that gave up meanwhile is not taken for a lost one. A member whose connection ends without
a goodbye is lost, for good: a process of an earlier job, or one half of a healed network, must not
slip back in.

A follower whose ``join`` is not answered tries the keys of ``keys.JobKeys.without`` in turn. One
that fits is answered by ``refused``, signed with the same key: then both sides know in what they
differ. Such a peer is not a member, and nothing it says is carried.

``post`` receives the events, from within ``tick`` and the selector's callables only. It may call
any method of the channel but ``tick``.
"""

from typing import Any, Callable, Mapping, NamedTuple, Union

from sagemaker_mxnet_training.cluster.frames import FrameError, Kind

HANDSHAKE_TIMEOUT = 5.0
"""Seconds a new connection has to prove that it belongs to the job."""


class PeerJoined(NamedTuple):
    """A host proved that it belongs to the job. For a follower: it was accepted by the leader.

    Attributes:
        host: the peer's name.
        address: its IP address, as seen from here.
        local_address: this host's IP address, as seen by the peer (unless there is NAT between).
    """

    host: str
    address: str
    local_address: str


class PeerMessage(NamedTuple):
    """A member said something."""

    host: str
    body: Mapping[str, Any]


class PeerLeft(NamedTuple):
    """A member said goodbye; that its connection ends is no loss."""

    host: str


class PeerLost(NamedTuple):
    """A member is gone without a goodbye. ``reason`` reads well after a colon."""

    host: str
    reason: str


class PeerDiffers(NamedTuple):
    """A peer that is not a member shares a key that leaves a part of the job out.

    To a leader it comes each time that the host calls, to a follower each time that it is refused.

    Attributes:
        host: the name that the peer gave.
        address: its IP address, as seen from here.
        difference: what differs, as ``keys.JobKeys.without`` names it.
    """

    host: str
    address: str
    difference: str


class Refused(NamedTuple):
    """To a follower: the leader, which holds the job's key, will never accept it."""

    reason: str


class Stranger(NamedTuple):
    """To a leader: somebody connected who is no member. Once for each address and reason.

    Attributes:
        address: its IP address.
        reason: why it was turned away; reads well after a colon.
        host: the host of the job that it calls itself without a proof; empty if it does not.
    """

    address: str
    reason: str
    host: str = ""


Event = Union[PeerJoined, PeerMessage, PeerLeft, PeerLost, PeerDiffers, Refused, Stranger]
Post = Callable[[Event], None]


class Heartbeats:
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


def expect(kind: Kind, expected: Kind) -> None:
    """Raise ``FrameError`` unless a frame is of the kind that must come next."""
    if kind is not expected:
        raise FrameError(f"sent a {kind.value} frame instead of a {expected.value} frame")
