"""Hostile input on the control channel: members stay, stay alone, and hear only what was said."""

import os
import random
import selectors
import socket
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, Tuple

import pytest

from sagemaker_mxnet_training.cluster import control, frames
from sagemaker_mxnet_training.cluster.control import (
    Follower,
    Leader,
    PeerJoined,
    PeerLost,
    PeerMessage,
    Stranger,
    derive_key,
    listen,
)

pytestmark = pytest.mark.fuzz

KEY = derive_key({"job": "fuzzed"})
HOSTS = tuple(f"algo-{number}" for number in range(1, 5))


class Party:
    """A leader and its followers in one loop, with what each was told."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.events: Dict[str, List[Any]] = {host: [] for host in HOSTS}
        listener = listen("127.0.0.1", 0)
        self.address = listener.getsockname()
        self.leader = Leader(
            listener, KEY, "algo-1", HOSTS, 60.0, self.selector, self.events["algo-1"].append
        )
        self.followers: Dict[str, Follower] = {}
        self.most_files = 0

    def enter(self, host: str, address=None) -> Follower:
        self.followers[host] = Follower(
            host, "algo-1", address or self.address, KEY, 60.0, self.selector,
            self.events[host].append,
        )  # fmt: skip
        return self.followers[host]

    def told(self, host: str, kind: type) -> List[Any]:
        return [event for event in self.events[host] if isinstance(event, kind)]

    def until(self, done: Callable[[], Any], bound: float = 60.0) -> None:
        limit = time.monotonic() + bound
        while not done():
            assert time.monotonic() < limit, f"never came: {self.events}"
            for channel in (self.leader, *self.followers.values()):
                channel.tick(time.monotonic())
            for key, mask in self.selector.select(0.01):
                key.data(mask)
            self.most_files = max(self.most_files, len(self.selector.get_map()))

    def join(self, host: str, address=None) -> None:
        self.enter(host, address)
        self.until(lambda: any(e.host == host for e in self.told("algo-1", PeerJoined)))
        self.until(lambda: self.told(host, PeerJoined))

    def prove_alive(self, host: str, number: int) -> None:
        """A message each way arrives, exactly once."""
        self.followers[host].send({"proof": number})
        self.leader.send(host, {"proof": number})
        message = {"proof": number}
        self.until(lambda: self.told("algo-1", PeerMessage).count(PeerMessage(host, message)) == 1)
        self.until(lambda: self.told(host, PeerMessage).count(PeerMessage("algo-1", message)) == 1)


@pytest.fixture
def party():
    made = Party()
    made.join("algo-2")
    yield made
    for channel in (made.leader, *made.followers.values()):
        channel.close()
    made.selector.close()


def opening(host: str = "algo-3") -> bytes:
    return b"".join(frames.frame(frames.Opening(host).to_bytes()))


def noises(dice: random.Random) -> List[bytes]:
    """What strangers say: garbage, other protocols, and this one up to where the key is needed."""
    return [
        bytes(dice.randrange(256) for _ in range(dice.randrange(1, 3000))),
        b"GET / HTTP/1.1\r\nHost: algo-1\r\n\r\n",
        b"\x00\x00\x00\x00" * 50,
        b"\xff\xff\xff\xff",
        (900).to_bytes(4, "big") + b"[" * 900,
        (900).to_bytes(4, "big") + b'{"a":' * 180,
        (65536).to_bytes(4, "big") + b"{" * 65536,
        opening()[: dice.randrange(1, 100)],
        opening() + opening(),
        opening() + (32).to_bytes(4, "big") + os.urandom(32),
        opening("algo-2") + (60).to_bytes(4, "big") + os.urandom(60),
        opening() + (5000).to_bytes(4, "big") + os.urandom(5000),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_noise_ends_its_own_connection_and_nothing_else(party, seed):
    for number, noise in enumerate(noises(random.Random(seed))):
        with socket.create_connection(party.address) as stranger:
            stranger.sendall(noise)
            stranger.shutdown(socket.SHUT_WR)
            stranger.setblocking(False)
            party.until(lambda stranger=stranger: hung_up(stranger))
        party.prove_alive("algo-2", number)
    assert party.told("algo-1", Stranger)
    assert not party.told("algo-1", PeerLost)
    assert len(party.told("algo-1", PeerJoined)) == 1
    party.join("algo-3")


def hung_up(sock: socket.socket) -> bool:
    try:
        return sock.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Middle:
    """A man in the middle that hands frames on, as ``meddle`` has them, on the first connection.

    ``meddle`` gets the direction (``up`` to the leader, ``down``), the frame's number in it, and
    its bytes; it returns the bytes to hand on, or raises ``Cut``.
    """

    class Cut(Exception):
        """Send this, and hang up on both sides."""

    def __init__(self, party: Party, meddle: Callable[[str, int, bytes], bytes]) -> None:
        self.party = party
        self.meddle = meddle
        self.recorded: Dict[str, bytes] = {"up": b"", "down": b""}
        self.listener = listen("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.connections = 0
        self.open: List[socket.socket] = []
        party.selector.register(self.listener, selectors.EVENT_READ, self._accept)

    def _accept(self, mask: int) -> None:
        lower, _ = self.listener.accept()
        upper = socket.create_connection(self.party.address)
        self.connections += 1
        self.open += [lower, upper]
        meddle = self.meddle if self.connections == 1 else lambda direction, number, frame: frame
        self._pass(lower, upper, "up", meddle)
        self._pass(upper, lower, "down", meddle)

    def _pass(self, source, target, direction, meddle) -> None:
        inbox, count = frames.Inbox(frames.FRAME_LIMIT), [0]

        def pass_on(mask: int) -> None:
            try:
                data = source.recv(65536)
                if not data:
                    raise self.Cut(b"")
                inbox.feed(data)
                taken = inbox.take()
                while taken is not None:
                    frame = b"".join(frames.frame(taken))
                    self.recorded[direction] += frame
                    count[0] += 1
                    target.sendall(meddle(direction, count[0] - 1, frame))
                    taken = inbox.take()
            except (OSError, self.Cut) as end:
                if isinstance(end, self.Cut):
                    target.sendall(end.args[0])
                for sock in (source, target):
                    if sock in self.open:
                        self.open.remove(sock)
                        self.party.selector.unregister(sock)
                        sock.close()

        self.party.selector.register(source, selectors.EVENT_READ, pass_on)

    def close(self) -> None:
        for sock in (self.listener, *self.open):
            self.party.selector.unregister(sock)
            sock.close()


def flipped(dice: random.Random, frame: bytes, held: List[bytes]) -> bytes:
    place = dice.randrange(4, len(frame))
    return frame[:place] + bytes([frame[place] ^ dice.randrange(1, 256)]) + frame[place + 1 :]


def misannounced(dice: random.Random, frame: bytes, held: List[bytes]) -> bytes:
    return dice.randrange(2**32).to_bytes(4, "big") + frame[4:]


def truncated(dice: random.Random, frame: bytes, held: List[bytes]) -> bytes:
    raise Middle.Cut(frame[: dice.randrange(len(frame))])


def repeated(dice: random.Random, frame: bytes, held: List[bytes]) -> bytes:
    return frame + frame


def swapped(dice: random.Random, frame: bytes, held: List[bytes]) -> bytes:
    held.append(frame)
    return b""


def dropped(dice: random.Random, frame: bytes, held: List[bytes]) -> bytes:
    return b""


def joined_by_noise(dice: random.Random, frame: bytes, held: List[bytes]) -> bytes:
    return frame + (40).to_bytes(4, "big") + os.urandom(40)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("place", [2, 3, 4, 6])
@pytest.mark.parametrize(
    "way", [flipped, misannounced, truncated, repeated, swapped, dropped, joined_by_noise]
)
def test_meddling_with_a_member_loses_it_alone_and_delivers_nothing_false(
    party, direction, place, way
):
    """Frames 0 and 1 are the handshake's; from 2 on, messages (upwards after one heartbeat)."""
    dice, held = random.Random(f"{direction}{place}{way.__name__}"), []

    def meddle(where: str, number: int, frame: bytes) -> bytes:
        if where != direction or number < place:
            return frame
        if number == place:
            return way(dice, frame, held)
        return frame + (held.pop() if held else b"")

    middle = Middle(party, meddle)
    follower = party.enter("algo-3", middle.address)
    try:
        if direction == "down" or place > 2:
            party.until(lambda: len(party.told("algo-1", PeerJoined)) == 2)
        said = [{"n": number, "text": "x" * 100} for number in range(8)]
        for body in said:
            follower.send(body)
            party.leader.send("algo-3", body)
        if direction == "up" and place == 2:
            # The confirmation itself is hurt: to the leader, algo-3 never became a member.
            party.until(lambda: party.told("algo-3", PeerLost))
        else:
            party.until(lambda: party.told("algo-1", PeerLost) and party.told("algo-3", PeerLost))
            assert [event.host for event in party.told("algo-1", PeerLost)] == ["algo-3"]
        for host, peer in (("algo-1", "algo-3"), ("algo-3", "algo-1")):
            got = [event.body for event in party.told(host, PeerMessage) if event.host == peer]
            assert got == said[: len(got)]
            assert len(got) < len(said) or host != ("algo-1" if direction == "up" else "algo-3")
        party.prove_alive("algo-2", 1)
        assert not party.told("algo-2", PeerLost)
    finally:
        middle.close()


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("way", [flipped, misannounced, truncated, repeated, joined_by_noise])
def test_meddling_with_a_handshake_delays_it_at_the_most(party, direction, place, way):
    dice = random.Random(f"{direction}{place}{way.__name__}")

    def meddle(where: str, number: int, frame: bytes) -> bytes:
        return way(dice, frame, []) if (where, number) == (direction, place) else frame

    middle = Middle(party, meddle)
    try:
        follower = party.enter("algo-3", middle.address)
        party.until(
            lambda: party.told("algo-3", PeerJoined) or follower.obstacle != "not tried yet"
        )
        if not party.told("algo-3", PeerJoined):
            party.until(lambda: party.told("algo-3", PeerJoined))
            party.until(lambda: len(party.told("algo-1", PeerJoined)) == 2)
            assert middle.connections >= 2
            party.prove_alive("algo-3", 0)
            assert not party.told("algo-1", PeerLost)
        party.prove_alive("algo-2", 1)
    finally:
        middle.close()


def test_a_recorded_session_opens_no_door(party):
    middle = Middle(party, lambda direction, number, frame: frame)
    try:
        party.join("algo-3", middle.address)
        party.prove_alive("algo-3", 0)
        party.followers["algo-3"].goodbye()
        party.until(lambda: not party.followers["algo-3"].pending())
        before = party.told("algo-1", PeerMessage)
        for recording in middle.recorded.values():
            with socket.create_connection(party.address) as stranger:
                stranger.sendall(recording)
                stranger.setblocking(False)
                party.until(lambda stranger=stranger: hung_up(stranger))
        assert party.told("algo-1", PeerMessage) == before
        assert Stranger("127.0.0.1", "does not hold this job's key") in party.events["algo-1"]
        assert len(party.told("algo-1", PeerJoined)) == 2
    finally:
        middle.close()


def test_slow_strangers_leave_after_their_time_however_they_dribble(party):
    """A byte now and then buys no time: the deadline counts from the connection's beginning."""
    dribblers: List[Tuple[socket.socket, bytes]] = []
    for _ in range(50):
        sock = socket.create_connection(party.address)
        sock.setblocking(False)
        dribblers.append((sock, opening()))
    sent, due = -1, 0.0

    def all_gone() -> bool:
        nonlocal sent, due
        if time.monotonic() >= due:
            due, sent = time.monotonic() + 0.3, sent + 1
            for sock, text in dribblers:
                try:
                    sock.send(text[sent : sent + 1])
                except OSError:
                    continue
        return len(party.leader._strangers) == 0

    party.until(lambda: len(party.leader._strangers) == 50)
    party.until(all_gone)
    for sock, _ in dribblers:
        party.until(lambda sock=sock: hung_up(sock))
        sock.close()
    assert sent < 50
    assert party.told("algo-1", Stranger) == [Stranger("127.0.0.1", "proved nothing within 5 s")]
    party.prove_alive("algo-2", 1)
    party.join("algo-3")


FLOOD = """
import collections, os, random, select, socket, sys
port, many, opening = int(sys.argv[1]), sys.argv[2] == "many", bytes.fromhex(sys.argv[3])
noise = [b"", os.urandom(500), opening, opening[:50], opening + os.urandom(64), b"\\0\\0\\4\\0" * 9]
held, made = collections.deque(), 0
while made < 10000 or not select.select([sys.stdin], [], [], 0)[0]:
    sock = socket.socket()
    try:
        if many:
            sock.bind((f"127.1.{random.randrange(256)}.{random.randrange(1, 255)}", 0))
        sock.settimeout(5)
        sock.connect(("127.0.0.1", port))
        sock.send(noise[made % len(noise)])
    except OSError:
        sock.close()
        continue
    made += 1
    held.append(sock)
    if len(held) > 400:
        held.popleft().close()
print(made)
"""


@pytest.mark.parametrize("sources", ["one", "many"])
def test_ten_thousand_connections_neither_lose_a_member_nor_keep_one_out(party, sources):
    """The flood goes on, after the ten thousand too, until algo-3 has joined through it."""
    attacker = subprocess.Popen(
        [sys.executable, "-c", FLOOD, str(party.address[1]), sources, opening().hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        party.until(lambda: len(party.leader._strangers) > 20)
        party.join("algo-3")
        for number in range(20):
            party.prove_alive("algo-2", number)
            party.prove_alive("algo-3", number)
        attacker.stdin.close()
        party.until(lambda: attacker.poll() is not None)
        assert int(attacker.stdout.read()) >= 10000
    finally:
        attacker.kill()
        attacker.wait()
        attacker.stdout.close()
    assert not any(party.told(host, PeerLost) for host in HOSTS)
    assert 0 < len(party.told("algo-1", Stranger)) <= control.STRANGERS_REPORTED
    # The listener, both ends of two members, and strangers up to the limit and one being accepted.
    assert party.most_files <= 1 + 4 + control.SPARE_STRANGERS + len(HOSTS) + 1
    party.join("algo-4")
