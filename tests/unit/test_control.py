"""The control channel over real loopback sockets: membership, messages, goodbyes and losses."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, List

import pytest

from sagemaker_mxnet_training.cluster import frames, link
from sagemaker_mxnet_training.cluster.channel import (
    PeerDiffers,
    PeerJoined,
    PeerLeft,
    PeerLost,
    PeerMessage,
    Refused,
    Stranger,
)
from sagemaker_mxnet_training.cluster.keys import JobKeys
from sagemaker_mxnet_training.cluster.ports import listen
from tests.control import KEYS, ControlWorld, keys

SOURCES = os.path.dirname(os.path.dirname(os.path.dirname(link.__file__)))


@pytest.fixture
def world():
    made = ControlWorld()
    yield made
    made.close()


def test_followers_join_and_both_sides_learn_the_addresses(world):
    world.leader()
    world.join("algo-2", "algo-3")
    assert {event.host for event in world.told("algo-1", PeerJoined)} == {"algo-2", "algo-3"}
    for name in ("algo-1", "algo-2", "algo-3"):
        for event in world.told(name, PeerJoined):
            assert (event.address, event.local_address) == ("127.0.0.1", "127.0.0.1")
    assert not world.told("algo-1", Stranger)


def test_messages_arrive_in_order_both_ways_and_only_where_they_belong(world):
    leader = world.leader()
    world.join("algo-2", "algo-3")
    for number in range(50):
        world.channels["algo-2"].send({"n": number})
        leader.send("algo-3", {"n": number})
    leader.broadcast({"all": "ünï \ud800 \x00"})
    world.until(lambda: len(world.told("algo-1", PeerMessage)) == 50)
    world.until(lambda: len(world.told("algo-3", PeerMessage)) == 51)
    world.until(lambda: world.told("algo-2", PeerMessage))
    assert [m.body["n"] for m in world.told("algo-1", PeerMessage)] == list(range(50))
    assert {m.host for m in world.told("algo-1", PeerMessage)} == {"algo-2"}
    assert [m.body["n"] for m in world.told("algo-3", PeerMessage)[:50]] == list(range(50))
    assert world.told("algo-2", PeerMessage) == [PeerMessage("algo-1", {"all": "ünï \ud800 \x00"})]


def test_a_follower_waits_for_a_leader_that_comes_later(world):
    with listen("127.0.0.1", 0) as probe:
        world.address = probe.getsockname()
    follower = world.follower("algo-2")
    world.until(lambda: "refused" in follower.obstacle)
    world.leader()
    world.until(lambda: world.told("algo-1", PeerJoined) and world.told("algo-2", PeerJoined))


def test_what_is_said_before_joining_arrives_after_it_and_before_the_goodbye(world):
    world.leader()
    follower = world.follower("algo-2")
    follower.send({"failed": "early"})
    follower.goodbye()
    follower.send({"too": "late"})
    assert follower.pending()
    world.until(lambda: world.told("algo-1", PeerLeft))
    assert [type(event) for event in world.events["algo-1"]] == [PeerJoined, PeerMessage, PeerLeft]
    world.until(lambda: not follower.pending())
    assert not world.told("algo-2", PeerLost)


def test_a_goodbye_before_joining_with_nothing_to_say_ends_at_once(world):
    follower = world.follower("algo-2")
    follower.goodbye()
    assert not follower.pending()
    assert follower.tick(time.monotonic()) == float("inf")


def test_an_event_may_be_answered_from_within(world):
    leader = world.leader(
        post=lambda event: (
            leader.send(event.host, {"hello": event.host})
            if isinstance(event, PeerJoined)
            else None
        )
    )
    follower = world.follower(
        "algo-2",
        post=lambda event: (
            follower.send({"first": True}) if isinstance(event, PeerJoined) else follower.goodbye()
        ),
    )
    world.until(lambda: world.told("algo-1", PeerLeft) and not follower.pending())
    assert world.told("algo-1", PeerMessage) == [PeerMessage("algo-2", {"first": True})]
    assert world.told("algo-2", PeerMessage) == [PeerMessage("algo-1", {"hello": "algo-2"})]


def test_closing_the_leader_from_within_a_loss_is_safe(world):
    leader = world.leader(
        post=lambda event: leader.close() if isinstance(event, PeerLost) else None
    )
    world.join("algo-2", "algo-3")
    world.channels["algo-2"].close()
    world.until(lambda: world.told("algo-3", PeerLost))
    assert [event.host for event in world.told("algo-1", PeerLost)] == ["algo-2"]


def test_after_a_followers_goodbye_its_end_is_no_loss(world):
    world.leader()
    world.join("algo-2", "algo-3")
    world.channels["algo-2"].goodbye()
    world.until(lambda: not world.channels["algo-2"].pending())
    assert world.told("algo-1", PeerLeft) == [PeerLeft("algo-2")]
    assert not world.told("algo-1", PeerLost)
    assert not world.told("algo-3", PeerLost)


def test_after_the_leaders_goodbye_nobody_is_lost_and_all_have_read_everything(world):
    leader = world.leader()
    world.join("algo-2", "algo-3")
    leader.broadcast({"end": True})
    leader.goodbye()
    leader.broadcast({"too": "late"})
    assert leader.pending()
    world.until(lambda: not leader.pending())
    for host in ("algo-2", "algo-3"):
        assert world.told(host, PeerMessage) == [PeerMessage("algo-1", {"end": True})]
        assert world.told(host, PeerLeft) == [PeerLeft("algo-1")]
        assert not world.told(host, PeerLost)
    assert not world.told("algo-1", PeerLost)


def test_a_closed_connection_without_a_goodbye_is_a_loss(world):
    world.leader()
    world.join("algo-2", "algo-3")
    world.channels["algo-2"].close()
    world.until(lambda: world.told("algo-1", PeerLost))
    assert world.told("algo-1", PeerLost) == [
        PeerLost("algo-2", "its connection closed without a goodbye")
    ]
    world.channels["algo-1"].close()
    world.until(lambda: world.told("algo-3", PeerLost))
    assert "closed without a goodbye" in world.told("algo-3", PeerLost)[0].reason


def test_a_killed_process_is_a_loss_even_if_it_had_something_to_read(world):
    """The kernel resets the connection then, instead of ending it."""
    leader = world.leader()
    program = (
        "import selectors, sys, time\n"
        "from sagemaker_mxnet_training.cluster.follower_channel import FollowerChannel\n"
        "from sagemaker_mxnet_training.cluster.keys import JobKeys\n"
        "events = []\n"
        "selector = selectors.DefaultSelector()\n"
        "address = ('127.0.0.1', int(sys.argv[1]))\n"
        "keys = JobKeys(bytes.fromhex(sys.argv[2]), {})\n"
        "follower = FollowerChannel('algo-2', 'algo-1', address, keys, 60.0,\n"
        "                    selector, events.append)\n"
        "while not events:\n"
        "    follower.tick(time.monotonic())\n"
        "    for key, mask in selector.select(0.1):\n"
        "        key.data(mask)\n"
        "print('joined', flush=True)\n"
        "sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(world.address[1]), KEYS.full.hex()],
        env={"PYTHONPATH": SOURCES},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        world.until(lambda: world.told("algo-1", PeerJoined))
        assert child.stdout.readline() == b"joined\n"
        leader.broadcast({"unread": "x" * 1000})
        child.send_signal(signal.SIGKILL)
        child.wait()
        world.until(lambda: world.told("algo-1", PeerLost))
    finally:
        child.kill()
        child.communicate()
    assert world.told("algo-1", PeerLost) == [
        PeerLost("algo-2", "its connection closed without a goodbye")
    ]


def test_silence_is_a_loss_and_the_silent_host_is_told_so(world):
    world.leader(timeout=15.0)
    world.join("algo-2", "algo-3")
    world.frozen.append("algo-2")
    world.skip(14.0, ["algo-1", "algo-3"])
    assert not world.told("algo-1", PeerLost)
    world.skip(5.0, ["algo-1", "algo-3"])
    assert world.told("algo-1", PeerLost) == [PeerLost("algo-2", "silent for 15 s")]
    assert not world.told("algo-3", PeerLost)
    world.frozen.clear()
    world.until(lambda: world.told("algo-2", PeerLost))
    assert world.told("algo-2", PeerLost) == [
        PeerLost("algo-1", "it counts this host as lost: silent for 15 s")
    ]


def test_a_silent_leader_is_lost(world):
    world.leader()
    world.follower("algo-2", timeout=15.0)
    world.until(lambda: world.told("algo-1", PeerJoined))
    world.frozen.append("algo-1")
    world.skip(19.0, ["algo-2"])
    assert world.told("algo-2", PeerLost) == [PeerLost("algo-1", "silent for 15 s")]


def test_heartbeats_keep_quiet_hosts_for_as_long_as_it_takes(world):
    world.leader(timeout=15.0)
    world.follower("algo-2", timeout=15.0)
    world.until(lambda: world.told("algo-1", PeerJoined))
    world.skip(120.0)
    assert not world.told("algo-1", PeerLost)
    assert not world.told("algo-2", PeerLost)


def test_a_leader_that_was_stopped_itself_takes_nobody_for_silent(world):
    """After SIGCONT its clock has moved on, and it has not read what the others sent meanwhile."""
    world.leader(timeout=15.0)
    world.join("algo-2", "algo-3")
    world.clocks["algo-1"].skipped += 60.0
    world.channels["algo-1"].tick(world.clocks["algo-1"]())
    assert not world.told("algo-1", PeerLost)
    world.frozen.extend(["algo-2", "algo-3"])
    world.skip(19.0, ["algo-1"])
    assert {event.host for event in world.told("algo-1", PeerLost)} == {"algo-2", "algo-3"}


def test_a_lost_host_does_not_come_back(world):
    world.leader()
    world.join("algo-2", "algo-3")
    world.channels["algo-2"].close()
    world.until(lambda: world.told("algo-1", PeerLost))
    world.follower("algo-2", label="ghost")
    world.until(lambda: world.told("ghost", Refused))
    assert "was a member before" in world.told("ghost", Refused)[0].reason
    assert len(world.told("algo-1", PeerJoined)) == 2


def test_a_name_is_taken_while_its_host_lives(world):
    world.leader()
    world.join("algo-2")
    world.follower("algo-2", label="double")
    world.until(lambda: world.told("double", Refused))
    assert "taken by a live member" in world.told("double", Refused)[0].reason
    assert not world.told("algo-1", PeerLost)
    assert [s.reason for s in world.told("algo-1", Stranger)] == [
        "was refused: algo-2 is taken by a live member"
    ]
    world.channels["algo-2"].send({"still": "here"})
    world.until(lambda: world.told("algo-1", PeerMessage))


def test_a_host_that_may_come_back_takes_its_own_place(world):
    """Its machine may have been lost, which nobody sees before ``peer_timeout``."""
    world.leader(rejoin=True)
    world.join("algo-2", "algo-3")
    world.follower("algo-2", label="again")
    world.until(lambda: len(world.told("algo-1", PeerJoined)) == 3)
    lost = [(event.host, event.reason) for event in world.told("algo-1", PeerLost)]
    assert lost == [("algo-2", "it was started again")]
    world.channels["algo-1"].send("algo-2", {"good": "day"})
    world.until(lambda: world.told("again", PeerMessage))
    world.channels["again"].close()
    world.until(lambda: len(world.told("algo-1", PeerLost)) == 2)


@pytest.mark.parametrize("name", ["algo-9", "algo-1"])
def test_a_host_of_another_name_is_refused(world, name):
    world.leader()
    world.follower(name, label="other")
    world.until(lambda: world.told("other", Refused))
    assert world.told("other", Refused) == [Refused(f"{name} is not another host of this job")]
    assert world.channels["other"].tick(time.monotonic()) == float("inf")


def test_another_version_is_refused_in_words(world, monkeypatch):
    world.leader()
    follower = world.follower("algo-2")
    genuine = frames.Opening.to_bytes

    def newer(opening: frames.Opening) -> bytes:
        return genuine(frames.Opening(opening.host, 7) if opening.host == "algo-2" else opening)

    monkeypatch.setattr(frames.Opening, "to_bytes", newer)
    world.until(lambda: world.told("algo-2", Refused))
    reason = world.told("algo-2", Refused)[0].reason
    assert "algo-2 speaks version 7" in reason
    assert "algo-1 version 1" in reason
    assert world.told("algo-1", Stranger)[0].reason == f"was refused: {reason}"
    assert not follower.pending()


def test_a_member_of_another_job_is_a_stranger_once_and_goes_on_trying(world):
    world.leader()
    other = world.follower("algo-2", keys=keys(job="two"), label="other")
    world.until(lambda: other._attempts >= 3)
    assert world.told("algo-1", Stranger) == [
        Stranger("127.0.0.1", "calls itself algo-2 but does not hold this job's key", "algo-2")
    ]
    assert "their keys differ" in other.obstacle
    assert not world.events["other"]
    world.join("algo-2", "algo-3")


def apart(full: str, *rest: str) -> JobKeys:
    """Return keys of a host that shares some with others: those that leave out as much."""
    without = {part: keys(without=part).full for part in rest}
    return JobKeys(keys(job=full).full, without)


def test_hosts_that_differ_in_one_part_both_learn_in_which(world):
    world.leader(keys=apart("one", "hosts", "hyperparameters"))
    other = apart("two", "hyperparameters")
    other.without["hosts"] = keys(without="hosts", another=True).full
    world.follower("algo-2", keys=other)
    world.until(lambda: len(world.told("algo-2", PeerDiffers)) >= 2)
    for host, peer in (("algo-1", "algo-2"), ("algo-2", "algo-1")):
        assert set(world.told(host, PeerDiffers)) == {
            PeerDiffers(peer, "127.0.0.1", "hyperparameters")
        }
    reasons = {event.reason for event in world.told("algo-1", Stranger)}
    assert "calls itself algo-2 but was given another job: different hyperparameters" in reasons
    assert "different hyperparameters" in world.channels["algo-2"].obstacle
    assert not world.told("algo-1", PeerJoined)
    world.channels.pop("algo-2").close()
    world.follower("algo-2", keys=apart("one"), label="right")
    world.until(lambda: world.told("algo-1", PeerJoined) and world.told("right", PeerJoined))


def test_a_member_or_a_host_of_no_name_that_is_missing_is_never_called_different(world):
    """A stranger that knows a part of the job can say nothing about a host that is in it."""
    world.leader(keys=apart("one", "hyperparameters"))
    world.follower("algo-2", keys=apart("one", "hyperparameters"))
    world.until(lambda: world.told("algo-1", PeerJoined) and world.told("algo-2", PeerJoined))
    for name in ("algo-2", "algo-9"):
        label = f"stranger {name}"
        world.follower(name, keys=apart("two", "hyperparameters"), label=label)
        world.until(lambda label=label: world.told(label, PeerDiffers))
    assert not world.told("algo-1", PeerDiffers)
    assert not world.told("algo-1", PeerLost)


def test_a_key_that_leaves_something_out_makes_no_member(world):
    """Not even for an impostor of a leader who answers it with a welcome."""
    shared = apart("one", "hyperparameters")
    forged = JobKeys(shared.without["hyperparameters"], {})
    world.leader(keys=forged)
    other = world.follower("algo-2", keys=apart("two", "hyperparameters"))
    world.until(lambda: other._attempts >= 2)
    assert not world.told("algo-2", PeerJoined)
    assert not world.told("algo-2", PeerDiffers)
    assert not world.told("algo-1", PeerJoined)


def test_a_follower_trusts_no_leader_without_the_key(world):
    """An impostor that goes through the motions with another key convinces nobody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        world.address = server.getsockname()
        follower = world.follower("algo-2")
        follower.tick(time.monotonic())
        sock, _ = server.accept()
        with sock:
            sock.settimeout(10)
            world.turn()
            opening = sock.recv(4096)[4:]
            mine = frames.Opening("algo-1").to_bytes()
            _, outgoing = frames.signers(keys(job="two").full, opening, mine)
            sock.sendall(b"".join(frames.frame(mine)))
            sock.sendall(b"".join(outgoing.seal(frames.pack(frames.Kind.WELCOME))))
            world.until(lambda: "not tried" not in follower.obstacle)
    assert "does not hold this job's key" in follower.obstacle
    assert not world.events["algo-2"]


def test_a_follower_leaves_the_leader_of_another_job_alone(world):
    world.leader()
    follower = world.follower("algo-2", leader="main")
    world.until(lambda: "calls itself algo-1" in follower.obstacle)


def test_a_follower_that_gave_up_during_the_welcome_is_not_lost_and_joins_later(world):
    leader = world.leader()
    follower = world.follower("algo-2")
    world.until(lambda: leader._welcomed)
    follower.close()
    world.until(lambda: not leader._welcomed)
    world.join("algo-2")
    assert not world.told("algo-1", PeerLost)


def by_hand(world: ControlWorld, host: str, kind: frames.Kind) -> socket.socket:
    """Go through a follower's handshake by hand, up to its first signed frame."""
    sock = socket.create_connection(world.address)
    mine = frames.Opening(host).to_bytes()
    sock.sendall(b"".join(frames.frame(mine)))
    sock.setblocking(False)
    answer = frames.Inbox(frames.OPENING_LIMIT)

    def answered() -> Any:
        with contextlib.suppress(BlockingIOError):
            answer.feed(sock.recv(4096))
        return answer._bytes

    world.until(answered)
    outgoing, _ = frames.signers(KEYS.full, mine, answer.take())
    sock.sendall(b"".join(outgoing.seal(frames.pack(kind))))
    return sock


def test_a_second_attempt_takes_the_place_of_one_that_never_confirmed(world):
    leader = world.leader()
    with by_hand(world, "algo-2", frames.Kind.JOIN):
        world.until(lambda: leader._welcomed)
        abandoned = leader._welcomed["algo-2"]
        world.join("algo-2")
        assert abandoned.closed
    assert not leader._welcomed
    assert world.events["algo-1"] == [PeerJoined("algo-2", "127.0.0.1", "127.0.0.1")]


def test_the_key_alone_does_not_excuse_a_wrong_frame(world):
    world.leader()
    with by_hand(world, "algo-2", frames.Kind.BEAT):
        world.until(lambda: world.told("algo-1", Stranger))
    assert [s.reason for s in world.told("algo-1", Stranger)] == [
        "sent a beat frame instead of a join frame"
    ]


def test_an_address_that_cannot_be_reached_is_said_and_tried_again(world):
    world.address = ("255.255.255.255", 9)
    follower = world.follower("algo-2")
    world.until(lambda: follower._attempts >= 2)
    assert "its connection failed: " in follower.obstacle
    assert not world.selector.get_map()


def test_a_stranger_that_says_nothing_has_to_leave(world):
    world.leader()
    with socket.create_connection(world.address) as sock:
        sock.settimeout(10)
        world.skip(4.0)
        assert not world.told("algo-1", Stranger)
        world.skip(5.0)
        assert sock.recv(1) == b""
    assert [s.reason for s in world.told("algo-1", Stranger)] == ["proved nothing within 5 s"]


def test_a_leader_that_says_nothing_is_tried_again(world):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        world.address = server.getsockname()
        follower = world.follower("algo-2")
        world.turn()
        first, _ = server.accept()
        world.skip(7.0)
        second, _ = server.accept()
        first.close()
        second.close()
    assert "did not let us in within 5 s" in follower.obstacle


def test_a_peer_that_does_not_read_is_lost_before_it_fills_our_memory(world):
    leader = world.leader(timeout=15.0)
    world.join("algo-2", "algo-3")
    world.frozen.append("algo-2")
    for _ in range(300):
        leader.send("algo-2", {"x": "x" * 60000})
    # What the kernel buffers comes on top; a few MB on Linux.
    assert leader._members["algo-2"].unsent <= link.QUEUE_LIMIT + frames.FRAME_LIMIT
    assert leader.pending()
    world.skip(5.0, ["algo-1", "algo-3"])
    assert "does not read" in world.told("algo-1", PeerLost)[0].reason
    assert not world.told("algo-3", PeerLost)


def test_large_messages_survive_partial_writes(world):
    leader = world.leader()
    world.join("algo-2")
    texts: List[str] = []
    while leader._members["algo-2"].unsent < 500_000:
        texts.append(f"{len(texts)}-" + "y" * 60000)
        leader.send("algo-2", {"text": texts[-1]})
    world.until(lambda: len(world.told("algo-2", PeerMessage)) == len(texts))
    assert [m.body["text"] for m in world.told("algo-2", PeerMessage)] == texts
    assert not leader.pending()


def test_a_message_that_cannot_be_carried_is_said_to_its_author(world):
    leader = world.leader()
    follower = world.follower("algo-2")
    with pytest.raises(ValueError, match="65504 bytes"):
        leader.broadcast({"x": "x" * 70000})
    with pytest.raises(ValueError):
        leader.send("algo-2", {"x": float("nan")})
    with pytest.raises(ValueError, match="waiting for algo-1"):
        for _ in range(100):
            follower.send({"x": "x" * 60000})


def test_the_listener_survives_running_out_of_files(world, monkeypatch):
    """With EMFILE it neither spins nor dies: it waits, and lets people in later."""
    world.leader()
    calls: List[int] = []
    genuine = socket.socket.accept

    def exhausted(sock: socket.socket):
        calls.append(1)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", exhausted)
    follower = world.follower("algo-2")
    for _ in range(20):
        world.turn()
    assert len(calls) == 1
    monkeypatch.setattr(socket.socket, "accept", genuine)
    world.clocks["algo-1"].skipped += 3.0
    world.until(lambda: world.told("algo-1", PeerJoined))
    assert not follower.pending()


def test_the_soft_limit_of_files_grows_with_the_hosts():
    """In a process of its own: limits are the process's."""
    program = (
        "import resource, selectors\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1500))\n"
        "from sagemaker_mxnet_training.cluster.keys import JobKeys\n"
        "from sagemaker_mxnet_training.cluster.leader_channel import LeaderChannel\n"
        "from sagemaker_mxnet_training.cluster.ports import listen\n"
        "hosts = [f'algo-{n}' for n in range(1, 501)]\n"
        "LeaderChannel(listen('127.0.0.1', 0), JobKeys(b'k', {}), 'algo-1', hosts, 15.0,\n"
        "              selectors.DefaultSelector(), print)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    seen = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": SOURCES}, stdout=-1, check=True
    )
    assert seen.stdout == b"(1382, 1500)\n"
