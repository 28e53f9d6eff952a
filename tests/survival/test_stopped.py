"""A job that is asked to stop writes a checkpoint, and the next one resumes from it."""

import signal
from pathlib import Path
from typing import Dict

import pytest

from tests.support.jobs import job

from .conftest import Whole
from .runs import FULL, compare, losses, matrix, resumed_at, run, stop

# Between two seeds MXNet's generators are not restored: without Dropout, nobody asks them.
STOPPED = {"OPTIMIZER": "adam", "EVERY": "1000", "DROPOUT": "0", "PAUSE": "0.1"}

CASES = [
    (kind, hosts, kvstore)
    for kind in ("gluon", "module")
    for hosts in (1, 2)
    for kvstore in ("local", "device", "dist_sync", "dist_device_sync", "dist_async")
]


@pytest.mark.parametrize("kind, hosts, kvstore", matrix(CASES, [("module", 1, "device")]))
def test_the_next_job_resumes(
    tmp_path: Path, whole: Whole, kind: str, hosts: int, kvstore: str
) -> None:
    env = {**STOPPED, "KVSTORE": kvstore}
    if "dist" not in kvstore:
        env["DEVICES"] = "2"  # there is no kvstore for one
    cut = stop(tmp_path, kind, hosts, env, 13)
    again = run(tmp_path, kind, hosts, env)
    if kvstore == "dist_async" and hosts > 1:
        step = resumed_at(again[0])
        assert step is not None and step >= 13
        assert all(min(losses(end.output)) == step + 1 for end in again)
        return
    if "dist" not in kvstore:  # each host trains alone, and the first one writes
        again, cut = again[:1], cut[:1]
    statistics = (kind, env.get("DEVICES")) != ("module", "2")
    compare(whole(kind, hosts, env), again, 13, cut, statistics)


BEGINNINGS = [
    (hosts, ways)
    for hosts in (1, 2)
    for ways in ({}, {"OBJECT": "1"}, {"PREDICTED": "1"}, {"OBJECT": "1", "PREDICTED": "1"})
]


@pytest.mark.parametrize("hosts, ways", matrix(BEGINNINGS, BEGINNINGS[-1:]))
def test_a_kvstore_of_its_own_and_parameters_that_have_been_used(
    tmp_path: Path, whole: Whole, hosts: int, ways: Dict[str, str]
) -> None:
    env = {**STOPPED, "KVSTORE": "dist_sync", "CONVOLUTION": "1", **ways}
    cut = stop(tmp_path, "gluon", hosts, env, 13)
    compare(whole("gluon", hosts, env), run(tmp_path, "gluon", hosts, env), 13, cut)


@pytest.mark.parametrize("hosts", [1, 2])
def test_processes_that_load_data_are_there_up_to_the_last_step(
    tmp_path: Path, whole: Whole, hosts: int
) -> None:
    """Otherwise the script would wait for a batch that never arrives, and write nothing."""
    env = {**STOPPED, "KVSTORE": "dist_sync", "PAUSE": "0", "LOADERS": "2"}
    cut = stop(tmp_path, "gluon", hosts, env, 13)
    compare(whole("gluon", hosts, env), run(tmp_path, "gluon", hosts, env), 13, cut)


STARTING = """
import mxnet as mx
from mxnet import gluon
from sagemaker_mxnet_training.checkpoints import Checkpoint

if host == "algo-2":
    say("loading")
    wait_for_ever()
net = gluon.nn.Dense(1, in_units=4)
net.initialize()
trainer = gluon.Trainer(net.collect_params(), "adam", kvstore="dist_sync")
threads = len(os.listdir("/proc/self/task"))

def tell():
    while len(os.listdir("/proc/self/task")) < threads + 4:
        time.sleep(0.05)
    say("waiting in MXNet")

threading.Thread(target=tell, daemon=True).start()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("waiting", ["Checkpoint(net, trainer)", "mx.kv.create('dist_sync')"])
def test_stop_while_another_host_starts(
    tmp_path: Path, number: signal.Signals, waiting: str
) -> None:
    """The first host waits in MXNet for the other, which the same signal ends immediately."""
    with job(tmp_path, f"{STARTING}\n{waiting}\n", 2, parameter_server=True) as cluster:
        cluster[1].wait_for("^waiting in MXNet")
        cluster[2].wait_for("^loading")
        cluster[1].kill("entrypoint", number)
        ends = cluster.ended(60)  # less than stop_grace
    assert [end.failure for end in ends] == [None, None]
    assert ends[1].status == 128 + number
    assert ends[0].status in (0, 128 + number)


@pytest.mark.skipif(not FULL, reason="a part of the full matrix")
@pytest.mark.parametrize("kind", ["gluon", "module"])
def test_more_epochs_go_on_where_fewer_ended(tmp_path: Path, whole: Whole, kind: str) -> None:
    env = {"KVSTORE": "dist_sync", "OPTIMIZER": "adam", "EPOCHS": "2"}
    fewer = run(tmp_path, kind, 1, {**env, "EPOCHS": "1"})
    compare(whole(kind, 1, env), run(tmp_path, kind, 1, env), 16, fewer)
