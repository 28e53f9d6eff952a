"""SIGTERM and SIGINT: the script is notified, has its grace period, and has not failed."""

import signal
import time
from pathlib import Path

import pytest

from tests.endings.conftest import Verdicts, everywhere
from tests.support.jobs import eventually, job

HANDLER = """
def checkpoint(number, frame):
    path = os.path.join(os.environ["SAGEMAKER_BASE_DIR"], "checkpoints", "state")
    block = os.urandom(1 << 20)
    with open(path + ".tmp", "wb") as file:
        for _ in range(200):
            file.write(block)
    os.rename(path + ".tmp", path)
    say("checkpoint written after", signal.Signals(number).name)
    sys.exit(0)

signal.signal(signal.SIGTERM, checkpoint)
signal.signal(signal.SIGINT, checkpoint)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@everywhere
def test_handler_that_checkpoints(
    tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int, number: int
) -> None:
    """A signal to one host reaches the scripts of all, and they finish writing 200 MB."""
    body = """
    init()
    step = 0
    while True:
        push_and_pull()
        step += 1
        if step == 3:
            say("training")
        time.sleep(0.01)
    """
    with job(tmp_path, body, hosts, kvstore=True, prepare=_handle) as cluster:
        cluster.wait_for("^training")
        since = cluster[culprit].kill("entrypoint", number)
        ends = verdicts.stopped(cluster, since, dict.fromkeys(range(1, hosts + 1), 0))
        for host, end in zip(cluster.hosts, ends):
            assert f"checkpoint written after {signal.Signals(number).name}" in end.output
            assert (host.base / "checkpoints" / "state").stat().st_size == 200 << 20


def _handle(number: int, base: Path) -> None:
    path = base / "code" / "train.py"
    text = path.read_text()
    path.write_text(text.replace("import mxnet as mx", HANDLER + "\nimport mxnet as mx"))


@everywhere
def test_without_a_handler(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    with job(tmp_path, 'say("up"); wait_for_ever()', hosts) as cluster:
        cluster.wait_for("^up")
        since = cluster[culprit].kill("entrypoint", signal.SIGTERM)
        verdicts.stopped(cluster, since, dict.fromkeys(range(1, hosts + 1), 143))


@everywhere
def test_handler_that_ignores_it(
    tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int
) -> None:
    body = 'signal.signal(signal.SIGTERM, signal.SIG_IGN); say("up"); wait_for_ever()'
    env = {"SAGEMAKER_MXNET_STOP_GRACE": "2"}
    with job(tmp_path, body, hosts, env=env) as cluster:
        cluster.wait_for("^up")
        since = cluster[culprit].kill("entrypoint", signal.SIGTERM)
        verdicts.stopped(cluster, since, dict.fromkeys(range(1, hosts + 1), 137))


def test_second_signal_kills_immediately(tmp_path: Path, verdicts: Verdicts) -> None:
    body = """
    signal.signal(signal.SIGTERM, lambda *_: say("heard"))
    say("up")
    wait_for_ever()
    """
    with job(tmp_path, body) as cluster:
        cluster[1].wait_for("^up")
        cluster[1].kill("entrypoint", signal.SIGTERM)
        cluster[1].wait_for("^heard")
        since = cluster[1].kill("entrypoint", signal.SIGTERM)
        verdicts.stopped(cluster, since, {1: 137})


@pytest.mark.parametrize("absent", [1, 2])
def test_second_signal_ends_a_host_that_waits_for_another(
    tmp_path: Path, verdicts: Verdicts, absent: int
) -> None:
    """No other host is there to give an order, or to be waited for."""
    with job(tmp_path, "wait_for_ever()", 2, absent=[absent]) as cluster:
        (host,) = cluster.hosts
        eventually(lambda: len(cluster.processes()) == 2, "the watchdog, which starts last")
        since = time.monotonic()
        host.process.send_signal(signal.SIGTERM)
        host.wait_for("stopping the job")
        host.process.send_signal(signal.SIGTERM)  # to nobody where the first was enough
        verdicts.stopped(cluster, since, {1: 143})


def test_children_of_a_shell_script_hear_it_too(tmp_path: Path, verdicts: Verdicts) -> None:
    """The signal kills the shell; its child processes still have their grace period."""
    child = """
import os, signal, sys, time

def checkpoint(number, frame):
    time.sleep(1)
    print("checkpoint written", flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, checkpoint)
print("up", flush=True)
while True:
    time.sleep(0.05)
"""
    files = {"child.py": child}
    body = "#!/bin/sh\npython3 child.py\n"
    with job(tmp_path, body, files=files, entry_point="train.sh") as cluster:
        cluster[1].wait_for("^up")
        since = cluster[1].kill("entrypoint", signal.SIGTERM)
        ends = verdicts.stopped(cluster, since, {1: 143})
        assert "checkpoint written" in ends[0].output


def test_stop_while_requirements_are_installed(tmp_path: Path, verdicts: Verdicts) -> None:
    """A stop before training ends the current step on all hosts."""
    slow = "import time\nprint('installing', flush=True)\ntime.sleep(60)\n"
    setup = slow + "from setuptools import setup\nsetup(name='slow', version='1')\n"
    files = {"requirements.txt": "./slow\n", "slow/setup.py": setup}
    with job(tmp_path, "wait_for_ever()", 2, files=files) as cluster:
        cluster.wait_for(r"install: started")
        since = cluster[1].kill("entrypoint", signal.SIGTERM)
        verdicts.stopped(cluster, since, {1: 143, 2: 143})


def test_stop_of_a_frozen_script_wakes_it_up(tmp_path: Path, verdicts: Verdicts) -> None:
    with job(tmp_path, 'say("up"); wait_for_ever()') as cluster:
        cluster[1].wait_for("^up")
        cluster[1].kill("worker", signal.SIGSTOP)
        cluster[1].wait_for("suspended by SIGSTOP")
        since = cluster[1].kill("entrypoint", signal.SIGTERM)
        verdicts.stopped(cluster, since, {1: 143})


def test_exit_of_a_handler_in_a_destructor_counts(tmp_path: Path, verdicts: Verdicts) -> None:
    """Python prints "Exception ignored" and goes on; NDArrays are freed all the time."""
    body = """
    class Slow:
        def __del__(self):
            say("being freed")
            while True:
                time.sleep(0.01)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    slow = Slow()
    del slow
    wait_for_ever()
    """
    with job(tmp_path, body) as cluster:
        cluster[1].wait_for("^being freed")
        since = cluster[1].kill("entrypoint", signal.SIGTERM)
        verdicts.stopped(cluster, since, {1: 0})


def test_handler_runs_while_native_code_blocks_the_main_thread(
    tmp_path: Path, verdicts: Verdicts
) -> None:
    body = """
    import ctypes
    signal.signal(signal.SIGTERM, lambda *_: (say("handled"), sys.exit(0)))
    mutex = ctypes.create_string_buffer(64)
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    say("up")
    libc.pthread_mutex_lock(mutex)  # for ever, as no signal interrupts it
    """
    with job(tmp_path, body) as cluster:
        cluster[1].wait_for("^up")
        since = cluster[1].kill("entrypoint", signal.SIGTERM)
        ends = verdicts.stopped(cluster, since, {1: 0})
        assert ends[0].output.count("handled") == 1


def test_handler_of_an_event_loop_runs(tmp_path: Path, verdicts: Verdicts) -> None:
    """asyncio has its own wake-up descriptor, which stays set."""
    body = """
    import asyncio

    async def train():
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        say("up")
        await stopped.wait()
        say("checkpoint written")

    asyncio.run(train())
    """
    with job(tmp_path, body) as cluster:
        cluster.wait_for("^up")
        since = cluster[1].kill("entrypoint", signal.SIGTERM)
        (end,) = verdicts.stopped(cluster, since, {1: 0})
        assert "checkpoint written" in end.output


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize("absent", [1, 2])
def test_stop_of_a_host_that_waits_for_one_that_never_came(
    tmp_path: Path, verdicts: Verdicts, absent: int, signals: int
) -> None:
    """For the first host or for another; a waiting container ends on ``docker stop``."""
    with job(tmp_path, "wait_for_ever()", 2, absent=[absent]) as cluster:
        host = cluster.hosts[0]
        # The search for the others has begun when the watchdog of the entrypoint runs.
        eventually(lambda: len(cluster.processes()) > 1, "the entrypoint's watchdog")
        for _ in range(signals):
            since = host.kill("entrypoint", signal.SIGTERM)
        verdicts.stopped(cluster, since, {1: 143})


STOPPED_FIRST = """
if os.environ["SM_CURRENT_HOST"] == "algo-1":
    signal.signal(signal.SIGTERM, lambda *_: say("heard"))
say("up")
wait_for_ever()
"""


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_stop_continues_when_the_first_host_is_lost(
    tmp_path: Path, verdicts: Verdicts, fault: int
) -> None:
    """The other host has finished by then, and would wait for an order without end."""
    env = {"SAGEMAKER_MXNET_PEER_TIMEOUT": "3"}
    with job(tmp_path, STOPPED_FIRST, 2, env=env) as cluster:
        cluster.wait_for("^up")
        cluster[2].kill("entrypoint", signal.SIGTERM)
        cluster[1].wait_for("^heard")
        cluster[2].wait_for("worker: ended")
        since = cluster[1].kill("entrypoint", fault)
        end = cluster[2].ended()
        verdicts.note([end], since)
        assert (end.status, end.failure, end.success) == (143, None, False), end.output
        assert "the job was STOPPED" in end.output
