"""A process of a job with Horovod is killed: it trains what a job without the kill trains."""

import importlib.util
import os
import re
import signal
from pathlib import Path
from typing import Any, Dict, Sequence, Set, Tuple

import pytest

from tests.support.jobs import Cluster, Ended, job

from .runs import matrix

pytestmark = [
    pytest.mark.horovod,
    pytest.mark.skipif(
        importlib.util.find_spec("horovod") is None,
        reason="needs Horovod, which scripts/horovod-wheel.sh installs",
    ),
]

HOSTS, PROCESSES = 2, 2
STEPS = 18

BODY = """
import hashlib
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
import horovod.mxnet as hvd
from sagemaker_mxnet_training.checkpoints import Checkpoint

hvd.init()
rank, size = hvd.rank(), hvd.size()
images = np.random.RandomState(1).randn(96, 6).astype("float32")[rank::size]
labels = np.random.RandomState(2).randint(0, 3, 96).astype("float32")[rank::size]
mx.random.seed(rank)
net = gluon.nn.HybridSequential()
dropout = gluon.nn.Dropout(float(os.environ.get("DROPOUT", "0.3")))
net.add(gluon.nn.Dense(8, in_units=6, activation="relu"), dropout)
net.add(gluon.nn.Dense(3, in_units=8))
net.initialize(mx.init.Xavier())
hvd.broadcast_parameters(net.collect_params(), root_rank=0)
trainer = hvd.DistributedTrainer(net.collect_params(), "adam", {"learning_rate": 0.01})
loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
checkpoint = Checkpoint(net, trainer, every=3)
hold = int(os.environ.get("HOLD", "0")) if os.environ["SAGEMAKER_MXNET_RESTART_COUNT"] == "0" else 0
for epoch in checkpoint.epochs(3):
    order = np.random.permutation(len(images)).reshape(-1, 4)
    for rows in checkpoint.batches(order):
        with autograd.record():
            loss = loss_of(net(mx.nd.array(images[rows])), mx.nd.array(labels[rows]))
        loss.backward()
        trainer.step(4)
        step = checkpoint.step + 1
        say("step", step, "rank", rank, float(loss.sum().asscalar()).hex(), ".")
        checkpoint._manager._writer.join()  # a due checkpoint is left out while another is written
        if step == hold and rank == 0:
            say("holding .")
            while not os.path.exists(os.environ["SAGEMAKER_BASE_DIR"] + "/release"):
                time.sleep(0.02)
weights = b"".join(p.data().asnumpy().tobytes() for p in net.collect_params().values())
say("weights", rank, hashlib.sha256(weights).hexdigest(), ".")
"""

ENV = {
    "HOROVOD_FUSION_THRESHOLD": "0",  # sums depend on which arrays are fused
    "OMP_NUM_THREADS": "1",
}


def start(path: Path, **env: str) -> Any:
    return job(path, BODY, HOSTS, processes=PROCESSES, env={**ENV, **env})


def trained(ends: Sequence[Ended]) -> Tuple[Dict[Tuple[str, str], str], Set[str]]:
    """Return the loss of each step and rank, and the different weights at the end.

    A step that was trained twice had the same loss both times.
    """
    output = "\n".join(end.output for end in ends)
    lines = set(re.findall(r"\bstep (\d+) rank (\d+) (\S+) \.", output, re.MULTILINE))
    losses = {(step, rank): loss for step, rank, loss in lines}
    assert len(losses) == len(lines)
    return losses, set(re.findall(r"^weights \d+ (\S+) \.", output, re.MULTILINE))


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Ended]:
    """Return what a job without a kill printed."""
    with start(tmp_path_factory.mktemp("whole")) as cluster:
        ends = cluster.ended(120)
    assert [end.status for end in ends] == [0] * HOSTS, ends[0].output
    losses, weights = trained(ends)
    assert len(losses) == STEPS * HOSTS * PROCESSES
    assert len(weights) == 1
    return ends


def pid(cluster: Cluster, role: str) -> int:
    host = cluster[2] if role == "rank-3" else cluster[1]
    return host.pid(role)


CASES = [
    (role, step)
    for role in ("rank-0", "rank-3", "rendezvous")
    for step in (2, STEPS // 2, STEPS - 1)
]


@pytest.mark.parametrize(
    ("role", "step"), matrix(CASES, [("rank-0", 9), ("rank-3", 17), ("rendezvous", 2)])
)
def test_killed_process(tmp_path: Path, whole: Sequence[Ended], role: str, step: int) -> None:
    """Step 2 is before the first checkpoint."""
    with start(tmp_path, HOLD=str(step)) as cluster:
        cluster[1].wait_for(r"^holding \.$")
        os.kill(pid(cluster, role), signal.SIGKILL)
        ends = cluster.ended(120)
    assert [end.status for end in ends] == [0] * HOSTS, ends[0].output
    assert trained(ends) == trained(whole)
    resumed = re.findall(r"resuming from \S+ step (\d+),", ends[0].output)
    assert [int(number) for number in resumed] == ([] if step == 2 else [(step - 1) // 3 * 3])


def test_killed_host(tmp_path: Path, whole: Sequence[Ended]) -> None:
    """It ends the job; the next job resumes from the checkpoint."""
    with start(tmp_path, HOLD="9") as cluster:
        cluster[1].wait_for(r"^holding \.$")
        cluster[2].kill("entrypoint")
        cut = cluster.ended(120)
    assert all(end.status != 0 for end in cut)
    with start(tmp_path) as cluster:
        again = cluster.ended(120)
    assert [end.status for end in again] == [0] * HOSTS, again[0].output
    expected, weights = trained(whole)
    losses, found = trained(again)
    assert found == weights
    assert losses == {key: loss for key, loss in expected.items() if int(key[0]) > 6}


def test_stop(tmp_path: Path) -> None:
    """Rank 0 writes the last checkpoint, and the other ranks train until they are ended."""
    # At a stop between two checkpoints, MXNet's own generators are not seeded.
    with start(tmp_path / "whole", DROPOUT="0") as cluster:
        whole = cluster.ended(120)
    with start(tmp_path, DROPOUT="0", HOLD="8") as cluster:
        cluster[1].wait_for(r"^holding \.$")
        cluster[2].kill("entrypoint", signal.SIGTERM)
        cluster[1].wait_for("stopping the job: SIGTERM to algo-2")
        (cluster[1].base / "release").touch()
        ends = cluster.ended(120)
    for end in ends:
        assert (end.status, end.success, end.failure) == (0, False, None), end.output
        assert "Traceback" not in end.output, end.output
    found = re.findall(r"stopping after step (\d+)", ends[0].output)
    assert len(found) == 1 and "stopping after" not in ends[1].output
    with start(tmp_path, DROPOUT="0") as cluster:
        again = cluster.ended(120)
    expected, weights = trained(whole)
    losses, last = trained(again)
    assert last == weights
    assert losses == {key: loss for key, loss in expected.items() if int(key[0]) > int(found[0])}
