"""Faults in the kvstore's own processes: scheduler and servers, on real MXNet processes."""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Callable

import pytest

from tests.endings.conftest import (
    CGROUP,
    Verdicts,
    everywhere,
    needs_memory_limit,
    needs_notes,
    needs_root,
)
from tests.endings.test_worker import training
from tests.support.jobs import IN_GROUP, Network, free_port, job

everywhere_with_one_scheduler = pytest.mark.parametrize("hosts", [1, 2, 3])

OPTIMIZER = """
class Mine(mx.optimizer.Optimizer):
    def create_state(self, index, weight):
        return None

    def update(self, index, weight, grad, state):
        {update}

if __name__ == "__main__":
    init()
    kv.set_optimizer(Mine(learning_rate=0.5))
    while True:
        push_and_pull()
"""


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_custom_optimizer_that_raises(tmp_path: Path, verdicts: Verdicts, hosts: int) -> None:
    """Python alone would print "Exception ignored" on the server, and training would go on."""
    # One key lives on one server; which, MXNet decides.
    body = OPTIMIZER.format(update='raise ArithmeticError("no update today")')
    since = time.monotonic()
    with job(tmp_path, body, hosts, kvstore=True) as cluster:
        cause = (
            r"^algo-\d: server failed: ArithmeticError: no update today "
            r"\(the optimizer Mine failed to update key .*\) \(exit status 1\)$"
        )
        ends = verdicts.failed(cluster, since, cause)
    assert "in update" in (ends[0].failure or ""), "the traceback in the user's own code"


@needs_notes
def test_note_on_an_exception_of_an_optimizer(tmp_path: Path, verdicts: Verdicts) -> None:
    """The cause is the type and message, even if other lines follow in the traceback."""
    update = """error = ArithmeticError("no update today")
        error.add_note("a note")
        raise error"""
    since = time.monotonic()
    with job(tmp_path, OPTIMIZER.format(update=update), kvstore=True) as cluster:
        (end,) = verdicts.failed(cluster, since, "server failed: ArithmeticError: no update today ")
    assert "a note" in (end.failure or "")


def test_custom_optimizer_that_cannot_be_loaded(tmp_path: Path, verdicts: Verdicts) -> None:
    body = """
    def late():
        class Hidden(mx.optimizer.SGD):
            def __reduce__(self):
                return (eval, ("no_such_name",))
        return Hidden()

    kv.set_optimizer(late())
    init()
    while True:
        push_and_pull()
    """
    since = time.monotonic()
    with job(tmp_path, body, 2, kvstore=True) as cluster:
        cause = r"server failed: NameError: .*no_such_name.*\(the optimizer that the worker sent"
        verdicts.failed(cluster, since, cause)


@everywhere
def test_server_sigkill(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    with job(tmp_path, training(), hosts, kvstore=True) as cluster:
        cluster.wait_for("^training")
        since = cluster[culprit].kill("server")
        cause = rf"^algo-{culprit}: server failed: killed by SIGKILL \(exit status 137\)$"
        verdicts.failed(cluster, since, cause)


@everywhere
def test_server_sigsegv(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    with job(tmp_path, training(), hosts, kvstore=True) as cluster:
        cluster.wait_for("^training")
        since = cluster[culprit].kill("server", signal.SIGSEGV)
        cause = rf"^algo-{culprit}: server failed: killed by SIGSEGV \(exit status 139\)$"
        verdicts.failed(cluster, since, cause)


@everywhere
def test_server_sigstop(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    with job(tmp_path, training(), hosts, kvstore=True) as cluster:
        cluster.wait_for("^training")
        since = cluster[culprit].kill("server", signal.SIGSTOP)
        cause = rf"^algo-{culprit}: server failed: frozen: suspended by a signal \(SIGSTOP\)"
        verdicts.failed(cluster, since, cause)


@pytest.mark.parametrize(("hosts", "culprit"), [(1, 1), (2, 2)])
@needs_root
@needs_memory_limit
def test_server_out_of_memory(
    tmp_path: Path, verdicts: Verdicts, limited: Callable[[int], str], hosts: int, culprit: int
) -> None:
    """An optimizer that takes all memory, on the servers."""
    body = f"""
    class Greedy(mx.optimizer.Optimizer):
        def create_state(self, index, weight):
            return None

        def update(self, index, weight, grad, state):
            taken = []
            while host == "algo-{culprit}":
                taken.append(b"x" * 2**20)

    kv.init("large enough for all servers", mx.nd.zeros((2500000,)))
    kv.set_optimizer(Greedy())
    say("up")
    while not os.path.exists("{tmp_path}/go"):
        time.sleep(0.05)
    kv.push("large enough for all servers", mx.nd.ones((2500000,)))
    kv.pull("large enough for all servers", out=mx.nd.zeros((2500000,)))
    wait_for_ever()
    """
    group = limited(900)

    def inside(number: int) -> dict:
        return {"GROUP": group if number == culprit else str(CGROUP)}

    with job(
        tmp_path, body, hosts, kvstore=True, command=("-c", IN_GROUP), per_host=inside
    ) as cluster:
        cluster.wait_for("^up")
        Path(f"/proc/{cluster[culprit].pid('server')}/oom_score_adj").write_text("1000")
        (tmp_path / "go").touch()
        since = time.monotonic()
        cause = (
            rf"^algo-{culprit}: server failed: out of memory: the container's limit of 900 MiB "
            r"was reached \(killed by SIGKILL\) \(exit status 137\)"
        )
        verdicts.failed(cluster, since, cause)


@everywhere_with_one_scheduler
def test_scheduler_sigkill(tmp_path: Path, verdicts: Verdicts, hosts: int) -> None:
    with job(tmp_path, training(), hosts, kvstore=True) as cluster:
        cluster.wait_for("^training")
        since = cluster[1].kill("scheduler")
        cause = r"^algo-1: scheduler failed: killed by SIGKILL \(exit status 137\)$"
        verdicts.failed(cluster, since, cause)


@everywhere_with_one_scheduler
def test_scheduler_sigstop(tmp_path: Path, verdicts: Verdicts, hosts: int) -> None:
    with job(tmp_path, training(), hosts, kvstore=True) as cluster:
        cluster.wait_for("^training")
        since = cluster[1].kill("scheduler", signal.SIGSTOP)
        cause = r"^algo-1: scheduler failed: frozen: suspended by a signal \(SIGSTOP\)"
        verdicts.failed(cluster, since, cause)


@everywhere
def test_never_starts(tmp_path: Path, verdicts: Verdicts, hosts: int, culprit: int) -> None:
    """The native library cannot be loaded on one host, where scheduler and server need it."""
    broken = tmp_path / "libmxnet.so"
    broken.write_text("this is no library")

    def spoiled(number: int) -> dict:
        return {"MXNET_LIBRARY_PATH": str(broken)} if number == culprit else {}

    since = time.monotonic()
    with job(
        tmp_path, "wait_for_ever()", hosts, parameter_server=True, per_host=spoiled
    ) as cluster:
        # On the first host scheduler and server are both broken: whoever says so first.
        names = "(scheduler|server)" if culprit == 1 else "server"
        cause = rf"^algo-{culprit}: {names} failed: OSError: .*libmxnet\.so.*cannot run\)"
        verdicts.failed(cluster, since, cause)


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_scheduler_port_taken(tmp_path: Path, verdicts: Verdicts, hosts: int) -> None:
    """The error names the configured port and its owner."""
    port = free_port()
    since = time.monotonic()
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", port))
        owner.listen()
        with job(
            tmp_path, "wait_for_ever()", hosts, parameter_server=True,
            hyperparameters={"_ps_port": port},
        ) as cluster:  # fmt: skip
            cause = rf"^algo-1: .*port {port}.*taken by process {os.getpid()}, "
            verdicts.failed(cluster, since, cause)


@needs_root
def test_default_scheduler_port_taken_is_no_failure(tmp_path: Path, verdicts: Verdicts) -> None:
    """The port was not configured: the scheduler uses another one, and logs the owner."""
    with Network(1) as network:
        take = "import socket; s = socket.create_server(('', 8000)); print('taken', flush=True)"
        command = [sys.executable, "-u", "-c", take + "; input()"]
        owner = network.run(1, command)
        assert owner.stdout.readline() == b"taken\n"
        body = "init(); say(push_and_pull())"
        env = {"SAGEMAKER_MXNET_PS_PORT": ""}
        with job(tmp_path, body, 1, kvstore=True, env=env, network=network) as cluster:
            cluster[1].wait_for(rf"port 8000 is taken by process {owner.pid}")
            verdicts.succeeded(cluster)
