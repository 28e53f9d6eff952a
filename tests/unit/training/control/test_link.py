"""The control channel over real loopback sockets: membership, messages, goodbyes and losses."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any, Iterator, List

import pytest

from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role
from sagemaker_mxnet_toolkit.listening import listen
from sagemaker_mxnet_training.cluster.events import Idle, Note, lost
from sagemaker_mxnet_training.config.job import Settings
from sagemaker_mxnet_training.control import handshake, link, wire
from sagemaker_mxnet_training.control.handshake import Join
from sagemaker_mxnet_training.control.link import Beat
from tests.support.control_world import ControlWorld

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
SOURCES = os.path.dirname(os.path.dirname(os.path.dirname(link.__file__)))
CLOSED = "its connection closed unexpectedly"


@pytest.fixture
def world() -> Iterator[ControlWorld]:
    made = ControlWorld()
    yield made
    made.close()


def note(size: int, number: int = 0) -> Note:
    return Note(f"{number}-" + "x" * size)


def test_followers_join_and_learn_addresses(world: ControlWorld) -> None:
    leader = world.leader()
    world.join("algo-2", "algo-3")
    assert {call[0] for call in world.called("algo-1", "joined")} == {"algo-2", "algo-3"}
    assert {call[1:] for call in world.called("algo-1", "joined")} == {("127.0.0.1", "127.0.0.1")}
    assert world.called("algo-2", "joined") == [("127.0.0.1",)]
    assert world.ends["algo-2"].own_address == "127.0.0.1"
    assert (leader.address, leader.listening) == ("127.0.0.1", f"127.0.0.1:{world.address[1]}")
    assert not world.strangers()


def test_messages_arrive_in_order_where_they_belong(world: ControlWorld) -> None:
    leader = world.leader()
    world.join("algo-2", "algo-3")
    for number in range(50):
        world.ends["algo-2"].send(Idle("algo-2", number))
        leader.send(note(1, number), "algo-3")
    everybody = Note("ünï \ud800 \x00")
    leader.send(everybody)
    world.until_called("algo-1", "report", 50)
    world.until_called("algo-3", "order", 51)
    world.until_called("algo-2", "order")
    assert world.called("algo-1", "report") == [
        ("algo-2", Idle("algo-2", number)) for number in range(50)
    ]
    assert world.called("algo-3", "order")[:50] == [(note(1, number),) for number in range(50)]
    assert world.called("algo-2", "order") == [(everybody,)]


def test_follower_waits_for_a_leader_that_comes_later(world: ControlWorld) -> None:
    with listen("127.0.0.1", 0) as probe:
        world.address = probe.getsockname()
    follower = world.follower("algo-2")
    world.until(lambda: "refused" in follower.obstacle)
    world.leader()
    world.until_called("algo-1", "joined")
    world.until_called("algo-2", "joined")


def test_goodbye_before_joining_ends_at_once(world: ControlWorld) -> None:
    follower = world.follower("algo-2")
    follower.goodbye()
    assert not follower.pending()
    assert follower.tick(time.monotonic()) == float("inf")


def test_calls_may_be_answered_from_within(world: ControlWorld) -> None:
    leader = world.leader()
    world.reactions = {
        "algo-1 joined": lambda host, *rest: leader.send(Note("hello"), host),
        "algo-2 joined": lambda address: follower.send(Idle("algo-2", 1.0)),
        "algo-2 order": lambda order: follower.goodbye(),
    }
    follower = world.follower("algo-2")
    lost = world.until_called("algo-1", "lost")
    world.until(lambda: not follower.pending())
    assert lost == ("algo-2", "it left before the job ended", False)
    assert world.called("algo-1", "report") == [("algo-2", Idle("algo-2", 1.0))]


def test_leader_may_be_closed_from_within_a_loss(world: ControlWorld) -> None:
    leader = world.leader()
    world.reactions["algo-1 lost"] = lambda *arguments: leader.close()
    world.join("algo-2", "algo-3")
    world.ends["algo-2"].close()
    world.until_called("algo-3", "lost")
    assert [call[0] for call in world.called("algo-1", "lost")] == ["algo-2"]


def test_leaders_end_after_a_goodbye_is_no_loss(world: ControlWorld) -> None:
    leader = world.leader()
    world.join("algo-2", "algo-3")
    world.ends["algo-2"].goodbye()
    world.until_called("algo-1", "lost")
    world.until(lambda: not world.ends["algo-2"].pending())
    assert not world.called("algo-2", "lost")
    world.ends["algo-3"].goodbye()
    leader.close()
    world.until(lambda: not world.ends["algo-3"].pending())
    assert not world.called("algo-3", "lost")


def test_end_without_a_goodbye_is_a_loss(world: ControlWorld) -> None:
    leader = world.leader()
    world.join("algo-2", "algo-3")
    world.ends["algo-2"].close()
    assert world.until_called("algo-1", "lost") == ("algo-2", CLOSED, False)
    leader.close()
    assert world.until_called("algo-3", "lost") == (lost("algo-1", CLOSED),)
    assert f"lost algo-1: {CLOSED}" in world.logs["algo-3"].lines


FOLLOWER = """
import sys
from tests.support.control_world import ControlWorld
world = ControlWorld()
world.address = ("127.0.0.1", int(sys.argv[1]))
world.follower("algo-2")
world.until_called("algo-2", "joined")
print("joined", flush=True)
sys.stdin.read()
"""


def test_killed_process_with_unread_data_is_a_loss(world: ControlWorld) -> None:
    """The kernel resets the connection then, instead of ending it."""
    leader = world.leader()
    child = subprocess.Popen(
        [sys.executable, "-c", FOLLOWER, str(world.address[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{SOURCES}:{ROOT}"},
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        world.until_called("algo-1", "joined")
        assert child.stdout.readline() == b"joined\n"
        leader.send(Note("you will never read this"))
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert world.until_called("algo-1", "lost") == ("algo-2", CLOSED, False)
    finally:
        child.kill()
        child.communicate()


def test_silent_member_is_lost_and_notified(world: ControlWorld) -> None:
    world.leader(timeout=15.0)
    world.join("algo-2", "algo-3")
    world.frozen.append("algo-2")
    world.skip(14.0, ["algo-1", "algo-3"])
    assert not world.called("algo-1", "lost")
    world.skip(5.0, ["algo-1", "algo-3"])
    assert world.called("algo-1", "lost") == [("algo-2", "silent for 15 s", False)]
    assert not world.called("algo-3", "lost")
    world.frozen.clear()
    assert world.until_called("algo-2", "lost") == (lost("algo-2", "silent for 15 s"),)


def test_silent_leader_is_lost_and_notified(world: ControlWorld) -> None:
    world.leader()
    world.follower("algo-2", timeout=15.0)
    world.until_called("algo-1", "joined")
    world.frozen.append("algo-1")
    world.skip(19.0, ["algo-2"])
    assert world.called("algo-2", "lost") == [(lost("algo-1", "silent for 15 s"),)]
    world.frozen.clear()
    assert world.until_called("algo-1", "lost") == ("algo-2", "silent for 15 s", True)


def test_heartbeats_keep_quiet_hosts(world: ControlWorld) -> None:
    world.leader(timeout=15.0)
    world.follower("algo-2", timeout=15.0)
    world.until_called("algo-1", "joined")
    world.skip(120.0)
    assert not world.called("algo-1", "lost")
    assert not world.called("algo-2", "lost")


def test_suspended_leader_loses_no_member(world: ControlWorld) -> None:
    """After SIGCONT its clock has moved on, and it has not read what the others sent."""
    leader = world.leader(timeout=15.0)
    world.join("algo-2", "algo-3")
    world.clocks["algo-1"].skipped += 60.0
    leader.tick(world.clocks["algo-1"]())
    assert not world.called("algo-1", "lost")
    world.frozen.extend(["algo-2", "algo-3"])
    world.skip(19.0, ["algo-1"])
    assert {call[0] for call in world.called("algo-1", "lost")} == {"algo-2", "algo-3"}


@pytest.mark.parametrize("lives", [True, False])
def test_host_that_joined_before_is_not_let_in(world: ControlWorld, lives: bool) -> None:
    """It belongs to the next job, as after a restart of its container, and keeps connecting."""
    leader = world.leader()
    world.join("algo-2", "algo-3")
    if not lives:
        world.ends["algo-2"].close()
        world.until_called("algo-1", "lost")
    again = world.follower("algo-2", "again")
    world.until(lambda: again._attempts >= 3)
    assert "algo-2 has already joined algo-1, and cannot join again" in again.obstacle
    assert not world.calls["again"]
    assert len(world.called("algo-1", "joined")) == 2
    assert len(world.called("algo-1", "lost")) == (0 if lives else 1)
    if lives:
        world.prove_alive("algo-2", 1)
    leader.close()
    world.leader()
    world.until_called("again", "joined")


@pytest.mark.parametrize("name", ["algo-9", "algo-1"])
def test_host_with_another_name_is_rejected(world: ControlWorld, name: str) -> None:
    world.leader()
    other = world.follower(name, "other", hosts=("algo-1", "algo-9"))
    reason = "is not another host of algo-1's job"
    failure = Failure(name, Role.ENTRYPOINT, reason, FailureKind.JOIN)
    assert world.until_called("other", "refused") == (failure,)
    assert other.tick(time.monotonic()) == float("inf")
    assert not world.called("algo-1", "disagreement")


def test_another_version_is_rejected_with_a_reason(
    world: ControlWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.leader()
    follower = world.follower("algo-2")
    genuine = handshake.hello

    def newer(host: str) -> handshake.Hello:
        return replace(genuine(host), version=7) if host == "algo-2" else genuine(host)

    monkeypatch.setattr(handshake, "hello", newer)
    reason = world.until_called("algo-2", "refused")[0].reason
    assert reason.startswith("uses version 7 of the control protocol, and algo-1 version 1")
    assert f"algo-2 {reason}" in world.strangers()
    assert not follower.pending()


@pytest.mark.parametrize(
    "changes",
    [{"job_name": "another"}, {"job_key": "another"}, {"environ": {"TRAINING_JOB_ARN": "arn:x"}}],
    ids=["name", "job_key", "arn"],
)
def test_host_with_another_key_is_rejected(world: ControlWorld, changes: Any) -> None:
    leader = world.leader()
    other = world.follower("algo-2", "other", **changes)
    world.until(lambda: other._attempts >= 3)
    reason = "claims to be algo-2 but failed to authenticate with this job's key"
    assert world.strangers() == [reason], "logged once"
    assert leader.obstacle("algo-2") == f"rejected connection from 127.0.0.1: {reason}"
    assert "the job keys differ" in other.obstacle
    assert not world.calls["other"]
    world.join("algo-2", "algo-3")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hyperparameters": {"epochs": 3}}, "hyperparameters"),
        ({"parameter_server": True}, "use of the parameter server, or framework parameters"),
        ({"hosts": ("algo-1", "algo-2")}, "lists of hosts"),
        (
            {"hyperparameters": {"epochs": 3}, "hosts": ("algo-1", "algo-2")},
            "hyperparameters and lists of hosts",
        ),
    ],
    ids=["hyperparameters", "parameter server", "hosts", "both"],
)
def test_hosts_that_differ_both_learn_in_what(world: ControlWorld, changes: Any, part: str) -> None:
    world.leader()
    world.follower("algo-2", **changes)
    (failure,) = world.until_called("algo-2", "refused")
    assert world.called("algo-1", "disagreement") == [(failure,)]
    assert (failure.host, failure.kind) == ("algo-2", FailureKind.JOIN)
    assert failure.reason == (
        f"does not agree with algo-1 on the job: they have different {part}; configure all hosts "
        "the same"
    )
    assert world.strangers() == [f"algo-2 {failure.reason}"]
    assert not world.called("algo-1", "joined")


def test_second_host_of_a_name_ends_nothing(world: ControlWorld) -> None:
    """Not even one that was given another job: the member of that name is there."""
    world.leader()
    world.join("algo-2")
    other = world.follower("algo-2", "other", hyperparameters={"epochs": 3})
    world.until(lambda: other._attempts >= 2)
    assert not world.called("algo-1", "disagreement")
    assert not world.called("algo-1", "lost")
    assert not world.calls["other"]


@pytest.mark.parametrize(
    "answer", [handshake.Welcome(), handshake.Refused("does not agree", final=True)]
)
def test_follower_trusts_no_leader_without_the_key(world: ControlWorld, answer: Any) -> None:
    """An impostor with another key cannot complete the handshake."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        world.address = server.getsockname()
        follower = world.follower("algo-2")
        world.until(lambda: follower._link is not None)
        sock, _ = server.accept()
        with sock:
            sock.settimeout(10)
            world.turn()
            heard = sock.recv(4096)
            mine = wire.encode(handshake.hello("algo-1"))
            signed = handshake.signed(answer, b"another key", heard + mine)
            sock.sendall(mine + wire.encode(signed))
            world.until(lambda: "not tried" not in follower.obstacle)
    assert "failed to authenticate with this job's key" in follower.obstacle
    assert not world.calls["algo-2"]


def test_leader_of_another_name_is_left_alone(world: ControlWorld) -> None:
    world.leader()
    follower = world.follower("algo-2", hosts=("algo-0", "algo-2"))
    follower._lookup.close()
    follower._address = "127.0.0.1"
    world.until(lambda: "claims to be algo-1" in follower.obstacle)


def test_follower_that_gave_up_while_welcomed_is_not_lost(world: ControlWorld) -> None:
    leader = world.leader()
    follower = world.follower("algo-2")
    world.until(lambda: leader._welcomed)
    follower.close()
    world.until(lambda: not leader._welcomed)
    world.join("algo-2")
    assert not world.called("algo-1", "lost")


def by_hand(world: ControlWorld, host: str, join: bool = True) -> socket.socket:
    """Go through a follower's handshake by hand, up to its proof or, instead, a heartbeat."""
    sock = socket.create_connection(world.address)
    mine = wire.encode(handshake.hello(host))
    sock.sendall(mine)
    sock.setblocking(False)
    answer = wire.Inbox(wire.HELLO_LIMIT)

    def answered() -> Any:
        with contextlib.suppress(BlockingIOError):
            answer.feed(sock.recv(4096))
        return answer._bytes

    world.until(answered)
    theirs = answer.take()
    assert theirs is not None
    job = world.job(host)
    key = handshake.derive_key(job)
    proof = handshake.signed(Join(handshake.digests(job, key)), key, mine + wire.frame(theirs))
    sock.sendall(wire.encode(proof if join else Beat()))
    return sock


def test_second_attempt_replaces_an_unconfirmed_one(world: ControlWorld) -> None:
    leader = world.leader()
    with by_hand(world, "algo-2"):
        world.until(lambda: leader._welcomed)
        abandoned = leader._welcomed["algo-2"]
        world.join("algo-2")
        assert abandoned.closed
    assert not leader._welcomed
    assert world.calls["algo-1"] == [("joined", "algo-2", "127.0.0.1", "127.0.0.1")]


def test_message_before_the_proof_ends_a_connection(world: ControlWorld) -> None:
    world.leader()
    with by_hand(world, "algo-2", join=False):
        world.until(world.strangers)
    assert world.strangers() == ["sent 'Beat', expected Join"]


def test_malformed_message_of_a_member_is_a_loss(world: ControlWorld) -> None:
    world.leader()
    world.join("algo-2", "algo-3")
    world.ends["algo-2"]._link.send(Note("an order, from a follower"))
    _, reason, _ = world.until_called("algo-1", "lost")
    assert reason.startswith("sent 'Note', expected Reported")
    assert [call[0] for call in world.called("algo-1", "lost")] == ["algo-2"]


def test_unreachable_address_is_tried_again(world: ControlWorld) -> None:
    world.address = ("255.255.255.255", 9)
    follower = world.follower("algo-2")
    world.until(lambda: follower._attempts >= 2)
    assert "its connection failed: " in follower.obstacle


def test_leader_is_joined_at_its_new_address(world: ControlWorld) -> None:
    """Docker may give a container another address when it starts it again."""
    world.leader()
    follower = world.follower("algo-2", job_key="not yet")
    world.until(lambda: follower._attempts >= 2)
    follower._job = replace(
        follower._job,
        settings=replace(follower._job.settings, host_addresses={"algo-1": "127.0.0.7"}),
    )
    world.skip(2.5)
    world.until(lambda: "algo-1 at 127.0.0.7:" in follower.obstacle)
    assert world.logs["algo-2"].lines == ["algo-1 is now at 127.0.0.7"]


def test_name_that_never_resolves_is_a_refusal(world: ControlWorld) -> None:
    world.follower("algo-2", hosts=("a..b", "algo-2"))
    (failure,) = world.until_called("algo-2", "refused")
    assert failure.kind is FailureKind.JOIN
    assert failure.headline().startswith(
        "a..b: entrypoint failed: cannot be joined: the name a..b does not resolve (not a host name"
    )


def test_silent_stranger_has_to_leave(world: ControlWorld) -> None:
    world.leader()
    with socket.create_connection(world.address) as sock:
        sock.settimeout(10)
        world.skip(4.0)
        assert not world.strangers()
        world.skip(5.0)
        assert sock.recv(1) == b""
    assert world.strangers() == ["did not authenticate within 5 s"]


def test_silent_leader_is_called_again(world: ControlWorld) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        world.address = server.getsockname()
        follower = world.follower("algo-2")
        world.until(lambda: follower._link is not None)
        first, _ = server.accept()
        world.skip(7.0)
        second, _ = server.accept()
        first.close()
        second.close()
    assert "did not accept this host within 5 s" in follower.obstacle


def test_member_that_does_not_read_is_lost(world: ControlWorld) -> None:
    leader = world.leader(timeout=15.0)
    world.join("algo-2", "algo-3")
    world.frozen.append("algo-2")
    for _ in range(300):
        leader.send(note(60000), "algo-2")
    # What the kernel buffers comes on top; a few MB on Linux.
    assert leader._members["algo-2"].unsent <= link.QUEUE_LIMIT + wire.FRAME_LIMIT
    assert leader.pending()
    world.skip(5.0, ["algo-1", "algo-3"])
    assert "does not read" in world.called("algo-1", "lost")[0][1]
    assert not world.called("algo-3", "lost")


def test_large_messages_survive_partial_writes(world: ControlWorld) -> None:
    leader = world.leader()
    world.join("algo-2")
    notes: List[Note] = []
    while leader._members["algo-2"].unsent < 500_000:
        notes.append(note(60000, len(notes)))
        leader.send(notes[-1], "algo-2")
    world.until_called("algo-2", "order", len(notes))
    assert world.called("algo-2", "order") == [(each,) for each in notes]
    assert not leader.pending()


def test_listener_survives_running_out_of_files(
    world: ControlWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With EMFILE it neither spins nor dies: it waits, and lets people in later."""
    world.leader()
    calls: List[int] = []
    genuine = socket.socket.accept

    def exhausted(sock: socket.socket) -> Any:
        calls.append(1)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", exhausted)
    world.follower("algo-2")
    for _ in range(20):
        world.turn()
    assert len(calls) == 1
    monkeypatch.setattr(socket.socket, "accept", genuine)
    world.clocks["algo-1"].skipped += 13.0
    world.until_called("algo-1", "joined")


def test_missing_hosts_are_looked_up(world: ControlWorld) -> None:
    leader = world.leader()
    assert leader.obstacle("algo-3") == "algo-3 never connected"
    known = replace(Settings(), host_addresses={"algo-3": "127.0.0.3"})
    leader._job = replace(leader._job, settings=known)
    leader.look_up(["algo-3", "a..b"])
    leader.look_up(["algo-3"])
    world.until(lambda: "resolves to 127.0.0.3" in leader.obstacle("algo-3"))
    world.until(lambda: "does not resolve" in leader.obstacle("a..b"))


def test_soft_limit_of_files_grows_with_the_hosts() -> None:
    """In a separate process, because limits apply to a process."""
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1500))\n"
        "from tests.support.control_world import ControlWorld\n"
        "ControlWorld().leader(hosts=[f'algo-{n}' for n in range(1, 501)])\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    seen = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{SOURCES}:{ROOT}"},
        stdout=-1,
        check=True,
    )
    assert seen.stdout == b"(1384, 1500)\n"
