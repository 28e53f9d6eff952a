"""Hostile input on the control channel: members stay, stay alone, and hear only what was said."""

import os
import random
import selectors
import socket
import subprocess
import sys
import time
from typing import Callable, Dict, List, Tuple

import pytest

from sagemaker_mxnet_training.cluster import frames, leader_channel
from sagemaker_mxnet_training.cluster.channel import (
    PeerJoined,
    PeerLost,
    PeerMessage,
    Stranger,
)
from sagemaker_mxnet_training.cluster.ports import listen
from tests.control import HOSTS, ControlWorld, hung_up, opening

pytestmark = pytest.mark.fuzz


@pytest.fixture
def world():
    made = ControlWorld()
    made.leader()
    made.join("algo-2")
    yield made
    made.close()


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
def test_noise_ends_its_own_connection_and_nothing_else(world, seed):
    for number, noise in enumerate(noises(random.Random(seed))):
        with socket.create_connection(world.address) as stranger:
            stranger.sendall(noise)
            stranger.shutdown(socket.SHUT_WR)
            stranger.setblocking(False)
            world.until(lambda stranger=stranger: hung_up(stranger))
        world.prove_alive("algo-2", number)
    assert world.told("algo-1", Stranger)
    assert not world.told("algo-1", PeerLost)
    assert len(world.told("algo-1", PeerJoined)) == 1
    world.join("algo-3")


class Middle:
    """A man in the middle that hands frames on, as ``meddle`` has them, on the first connection.

    ``meddle`` gets the direction (``up`` to the leader, ``down``), the frame's number in it, and
    its bytes; it returns the bytes to hand on, or raises ``Cut``.
    """

    class Cut(Exception):
        """Send this, and hang up on both sides."""

    def __init__(self, world: ControlWorld, meddle: Callable[[str, int, bytes], bytes]) -> None:
        self.world = world
        self.meddle = meddle
        self.recorded: Dict[str, bytes] = {"up": b"", "down": b""}
        self.listener = listen("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.connections = 0
        self.open: List[socket.socket] = []
        world.selector.register(self.listener, selectors.EVENT_READ, self._accept)

    def _accept(self, mask: int) -> None:
        lower, _ = self.listener.accept()
        upper = socket.create_connection(self.world.address)
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
                        self.world.selector.unregister(sock)
                        sock.close()

        self.world.selector.register(source, selectors.EVENT_READ, pass_on)

    def close(self) -> None:
        for sock in (self.listener, *self.open):
            self.world.selector.unregister(sock)
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
    world, direction, place, way
):
    """Frames 0 and 1 are the handshake's; from 2 on, messages (upwards after one heartbeat)."""
    dice, held = random.Random(f"{direction}{place}{way.__name__}"), []

    def meddle(where: str, number: int, frame: bytes) -> bytes:
        if where != direction or number < place:
            return frame
        if number == place:
            return way(dice, frame, held)
        return frame + (held.pop() if held else b"")

    middle = Middle(world, meddle)
    follower = world.follower("algo-3", address=middle.address)
    try:
        if direction == "down" or place > 2:
            world.until(lambda: len(world.told("algo-1", PeerJoined)) == 2)
        said = [{"n": number, "text": "x" * 100} for number in range(8)]
        for body in said:
            follower.send(body)
            world.channels["algo-1"].send("algo-3", body)
        if direction == "up" and place == 2:
            # The confirmation itself is hurt: to the leader, algo-3 never became a member.
            world.until(lambda: world.told("algo-3", PeerLost))
        else:
            world.until(lambda: world.told("algo-1", PeerLost) and world.told("algo-3", PeerLost))
            assert [event.host for event in world.told("algo-1", PeerLost)] == ["algo-3"]
        for host, peer in (("algo-1", "algo-3"), ("algo-3", "algo-1")):
            got = [event.body for event in world.told(host, PeerMessage) if event.host == peer]
            assert got == said[: len(got)]
            assert len(got) < len(said) or host != ("algo-1" if direction == "up" else "algo-3")
        world.prove_alive("algo-2", 1)
        assert not world.told("algo-2", PeerLost)
    finally:
        middle.close()


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("way", [flipped, misannounced, truncated, repeated, joined_by_noise])
def test_meddling_with_a_handshake_delays_it_at_the_most(world, direction, place, way):
    dice = random.Random(f"{direction}{place}{way.__name__}")

    def meddle(where: str, number: int, frame: bytes) -> bytes:
        return way(dice, frame, []) if (where, number) == (direction, place) else frame

    middle = Middle(world, meddle)
    try:
        follower = world.follower("algo-3", address=middle.address)
        world.until(
            lambda: world.told("algo-3", PeerJoined) or follower.obstacle != "not tried yet"
        )
        if not world.told("algo-3", PeerJoined):
            world.until(lambda: world.told("algo-3", PeerJoined))
            world.until(lambda: len(world.told("algo-1", PeerJoined)) == 2)
            assert middle.connections >= 2
            world.prove_alive("algo-3", 0)
            assert not world.told("algo-1", PeerLost)
        world.prove_alive("algo-2", 1)
    finally:
        middle.close()


def test_a_recorded_session_opens_no_door(world):
    middle = Middle(world, lambda direction, number, frame: frame)
    try:
        world.join("algo-3", address=middle.address)
        world.prove_alive("algo-3", 0)
        world.channels["algo-3"].goodbye()
        world.until(lambda: not world.channels["algo-3"].pending())
        before = world.told("algo-1", PeerMessage)
        for recording in middle.recorded.values():
            with socket.create_connection(world.address) as stranger:
                stranger.sendall(recording)
                stranger.setblocking(False)
                world.until(lambda stranger=stranger: hung_up(stranger))
        assert world.told("algo-1", PeerMessage) == before
        told = Stranger("127.0.0.1", "does not hold this job's key", "algo-3")
        assert told in world.events["algo-1"]
        assert len(world.told("algo-1", PeerJoined)) == 2
    finally:
        middle.close()


def test_slow_strangers_leave_after_their_time_however_they_dribble(world):
    """A byte now and then buys no time: the deadline counts from the connection's beginning."""
    dribblers: List[Tuple[socket.socket, bytes]] = []
    for _ in range(50):
        sock = socket.create_connection(world.address)
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
        return len(world.channels["algo-1"]._strangers) == 0

    world.until(lambda: len(world.channels["algo-1"]._strangers) == 50)
    world.until(all_gone)
    for sock, _ in dribblers:
        world.until(lambda sock=sock: hung_up(sock))
        sock.close()
    assert sent < 50
    assert world.told("algo-1", Stranger) == [Stranger("127.0.0.1", "proved nothing within 5 s")]
    world.prove_alive("algo-2", 1)
    world.join("algo-3")


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
def test_ten_thousand_connections_neither_lose_a_member_nor_keep_one_out(world, sources):
    """The flood goes on, after the ten thousand too, until algo-3 has joined through it."""
    attacker = subprocess.Popen(
        [sys.executable, "-c", FLOOD, str(world.address[1]), sources, opening().hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        world.until(lambda: len(world.channels["algo-1"]._strangers) > 20)
        world.join("algo-3")
        for number in range(20):
            world.prove_alive("algo-2", number)
            world.prove_alive("algo-3", number)
        attacker.stdin.close()
        world.until(lambda: attacker.poll() is not None)
        assert int(attacker.stdout.read()) >= 10000
    finally:
        attacker.kill()
        attacker.wait()
        attacker.stdout.close()
    assert not any(world.told(host, PeerLost) for host in world.events)
    assert 0 < len(world.told("algo-1", Stranger)) <= leader_channel.STRANGERS_REPORTED
    # The listener, both ends of two members, and strangers up to the limit and one being accepted.
    assert world.most_files <= 1 + 4 + leader_channel.SPARE_STRANGERS + len(HOSTS) + 1
    world.join("algo-4")
