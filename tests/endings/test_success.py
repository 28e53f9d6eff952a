"""Unusual jobs that succeed, and jobs that must not be reported as successful."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator

import pytest

from tests.endings.conftest import Verdicts, needs_root
from tests.support.jobs import IMPATIENT, Network, job


@pytest.mark.parametrize("kvstore", [True, False], ids=["kvstore", "no-kvstore"])
@pytest.mark.parametrize("early", [1, 2])
def test_worker_that_finishes_before_the_others(
    tmp_path: Path, verdicts: Verdicts, kvstore: bool, early: int
) -> None:
    """Its host delays its exit, and logs the host it waits for."""
    body = f"""
    if host != "algo-{early}":
        say("going on")
        while not os.path.exists("{tmp_path}/go"):
            time.sleep(0.05)
    say("done")
    """
    with job(tmp_path, body, 2, kvstore=kvstore, command=("-c", IMPATIENT)) as cluster:
        cluster[early].wait_for("^done")
        other = 3 - early
        cluster[early].wait_for(rf"algo-{early} finished and waiting for algo-{other}")
        assert cluster[early].process.poll() is None
        (tmp_path / "go").touch()
        verdicts.succeeded(cluster)


def test_worker_in_the_exit_barrier_waits_for_another(tmp_path: Path, verdicts: Verdicts) -> None:
    """Uneven shards: one host is in MXNet's exit barrier, the other in an endless push."""
    body = """
    init()
    for _ in range(5 if host == "algo-1" else 6):
        push_and_pull()
    say("done")
    """
    env = {"SAGEMAKER_MXNET_STALL_TIMEOUT": "4"}
    since = time.monotonic()
    with job(tmp_path, body, 2, kvstore=True, env=env) as cluster:
        cause = (
            r"^algo-2: worker failed: stalled: no progress for \d+ s on algo-2, "
            r"after algo-1 had finished: .*same number of batches"
        )
        verdicts.failed(cluster, since, cause)


def test_uneven_job_is_reported_without_the_setting(tmp_path: Path) -> None:
    body = """
    init()
    for _ in range(5 if host == "algo-1" else 6):
        push_and_pull()
    """
    with job(tmp_path, body, 2, kvstore=True, command=("-c", IMPATIENT)) as cluster:
        for host in cluster.hosts:
            host.wait_for(
                r"algo-1 finished and waiting for algo-2 \(no progress for \d+ s\): .*"
                "same number of batches on all hosts; sagemaker_mxnet_stall_timeout would"
            )
        assert all(host.process.poll() is None for host in cluster.hosts)
        cluster[1].kill("entrypoint", signal.SIGTERM)
        cluster.ended()


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_kvstore_that_python_never_deletes_is_closed(
    tmp_path: Path, verdicts: Verdicts, hosts: int
) -> None:
    """Otherwise MXNet ends with SIGABRT, "terminate called without an active exception"."""
    body = """
    import ctypes
    init()
    say(push_and_pull())
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kv))
    """
    with job(tmp_path, body, hosts, kvstore=True) as cluster:
        verdicts.succeeded(cluster)


def test_a_push_that_its_script_does_not_wait_for_arrives(
    tmp_path: Path, verdicts: Verdicts
) -> None:
    """The last step of a training whose loss is not read, and the first host that saves it."""
    body = """
    init()
    gradient = mx.nd.ones((1024, 1024))
    for _ in range(20):  # the engine has enough to do before the push
        gradient = mx.nd.dot(gradient, gradient) / 1024
    if host == "algo-2":
        kv.push("w", gradient[0, :4])
        sys.exit()
    say(push_and_pull())
    """
    with job(tmp_path, body, 2, kvstore=True) as cluster:
        verdicts.succeeded(cluster)
        assert "[2. 2. 2. 2.]" in cluster[1].output


@pytest.mark.parametrize("hosts", [1, 2])
def test_python_takes_its_objects_down_at_the_end_of_a_script(
    tmp_path: Path, verdicts: Verdicts, hosts: int
) -> None:
    """Unclosed files are complete, and destructors run, even in reference cycles."""
    body = """
    init()
    say(push_and_pull())

    class Note:
        def __init__(self, text):
            self.text, self.write = text, os.write  # names of the script may be gone by then

        def __del__(self):
            self.write(1, f"destructor {self.text}\\n".encode())

    class Cycle:
        def __init__(self):
            self.me, self.note = self, Note("in a cycle")
            self.file = open(f"{directory}/{host}-cycle", "w")
            self.file.write("whole")

    note = Note("of the script")
    file = open(f"{directory}/{host}-script", "w")
    file.write("whole")
    cycle = Cycle()
    """
    body = body.replace("{directory}", str(tmp_path))
    with job(tmp_path, body, hosts, kvstore=True) as cluster:
        for host, end in zip(cluster.hosts, verdicts.succeeded(cluster)):
            for name in (f"{host.name}-script", f"{host.name}-cycle"):
                assert (tmp_path / name).read_text() == "whole"
            assert "destructor of the script" in end.output
            assert "destructor in a cycle" in end.output


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_script_that_never_touches_the_kvstore(
    tmp_path: Path, verdicts: Verdicts, hosts: int
) -> None:
    with job(tmp_path, 'say("hello")', hosts, parameter_server=True) as cluster:
        verdicts.succeeded(cluster)
        assert "no worker used the kvstore; stopping it" in cluster[1].output


@pytest.mark.parametrize("kind", ["dist_sync", "dist_async"])
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_training_over_the_kvstore(
    tmp_path: Path, verdicts: Verdicts, hosts: int, kind: str
) -> None:
    body = """
    init()
    kv.set_optimizer(mx.optimizer.SGD(learning_rate=0.1))  # servers in async mode need one
    for _ in range(3):
        push_and_pull()
    say("workers", kv.num_workers, "type", kv.type)
    """
    with job(tmp_path, body, hosts, kvstore=True, env={"KVSTORE": kind}) as cluster:
        for end in verdicts.succeeded(cluster):
            assert f"workers {hosts} type {kind}" in end.output


def test_training_with_more_servers_on_each_host(tmp_path: Path, verdicts: Verdicts) -> None:
    """The first host's number is the job's, so that no process waits for a server too many."""
    body = """
    init()
    for _ in range(3):
        push_and_pull()
    say("servers", os.environ["DMLC_NUM_SERVER"])
    """

    def settings(number: int) -> Dict[str, str]:
        return {"SAGEMAKER_MXNET_SERVERS_PER_HOST": str(number + 1)}

    with job(tmp_path, body, 2, kvstore=True, per_host=settings) as cluster:
        for host, end in zip(cluster.hosts, verdicts.succeeded(cluster)):
            assert "servers 4" in end.output
            assert f"{host.name} server-2: ended with exit status 0" in end.output


@pytest.mark.parametrize("place", ["script", "module"])
def test_custom_optimizer_of_the_user_runs_on_the_servers(
    tmp_path: Path, verdicts: Verdicts, place: str
) -> None:
    """Wherever its class is defined, and without running the training code there."""
    define = """
import mxnet as mx

class Half(mx.optimizer.Optimizer):
    def create_state(self, index, weight):
        return None

    def update(self, index, weight, grad, state):
        weight[:] = weight - 0.5 * grad
"""
    use = "from mine import Half" if place == "module" else define
    body = (
        use
        + """
if os.environ["DMLC_ROLE"] != "worker":
    say("training code on a server")
init()
kv.set_optimizer(Half())
say("got", push_and_pull().tolist())
"""
    )
    with job(tmp_path, body, 2, kvstore=True, files={"mine.py": define}) as cluster:
        for end in verdicts.succeeded(cluster):
            assert "got [-1.0, -1.0, -1.0, -1.0]" in end.output
            assert "training code on a server" not in end.output


def test_a_daemon_of_the_script_does_not_outlive_the_job(
    tmp_path: Path, verdicts: Verdicts
) -> None:
    body = """
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            say("daemon up")
            wait_for_ever()
        os._exit(0)
    time.sleep(0.5)
    """
    with job(tmp_path, body) as cluster:
        cluster[1].wait_for("^daemon up")
        verdicts.succeeded(cluster)


def test_two_jobs_at_once_and_after_each_other(tmp_path: Path, verdicts: Verdicts) -> None:
    body = """
    init()
    for _ in range(10):
        out = push_and_pull()
    say("sum", out.tolist())
    """
    outputs = []
    with job(tmp_path / "a", body, 2, kvstore=True) as one:
        with job(tmp_path / "b", body, 2, kvstore=True) as two:
            for cluster in (one, two):
                outputs += [end.output for end in verdicts.succeeded(cluster)]
    with job(tmp_path / "a2", body, 2, kvstore=True) as three:
        outputs += [end.output for end in verdicts.succeeded(three)]
    assert all("sum [2.0, 2.0, 2.0, 2.0]" in output for output in outputs)


def test_output_of_gigabytes_neither_fills_memory_nor_stalls(
    tmp_path: Path, verdicts: Verdicts
) -> None:
    """A gigabyte on stderr, with the entrypoint's peak memory looked at on the way."""
    body = r"""
    line = b"x" * 1023 + b"\n"
    for _ in range(1 << 10):
        os.write(2, line * 256)
    peak = open(f"/proc/{os.getppid()}/status").read().split("VmHWM:")[1].split()[0]
    say("\npeak", peak)
    """
    program = [sys.executable, "-m", "sagemaker_mxnet_training", "train"]
    with job(tmp_path, body) as started:
        environment = started[1].process.args and dict(os.environ)
        started[1].process.kill()
    environment.update(
        SAGEMAKER_BASE_DIR=str(tmp_path / "algo-1"),
        SM_USER_ENTRY_POINT="train.py",
        SM_HOSTS='["algo-1"]',
        SM_CURRENT_HOST="algo-1",
    )
    with open(tmp_path / "stderr", "wb") as sink:
        ran = subprocess.run(program, env=environment, stdout=subprocess.PIPE, stderr=sink)
    assert ran.returncode == 0
    assert (tmp_path / "stderr").stat().st_size >= 256 << 20
    peak = int(re.search(rb"peak (\d+)", ran.stdout).group(1))
    assert peak < 100 * 1024, f"{peak} kB"
    (tmp_path / "stderr").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=20", "tmpfs", disk], check=True
    )
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


FILL = """
with open("{disk}/ballast", "wb") as file:
    try:
        while True:
            file.write(b"x" * 65536)
            file.flush()
    except OSError:
        say("the disk is full")
"""


@needs_root
@pytest.mark.parametrize("hosts", [1, 2])
def test_disk_full_while_writing_the_model(
    tmp_path: Path, verdicts: Verdicts, small_disk: Path, hosts: int
) -> None:
    body = f"""
    import mxnet as mx
    from sagemaker_mxnet_training.training_utils import save
    net = mx.gluon.nn.Dense(1000, in_units=1000)
    net.initialize()
    net.hybridize()
    net(mx.nd.zeros((1, 1000)))
    save("{small_disk}/model", net)
    """
    since = time.monotonic()
    with job(tmp_path, body, hosts) as cluster:
        verdicts.failed(cluster, since, r"^algo-1: worker failed: OSError: .*[Nn]o space left")
    left = list((small_disk / "model").iterdir()) if (small_disk / "model").exists() else []
    assert not left, "no partial file looks whole"


def test_killed_save_leaves_only_the_old_model(tmp_path: Path) -> None:
    body = """
    from sagemaker_mxnet_toolkit.atomic_files import replacing
    directory = os.environ["SM_MODEL_DIR"]
    with open(f"{directory}/model-0000.params", "w") as file:
        file.write("old")
    with replacing(f"{directory}/model-0000.params") as (new,):
        with open(new, "w") as file:
            file.write("half of")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with job(tmp_path, body) as cluster:
        assert cluster.ended()[0].status == 137
        model = cluster[1].base / "model"
        assert [path.name for path in model.iterdir()] == ["model-0000.params"]
        assert (model / "model-0000.params").read_text() == "old"


@needs_root
@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("fails", [True, False], ids=["failure-file", "success-file"])
def test_disk_full_while_writing_the_result(
    tmp_path: Path, verdicts: Verdicts, small_disk: Path, hosts: int, fails: bool
) -> None:
    """A job cannot succeed without its file; a failed one fails with or without it."""
    inodes = "".join(
        f"for number in range(30):\n    try: open('{small_disk}/i%d' % number, 'w')\n"
        "    except OSError: break\n"
    )
    body = FILL.format(disk=small_disk) + inodes
    body += 'raise ValueError("boom")' if fails else "say('fine')"

    def small(number: int) -> dict:
        return {"SM_OUTPUT_DIR": str(small_disk)} if number == 1 else {}

    with job(tmp_path, body, hosts, per_host=small) as cluster:
        ends = cluster.ended()
    for end in ends:
        assert end.status == 1
        assert not end.success
    assert not (small_disk / "success").exists()
    assert not (small_disk / "failure").exists()
    wanted = "ValueError: boom" if fails else "cannot write the success file"
    assert wanted in ends[-1].output
    if hosts == 2:
        assert wanted in ends[1].cause
    del verdicts


@needs_root
def test_a_job_over_a_real_network(tmp_path: Path, verdicts: Verdicts) -> None:
    """Hosts with addresses of their own: names, interface and ports as in a cluster."""
    body = """
    import socket
    init(); push_and_pull()
    say("node", socket.gethostbyname(os.environ["DMLC_NODE_HOST"]), "rank", kv.rank)
    """
    with Network(3) as network:
        with job(tmp_path, body, 3, kvstore=True, network=network) as cluster:
            ends = verdicts.succeeded(cluster)
        for number, end in enumerate(ends, 1):
            assert f"node {network.address(number)} rank {number - 1}" in end.output
