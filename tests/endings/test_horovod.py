"""Endings of jobs that train with Horovod, in all of their workers, with Horovod itself."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Callable, Dict, Iterator

import pytest

from tests.endings.conftest import CGROUP, Verdicts, needs_memory_limit, needs_root
from tests.support.jobs import IN_GROUP, Cluster, Network, job

pytestmark = [
    pytest.mark.horovod,
    pytest.mark.skipif(
        importlib.util.find_spec("horovod") is None,
        reason="needs Horovod, which scripts/horovod-wheel.sh installs",
    ),
]

PLACES = pytest.mark.parametrize(
    ("hosts", "processes", "culprit"),
    [
        pytest.param(1, 2, 0, id="1x2-rank-0"),
        pytest.param(1, 2, 1, id="1x2-rank-1"),
        pytest.param(2, 1, 1, id="2x1-rank-1"),
        pytest.param(2, 2, 0, id="2x2-rank-0"),
        pytest.param(2, 2, 3, id="2x2-rank-3"),
    ],
)
"""Number of hosts, workers on each, and the faulty ones among them."""

BEGIN = """
import mxnet as mx
import horovod.mxnet as hvd
rank = int(os.environ["HOROVOD_RANK"])

def add_up(value=1.0):
    return hvd.allreduce(mx.nd.ones((4,)) * value, average=False, name="w").asnumpy()
"""

TRAIN = (
    BEGIN
    + """
hvd.init()
step = 0
while True:
    add_up()
    step += 1
    if step == 3:
        say("training", rank)
    {fault}
    time.sleep(0.01)
"""
)


def training(fault: str = "pass", culprit: int = -1) -> str:
    """Return a training loop in which one rank has a fault once everybody trains."""
    return TRAIN.format(fault=f"if step == 20 and rank == {culprit}: {fault}")


def pid_of(cluster: Cluster, rank: int, processes: int) -> int:
    return cluster[rank // processes + 1].pid(f"rank-{rank}")


def wait_for_training(cluster: Cluster, hosts: int, processes: int) -> None:
    for rank in range(hosts * processes):
        cluster[rank // processes + 1].wait_for(f"^training {rank}$")


def statuses(status: int, culprit: int, processes: int) -> Dict[int, int]:
    return {culprit // processes + 1: status}


@PLACES
def test_ranks_finish(
    tmp_path: Path, verdicts: Verdicts, hosts: int, processes: int, culprit: int
) -> None:
    """All ranks know their places, and add up what they have; one may take longer to the end."""
    body = (
        BEGIN
        + f"""
hvd.init()
mpi = [int(os.environ["OMPI_COMM_WORLD_" + n]) for n in ("RANK", "SIZE", "LOCAL_RANK")]
assert mpi == [hvd.rank(), hvd.size(), hvd.local_rank()], mpi
say("place", hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), host)
say("sum", add_up(rank)[0])
if rank == {culprit}:
    time.sleep(0.5)
"""
    )
    with job(tmp_path, body, hosts, processes=processes) as cluster:
        verdicts.succeeded(cluster)
        output = "\n".join(host.output for host in cluster.hosts)
    size = hosts * processes
    places = re.findall(r"^place (\d+) (\d+) (\d+) (\d+)", output, re.MULTILINE)
    found = {tuple(map(int, place)) for place in places}
    assert found == {(r, size, r % processes, processes) for r in range(size)}
    assert set(re.findall(r"^sum (\S+)", output, re.MULTILINE)) == {str(float(sum(range(size))))}


def test_horovod_can_be_initialized_again(tmp_path: Path, verdicts: Verdicts) -> None:
    body = BEGIN + "for _ in range(3):\n    hvd.init()\n    add_up()\n    hvd.shutdown()\n"
    with job(tmp_path, body, 2, processes=2) as cluster:
        verdicts.succeeded(cluster)


@PLACES
def test_exception(
    tmp_path: Path, verdicts: Verdicts, hosts: int, processes: int, culprit: int
) -> None:
    fault = 'say("now", time.monotonic()); raise ValueError(f"boom at step {step}")'
    with job(tmp_path, training(fault, culprit), hosts, processes=processes) as cluster:
        host = cluster[culprit // processes + 1]
        since = float(host.wait_for(r"^now (\S+)").group(1))
        cause = r"ValueError: boom at step 20 \(exit status 1\)$"
        verdicts.failed(cluster, since, f"^{host.name}: rank {culprit} failed: {cause}")


@PLACES
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_signal_to_one_rank(
    tmp_path: Path,
    verdicts: Verdicts,
    hosts: int,
    processes: int,
    culprit: int,
    number: signal.Signals,
) -> None:
    with job(tmp_path, training(), hosts, processes=processes) as cluster:
        wait_for_training(cluster, hosts, processes)
        pid = pid_of(cluster, culprit, processes)
        since = time.monotonic()
        os.kill(pid, number)
        name = f"algo-{culprit // processes + 1}"
        killed = rf"killed by {number.name} \(exit status {128 + number}\)$"
        cause = f"^{name}: rank {culprit} failed: {killed}"
        verdicts.failed(cluster, since, cause, statuses(128 + number, culprit, processes))


@PLACES
def test_rank_that_leaves_early(
    tmp_path: Path, verdicts: Verdicts, hosts: int, processes: int, culprit: int
) -> None:
    fault = 'say("now", time.monotonic()); sys.exit(0)'
    with job(tmp_path, training(fault, culprit), hosts, processes=processes) as cluster:
        host = cluster[culprit // processes + 1]
        since = float(host.wait_for(r"^now (\S+)").group(1))
        cause = "left early: .* while other ranks still trained$"
        verdicts.failed(cluster, since, f"^{host.name}: rank {culprit} failed: {cause}")


def test_rank_that_leaves_early_while_no_result_is_read(tmp_path: Path, verdicts: Verdicts) -> None:
    """A script that never reads a result would end with status 0 and wrong weights."""
    body = (
        BEGIN
        + """
hvd.init()
weight = mx.nd.ones((4,))
for step in range(50):
    hvd.allreduce_(weight, name="w")
    time.sleep(0.02)
    if step == 20 and rank == 1:
        say("now", time.monotonic())
        os._exit(0)
"""
    )
    with job(tmp_path, body, 2, processes=1) as cluster:
        since = float(cluster[2].wait_for(r"^now (\S+)").group(1))
        verdicts.failed(cluster, since, r"^algo-2: rank 1 failed: left early: ")


def test_exception_that_the_script_catches(tmp_path: Path, verdicts: Verdicts) -> None:
    """Ranks that exit because another one died are not the cause."""
    body = (
        BEGIN
        + """
hvd.init()
step = 0
try:
    while True:
        add_up()
        step += 1
        if step == 20 and rank == 3:
            say("now", time.monotonic())
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
except Exception:
    sys.exit(255)
"""
    )
    with job(tmp_path, body, 2, processes=2) as cluster:
        since = float(cluster[2].wait_for(r"^now (\S+)").group(1))
        cause = r"^algo-2: rank 3 failed: killed by SIGKILL"
        verdicts.failed(cluster, since, cause, {2: 137})


@PLACES
def test_sigstop(
    tmp_path: Path, verdicts: Verdicts, hosts: int, processes: int, culprit: int
) -> None:
    with job(tmp_path, training(), hosts, processes=processes) as cluster:
        wait_for_training(cluster, hosts, processes)
        pid = pid_of(cluster, culprit, processes)
        since = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        name = f"algo-{culprit // processes + 1}"
        verdicts.failed(cluster, since, rf"^{name}: rank {culprit} failed: frozen")


@needs_root
@needs_memory_limit
@pytest.mark.parametrize(("hosts", "processes", "culprit"), [(1, 2, 1), (2, 2, 0)])
def test_out_of_memory(
    tmp_path: Path,
    verdicts: Verdicts,
    limited: Callable[[int], str],
    hosts: int,
    processes: int,
    culprit: int,
) -> None:
    """The kernel kills the rank that uses most of the memory of its host."""
    fault = 'say("now", time.monotonic()); hog = [bytearray(1 << 20) for _ in range(2000)]'
    number = culprit // processes + 1
    group = limited(900)

    def inside(host: int) -> Dict[str, str]:
        return {"GROUP": group if host == number else str(CGROUP)}

    body = training(fault, culprit)
    command = ("-c", IN_GROUP)
    with job(
        tmp_path, body, hosts, processes=processes, command=command, per_host=inside
    ) as cluster:
        since = float(cluster[number].wait_for(r"^now (\S+)").group(1))
        cause = (
            rf"^algo-{number}: rank {culprit} failed: out of memory: the container's limit of "
            r"900 MiB was reached \(killed by SIGKILL\) \(exit status 137\)$"
        )
        verdicts.failed(cluster, since, cause, {number: 137})


def test_rank_that_initializes_late(tmp_path: Path, verdicts: Verdicts) -> None:
    """Others wait for one that has much to download before."""
    body = BEGIN + "if rank == 1:\n    time.sleep(8)\nhvd.init()\nsay('sum', add_up()[0])\n"
    with job(tmp_path, body, 2, processes=1) as cluster:
        verdicts.succeeded(cluster)
        assert "sum 2.0" in cluster[1].output


def test_exception_before_initialization(tmp_path: Path, verdicts: Verdicts) -> None:
    body = (
        BEGIN
        + """
if rank == 1:
    say("now", time.monotonic())
    raise ValueError("no data")
hvd.init()
"""
    )
    with job(tmp_path, body, 2, processes=2) as cluster:
        since = float(cluster[1].wait_for(r"^now (\S+)").group(1))
        verdicts.failed(cluster, since, r"^algo-1: rank 1 failed: ValueError: no data")


@PLACES
def test_rendezvous_is_killed(
    tmp_path: Path, verdicts: Verdicts, hosts: int, processes: int, culprit: int
) -> None:
    with job(tmp_path, training(), hosts, processes=processes) as cluster:
        wait_for_training(cluster, hosts, processes)
        since = cluster[1].kill("rendezvous")
        verdicts.failed(cluster, since, r"^algo-1: rendezvous failed: killed by SIGKILL")


@pytest.mark.parametrize(("hosts", "processes"), [(1, 2), (2, 2)])
def test_restart_after_a_kill(
    tmp_path: Path, verdicts: Verdicts, hosts: int, processes: int
) -> None:
    """All ranks meet again, at a rendezvous of their own."""
    body = (
        BEGIN
        + """
hvd.init()
for step in range(10):
    add_up()
    if step == 5 and rank == 1 and os.environ["SAGEMAKER_MXNET_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
say("sum", add_up()[0])
"""
    )
    env = {"SAGEMAKER_MXNET_MAX_RESTARTS": "1"}
    with job(tmp_path, body, hosts, processes=processes, env=env) as cluster:
        verdicts.succeeded(cluster)
        assert "restarting (attempt 2)" in cluster[1].output
        assert f"sum {hosts * processes:.1f}" in cluster[1].output


@pytest.mark.parametrize(("hosts", "processes"), [(1, 2), (2, 2)])
def test_stop(tmp_path: Path, verdicts: Verdicts, hosts: int, processes: int) -> None:
    with job(tmp_path, training(), hosts, processes=processes) as cluster:
        wait_for_training(cluster, hosts, processes)
        since = cluster[hosts].kill("entrypoint", signal.SIGTERM)
        verdicts.stopped(cluster, since, dict.fromkeys(range(1, hosts + 1), 143))


@pytest.mark.parametrize("culprit", [1, 2])
def test_entrypoint_is_killed(tmp_path: Path, verdicts: Verdicts, culprit: int) -> None:
    with job(tmp_path, training(), 2, processes=2) as cluster:
        wait_for_training(cluster, 2, 2)
        since = cluster[culprit].kill("entrypoint")
        end = cluster[3 - culprit].ended()
        verdicts.note([end], since)
        assert end.status == 1
        assert end.cause.startswith(f"algo-{culprit}: entrypoint failed: lost: "), end.output


def test_stall(tmp_path: Path, verdicts: Verdicts) -> None:
    """Horovod's threads use the CPU at rest, too."""
    body = (
        BEGIN
        + """
hvd.init()
add_up()
say("now", time.monotonic())
threading.Event().wait()
"""
    )
    env = {"SAGEMAKER_MXNET_STALL_TIMEOUT": "5"}
    with job(tmp_path, body, 2, processes=1, env=env) as cluster:
        since = float(cluster[1].wait_for(r"^now (\S+)").group(1))
        cause = r"^algo-1: worker failed: stalled: no progress for \d+ s on "
        verdicts.failed(cluster, since, cause)


@contextlib.contextmanager
def names_of_machines(network: Network) -> Iterator[None]:
    """Let the name of this machine resolve to a namespace's own address there (ip-netns(8))."""
    directories = [Path("/etc/netns", network.space(i)) for i in range(1, len(network.names) + 1)]
    try:
        for number, directory in enumerate(directories, 1):
            directory.mkdir(parents=True)
            line = f"{network.address(number)} {socket.gethostname()}\n"
            (directory / "hosts").write_text(line)
        yield
    finally:
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)


@needs_root
@pytest.mark.parametrize("culprit", [1, 2])
def test_network_cut(tmp_path: Path, verdicts: Verdicts, culprit: int) -> None:
    env = {"SAGEMAKER_MXNET_PEER_TIMEOUT": "4"}
    with Network(2) as network, names_of_machines(network):
        with job(tmp_path, training(), 2, processes=2, env=env, network=network) as cluster:
            wait_for_training(cluster, 2, 2)
            since = time.monotonic()
            network.cut(culprit)
            ends = cluster.ended()
            verdicts.note(ends, since)
            for end in ends:
                assert re.search("entrypoint failed: lost: ", end.cause), end.output


@needs_root
def test_machine_name_that_other_hosts_cannot_resolve(tmp_path: Path, verdicts: Verdicts) -> None:
    since = time.monotonic()
    with Network(2) as network, names_of_machines(network):
        hosts = Path("/etc/netns", network.space(2), "hosts")
        hosts.write_text(f"127.0.1.1 {socket.gethostname()}\n")
        with job(tmp_path, training(), 2, processes=1, network=network) as cluster:
            cause = "^algo-2: entrypoint failed: the name of this machine, .* resolves to 127.0.1.1"
            verdicts.failed(cluster, since, cause)


def test_horovod_is_missing(tmp_path: Path, verdicts: Verdicts) -> None:
    """It is there, and not for MXNet."""
    (tmp_path / "other" / "horovod").mkdir(parents=True)
    (tmp_path / "other" / "horovod" / "__init__.py").touch()
    env = {"PYTHONPATH": str(tmp_path / "other")}
    since = time.monotonic()
    with job(tmp_path, training(), 2, processes=1, env=env) as cluster:
        verdicts.failed(cluster, since, "Horovod for MXNet is not installed here")
