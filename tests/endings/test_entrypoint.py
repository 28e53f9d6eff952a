"""Faults in the entrypoint itself, and hosts that never come."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.endings.conftest import Verdicts, everywhere, needs_root
from tests.endings.test_worker import training
from tests.support.jobs import Network, free_port, job

DEFECT = """
import os, sys
from sagemaker_mxnet_cli import command_line
from sagemaker_mxnet_training.host import observer

def broken(leaders):
    raise ZeroDivisionError("a defect")

if os.environ["SM_CURRENT_HOST"] == sys.argv[1]:
    observer.measure = broken
command_line.main(["train"])
"""


@everywhere
def test_internal_error(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    """A defect in the toolkit ends the job like any other failure."""
    body = 'say("up"); wait_for_ever()'
    program = tmp_path / "defect.py"
    program.write_text(DEFECT)
    command = (str(program), f"algo-{culprit}")
    since = time.monotonic()
    with job(tmp_path, body, hosts, command=command) as cluster:
        cause = rf"^algo-{culprit}: entrypoint failed: internal error: ZeroDivisionError: a defect$"
        ends = verdicts.failed(cluster, since, cause)
    assert "please report it" in ends[culprit - 1].output


SLOW_DISK = """
import os, sys, time
from sagemaker_mxnet_cli import command_line
from sagemaker_mxnet_training.host import result

def slow(call):
    def wait(*arguments):
        os.write(2, b"waiting for the disk\\n")
        time.sleep(7)
        return call(*arguments)
    return wait

if os.environ["SM_CURRENT_HOST"] == sys.argv[1]:
    os.fsync = slow(os.fsync)
    result.prepare_success = slow(result.prepare_success)
command_line.main(["train"])
"""
PATIENCE = {"SAGEMAKER_MXNET_PEER_TIMEOUT": "3"}


@pytest.mark.parametrize(("hosts", "culprit"), [(1, 1), (2, 1), (2, 2)])
def test_a_slow_disk_does_not_hide_the_cause(
    tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int
) -> None:
    """``fsync`` takes longer than ``peer_timeout``: neither the watchdog nor a host reports it."""
    body = f"""
    say("now", time.monotonic())
    if host == "algo-{culprit}":
        raise ValueError("boom")
    wait_for_ever()
    """
    program = tmp_path / "slow_disk.py"
    program.write_text(SLOW_DISK)
    command = (str(program), f"algo-{culprit}")
    with job(tmp_path, body, hosts, command=command, env=PATIENCE) as cluster:
        since = float(cluster[culprit].wait_for(r"^now (\S+)").group(1))
        cause = rf"^algo-{culprit}: worker failed: ValueError: boom \(exit status 1\)$"
        ends = verdicts.failed(cluster, since, cause)
    assert "waiting for the disk" in ends[culprit - 1].output


@pytest.mark.parametrize(("hosts", "culprit"), [(1, 1), (2, 1), (2, 2)])
def test_a_slow_disk_does_not_cost_a_success(
    tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int
) -> None:
    program = tmp_path / "slow_disk.py"
    program.write_text(SLOW_DISK)
    command = (str(program), f"algo-{culprit}")
    with job(tmp_path, 'say("done")', hosts, command=command, env=PATIENCE) as cluster:
        ends = verdicts.succeeded(cluster)
    assert "waiting for the disk" in ends[culprit - 1].output


def test_a_supervisor_that_is_frozen_while_it_writes_is_noticed(tmp_path: Path) -> None:
    program = tmp_path / "slow_disk.py"
    program.write_text(SLOW_DISK)
    command = (str(program), "algo-1")
    with job(tmp_path, 'raise ValueError("boom")', command=command, env=PATIENCE) as cluster:
        cluster[1].wait_for("waiting for the disk")
        cluster[1].kill("entrypoint", signal.SIGSTOP)
        (end,) = cluster.ended()
    assert end.status == 137
    assert "was silent for 3 s (frozen?)" in end.cause


@pytest.mark.parametrize(("hosts", "culprit"), [(2, 1), (2, 2), (3, 1), (3, 3)])
def test_sigkill(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    with job(tmp_path, training(), hosts, kvstore=True) as cluster:
        cluster.wait_for("^training")
        since = cluster[culprit].kill("entrypoint")
        ends = cluster.ended()
        verdicts.note(ends, since)
        for number, end in enumerate(ends, 1):
            if number == culprit:
                assert end.status == 137
                assert "entrypoint failed: died unexpectedly" in end.cause
            else:
                assert end.status == 1
                assert f"algo-{culprit}: entrypoint failed: lost:" in end.cause


def test_sigkill_of_a_host_alone_leaves_no_process(tmp_path: Path, verdicts: Verdicts) -> None:
    """Not even a grandchild that daemonised: the watchdog sees to it."""
    body = """
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            say("daemon up")
            wait_for_ever()
        os._exit(0)
    wait_for_ever()
    """
    with job(tmp_path, body) as cluster:
        cluster[1].wait_for("^daemon up")
        since = cluster[1].kill("entrypoint")
        ends = cluster.ended()
        verdicts.note(ends, since)
        assert "algo-1: entrypoint failed: died unexpectedly" in ends[0].cause


@pytest.mark.parametrize(("hosts", "culprit"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3)])
def test_sigstop(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    """Frozen: the peers end by peer_timeout, and the watchdog ends the frozen host."""
    env = {"SAGEMAKER_MXNET_PEER_TIMEOUT": "3"}
    with job(tmp_path, 'say("up"); wait_for_ever()', hosts, env=env) as cluster:
        cluster.wait_for("^up")
        since = cluster[culprit].kill("entrypoint", signal.SIGSTOP)
        ends = cluster.ended()
        verdicts.note(ends, since)
        for number, end in enumerate(ends, 1):
            if number == culprit:
                assert "entrypoint failed: was silent for 3 s (frozen?)" in end.cause
            else:
                assert f"algo-{culprit}: entrypoint failed: lost:" in end.cause


@pytest.mark.parametrize(("hosts", "culprit"), [(2, 2), (3, 1)])
def test_paused_host_names_itself_when_it_resumes(
    tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int
) -> None:
    """As ``docker pause`` does: all processes of a host stop, and go on later."""
    with job(tmp_path, 'say("up"); wait_for_ever()', hosts, env=PATIENCE) as cluster:
        cluster.wait_for("^up")
        host = cluster[culprit]
        paused = cluster.processes(host.base)
        for process in paused:
            process.suspend()
        for number in set(range(1, hosts + 1)) - {culprit}:
            cluster[number].ended()
        since = time.monotonic()
        for process in paused:
            process.resume()
        reason = f"^algo-{culprit}: entrypoint failed: lost: silent for 3 s"
        verdicts.failed(cluster, since, reason)


@pytest.mark.parametrize("hosts", [2, 3])
def test_control_port_taken(tmp_path: Path, hosts: int) -> None:
    """The leader immediately reports the owner of its port."""
    port = free_port()
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", port))
        owner.listen()
        env = {"SAGEMAKER_MXNET_CONTROL_PORT": str(port), "SAGEMAKER_MXNET_JOIN_TIMEOUT": "3"}
        with job(tmp_path, "wait_for_ever()", hosts, env=env) as cluster:
            ends = cluster.ended()
    assert f"port {port}" in ends[0].cause
    assert f"process {os.getpid()}" in ends[0].cause
    for end in ends[1:]:
        assert "algo-1: entrypoint failed: could not be joined within 3 s" in end.cause


@pytest.mark.parametrize(("hosts", "absent"), [(2, 2), (3, 3), (2, 1), (3, 1)])
def test_host_never_joins(tmp_path: Path, hosts: int, absent: int) -> None:
    env = {"SAGEMAKER_MXNET_JOIN_TIMEOUT": "2"}
    with job(tmp_path, "wait_for_ever()", hosts, env=env, absent=[absent]) as cluster:
        ends = cluster.ended()
    for end in ends:
        assert f"algo-{absent}" in end.cause and "within 2 s" in end.cause, end.cause
        assert end.status == 1


@pytest.mark.parametrize("hosts", [2, 3])
def test_name_never_resolves(tmp_path: Path, hosts: int) -> None:
    """All names are looked up concurrently; the missing ones are listed."""
    env = {"SAGEMAKER_MXNET_JOIN_TIMEOUT": "2", "SAGEMAKER_MXNET_HOST_ADDRESSES": "{}"}
    with job(tmp_path, "wait_for_ever()", hosts, env=env) as cluster:
        ends = cluster.ended()
    assert "the name algo-2 does not resolve" in ends[0].cause
    for end in ends[1:]:
        assert "the name algo-1 does not resolve" in end.cause


@needs_root
@pytest.mark.parametrize(("hosts", "culprit"), [(2, 1), (2, 2), (3, 1), (3, 3)])
def test_network_cut_then_healed(
    tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int
) -> None:
    """Each side names the lost host; nothing resumes when the network returns."""
    env = {"SAGEMAKER_MXNET_PEER_TIMEOUT": "4"}
    with Network(hosts) as network, job(
        tmp_path, training(), hosts, kvstore=True, env=env, network=network
    ) as cluster:
        cluster.wait_for("^training")
        since = time.monotonic()
        network.cut(culprit)
        ends = cluster.ended()
        verdicts.note(ends, since)
        network.heal(culprit)
        for number, end in enumerate(ends, 1):
            assert end.status == 1
            lost = r"algo-\d" if number == culprit else f"algo-{culprit}"
            assert re.match(rf"{lost}: entrypoint failed: lost: ", end.cause), end.cause
            assert end.output.count("the job FAILED") == 1, "no second ending"
        assert not cluster.processes()


@needs_root
def test_a_slow_link_is_no_fault(tmp_path: Path, verdicts: Verdicts) -> None:
    """Gradients that fill the link for longer than peer_timeout do not drown the heartbeats."""
    env = {"SAGEMAKER_MXNET_PEER_TIMEOUT": "2"}
    body = """
    kv.init("large", mx.nd.zeros((200000,)))
    for _ in range(2):
        kv.push("large", mx.nd.ones((200000,)))
        out = mx.nd.zeros((200000,))
        kv.pull("large", out=out)
        out.wait_to_read()
    """
    with Network(2) as network:
        network.slow(2, 2000)
        with job(tmp_path, body, 2, kvstore=True, env=env, network=network) as cluster:
            verdicts.succeeded(cluster)
