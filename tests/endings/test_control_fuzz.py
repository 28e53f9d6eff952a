"""Hostile input on the control channel: members stay connected, and no one else joins."""

import os
import random
import selectors
import socket
import subprocess
import sys
import time
from typing import Callable, Dict, List, Tuple

import pytest

from sagemaker_mxnet_toolkit.listening import listen
from sagemaker_mxnet_training.control import members, wire
from sagemaker_mxnet_training.control.handshake import Join
from tests.support.control_world import HOSTS, ControlWorld, hello, hung_up

pytestmark = pytest.mark.fuzz


@pytest.fixture
def world():
    made = ControlWorld()
    made.leader()
    made.join("algo-2")
    yield made
    made.close()


def noises(dice: random.Random) -> List[bytes]:
    """Unauthenticated input: garbage, other protocols, and this one up to the key."""
    return [
        bytes(dice.randrange(256) for _ in range(dice.randrange(1, 3000))),
        b"GET / HTTP/1.1\r\nHost: algo-1\r\n\r\n",
        b"\x00\x00\x00\x00" * 50,
        b"\xff\xff\xff\xff",
        (900).to_bytes(4, "big") + b"[" * 900,
        (900).to_bytes(4, "big") + b'{"a":' * 180,
        (65536).to_bytes(4, "big") + b"{" * 65536,
        hello()[: dice.randrange(1, 100)],
        hello() + hello(),
        hello() + (32).to_bytes(4, "big") + os.urandom(32),
        hello("algo-2") + wire.encode(Join({}, os.urandom(32).hex())),
        hello("algo-3") + wire.encode(Join({"lists of hosts": "x"}, "\ud800")),
        hello() + (5000).to_bytes(4, "big") + os.urandom(5000),
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
    assert world.strangers()
    assert not world.called("algo-1", "lost")
    assert not world.called("algo-1", "disagreement")
    assert len(world.called("algo-1", "joined")) == 1
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
        self.leader = world.address
        self.connections = 0
        self.open: List[socket.socket] = []
        world.selector.register(self.listener, selectors.EVENT_READ, self._accept)

    def _accept(self, mask: int) -> None:
        lower, _ = self.listener.accept()
        upper = socket.create_connection(self.leader)
        self.connections += 1
        self.open += [lower, upper]
        meddle = self.meddle if self.connections == 1 else lambda direction, number, frame: frame
        self._pass(lower, upper, "up", meddle)
        self._pass(upper, lower, "down", meddle)

    def _pass(self, source, target, direction, meddle) -> None:
        inbox, count = wire.Inbox(wire.FRAME_LIMIT), [0]

        def pass_on(mask: int) -> None:
            try:
                data = source.recv(65536)
                if not data:
                    raise self.Cut(b"")
                inbox.feed(data)
                taken = inbox.take()
                while taken is not None:
                    frame = wire.frame(taken)
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


def flipped(dice: random.Random, frame: bytes) -> bytes:
    place = dice.randrange(4, len(frame))
    return frame[:place] + bytes([frame[place] ^ dice.randrange(1, 256)]) + frame[place + 1 :]


def misannounced(dice: random.Random, frame: bytes) -> bytes:
    return dice.randrange(2**32).to_bytes(4, "big") + frame[4:]


def truncated(dice: random.Random, frame: bytes) -> bytes:
    raise Middle.Cut(frame[: dice.randrange(len(frame))])


def repeated(dice: random.Random, frame: bytes) -> bytes:
    return frame + frame


def joined_by_noise(dice: random.Random, frame: bytes) -> bytes:
    return frame + (40).to_bytes(4, "big") + os.urandom(40)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("way", [flipped, misannounced, truncated, repeated, joined_by_noise])
def test_meddling_with_a_handshake_delays_it_at_the_most(world, direction, place, way):
    dice = random.Random(f"{direction}{place}{way.__name__}")

    def meddle(where: str, number: int, frame: bytes) -> bytes:
        return way(dice, frame) if (where, number) == (direction, place) else frame

    middle = Middle(world, meddle)
    try:
        own, world.address = world.address, middle.address
        follower = world.follower("algo-3")
        world.address = own
        world.until(lambda: world.called("algo-3", "joined") or follower._attempts)
        if not world.called("algo-3", "joined"):
            world.until_called("algo-3", "joined")
            world.until_called("algo-1", "joined", 2)
            assert middle.connections >= 2
            world.prove_alive("algo-3", 0)
            assert not world.called("algo-1", "lost")
        world.prove_alive("algo-2", 1)
    finally:
        middle.close()


def test_a_recorded_session_opens_no_door(world):
    middle = Middle(world, lambda direction, number, frame: frame)
    try:
        world.join("algo-3", address=middle.address)
        world.prove_alive("algo-3", 0)
        world.ends["algo-3"].goodbye()
        world.until(lambda: not world.ends["algo-3"].pending())
        before = world.called("algo-1", "report")
        for recording in middle.recorded.values():
            with socket.create_connection(world.address) as stranger:
                stranger.sendall(recording)
                stranger.setblocking(False)
                world.until(lambda stranger=stranger: hung_up(stranger))
        assert world.called("algo-1", "report") == before
        assert "failed to authenticate with this job's key" in world.strangers()
        assert len(world.called("algo-1", "joined")) == 2
    finally:
        middle.close()


def test_slow_unauthenticated_connections_time_out(world):
    """A byte now and then buys no time: the deadline counts from the connection's beginning."""
    dribblers: List[Tuple[socket.socket, bytes]] = []
    for _ in range(50):
        sock = socket.create_connection(world.address)
        sock.setblocking(False)
        dribblers.append((sock, hello()))
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
        return len(world.ends["algo-1"]._acceptor.pending) == 0

    world.until(lambda: len(world.ends["algo-1"]._acceptor.pending) == 50)
    world.until(all_gone)
    for sock, _ in dribblers:
        world.until(lambda sock=sock: hung_up(sock))
        sock.close()
    assert sent < 50
    assert world.strangers() == ["did not authenticate within 5 s"]
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
def test_flood_of_connections_neither_loses_nor_keeps_out(world, sources):
    """The flood continues after the ten thousand until algo-3 has joined."""
    attacker = subprocess.Popen(
        [sys.executable, "-c", FLOOD, str(world.address[1]), sources, hello().hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        world.until(lambda: len(world.ends["algo-1"]._acceptor.pending) > 20)
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
    assert not any(world.called(host, "lost") for host in world.calls)
    assert 0 < len(world.strangers()) <= members.LOGGED_REJECTIONS
    # The listener, both ends of two members, and strangers up to the limit and one being accepted.
    assert world.most_files <= 1 + 4 + members.SPARE_CONNECTIONS + HOSTS + 1
    world.join("algo-4")
