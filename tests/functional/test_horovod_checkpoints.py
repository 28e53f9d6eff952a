"""``Checkpoint`` with Horovod: rank 0 writes, and all ranks resume from its file."""

import functools
import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, List, Mapping

import pytest

if importlib.util.find_spec("horovod") is None:
    pytest.skip("needs Horovod, which scripts/horovod-wheel.sh installs", allow_module_level=True)

from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
from horovod.runner.http.http_server import RendezvousServer

from sagemaker_mxnet_training.checkpoints import catalog
from tests.support.jobs import eventually

pytestmark = pytest.mark.horovod

COMMON = """
import hashlib, os, signal, time
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
import horovod.mxnet as hvd
from sagemaker_mxnet_training.checkpoints import Checkpoint, CheckpointError

hvd.init()
RANK, SIZE = hvd.rank(), hvd.size()
KILL, BATCH = os.environ.get("KILL", ""), 4
images = np.random.RandomState(1).randn(96, 6).astype("float32")[RANK::SIZE]
labels = np.random.RandomState(2).randint(0, 3, 96).astype("float32")[RANK::SIZE]
mx.random.seed(RANK)


def say(*words):
    print(*words, flush=True)


def stepped(loss):
    step = checkpoint.step + 1
    say("step", step, loss, ".")
    checkpoint._manager._writer.join()  # a due checkpoint is left out while another is written
    if f"{RANK}:{step}" == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(os.environ.get("PAUSE", "0")))


def digest(arrays):
    return hashlib.sha256(b"".join(a.asnumpy().tobytes() for a in arrays)).hexdigest()[:16]
"""

GLUON = (
    COMMON
    + """
net = gluon.nn.HybridSequential()
net.add(gluon.nn.Dense(8, in_units=6, activation="relu"), gluon.nn.BatchNorm(in_channels=8))
net.add(gluon.nn.Dropout(float(os.environ.get("DROPOUT", "0.3"))), gluon.nn.Dense(3, in_units=8))
net.initialize(mx.init.Xavier())
hvd.broadcast_parameters(net.collect_params(), root_rank=0)
options = {"lr_scheduler": mx.lr_scheduler.FactorScheduler(step=5, factor=0.9, base_lr=0.01)}
trainer = hvd.DistributedTrainer(net.collect_params(), "adam", options)
loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
checkpoint = Checkpoint(net, trainer, every=int(os.environ.get("EVERY", "2")))
for epoch in checkpoint.epochs(3):
    order = np.random.permutation(len(images)).reshape(-1, BATCH)
    for rows in checkpoint.batches(order):
        with autograd.record():
            loss = loss_of(net(mx.nd.array(images[rows])), mx.nd.array(labels[rows]))
        loss.backward()
        trainer.step(BATCH)
        stepped(float(loss.sum().asscalar()).hex())
trained = [p.data() for p in net.collect_params().values() if p.grad_req != "null"]
say("weights", digest(trained), ".")
mx.nd.waitall()
"""
)

MODULE = (
    COMMON
    + """
symbol = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=8)
symbol = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(symbol, num_hidden=3), name="softmax")
train = mx.io.NDArrayIter(images, labels, BATCH)
module = mx.mod.Module(symbol)
module.bind(train.provide_data, train.provide_label)
module.init_params(mx.init.Xavier())
arguments, auxiliary = module.get_params()
hvd.broadcast_parameters(arguments, root_rank=0)
hvd.broadcast_parameters(auxiliary, root_rank=0)
module.set_params(arguments, auxiliary)
optimizer = mx.optimizer.create("adam", learning_rate=0.01, rescale_grad=1 / BATCH)
checkpoint = Checkpoint(every=2)
checkpoint.fit(
    module,
    train,
    num_epoch=3,
    kvstore=None,
    optimizer=hvd.DistributedOptimizer(optimizer),
    batch_end_callback=lambda _: stepped(module.get_outputs()[0].asnumpy().tobytes().hex()[:16]),
)
say("weights", digest(module.get_params()[0].values()), ".")
mx.nd.waitall()
"""
)

SCRIPTS = {"gluon": GLUON, "module": MODULE}


class Job:
    """The ranks of a job, without a supervisor: processes with Horovod's variables.

    Args:
        path: where the script and what each rank prints is written.
        script: the script.
        size: number of ranks.
        variables: further variables.
        shared: whether all ranks have one directory of checkpoints.
    """

    def __init__(
        self, path: Path, script: str, size: int, variables: Mapping[str, str], shared: bool = True
    ) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "train.py").write_text(script)
        self._server = RendezvousServer()
        port = self._server.start()
        slots = get_host_assignments(parse_hosts(f"localhost:{size}"), size)
        self._server.init(slots)
        environ = {
            **os.environ,
            "HOROVOD_SIZE": str(size),
            "HOROVOD_LOCAL_SIZE": str(size),
            "HOROVOD_CROSS_RANK": "0",
            "HOROVOD_CROSS_SIZE": "1",
            "HOROVOD_HOSTNAME": "localhost",
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_FUSION_THRESHOLD": "0",  # else sums depend on what is fused with what
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        self.outputs = [path / f"output-{rank}" for rank in range(size)]
        self.processes = []
        for rank, output in enumerate(self.outputs):
            checkpoints = path / ("checkpoints" if shared else f"checkpoints-{rank}")
            own = {"HOROVOD_RANK": str(rank), "HOROVOD_LOCAL_RANK": str(rank)}
            own["SM_CHECKPOINT_DIR"] = str(checkpoints)
            with open(output, "wb") as file:
                command = [sys.executable, str(path / "train.py")]
                self.processes.append(
                    subprocess.Popen(
                        command, env={**environ, **own}, stdout=file, stderr=subprocess.STDOUT
                    )
                )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self._server.stop()

    def end(self, rank: int) -> int:
        return self.processes[rank].wait(120)

    def output(self, rank: int) -> str:
        return self.outputs[rank].read_text()


def run(path: Path, kind: str, size: int = 2, **variables: str) -> List[str]:
    """Run a job to its end, and return what each rank printed."""
    with Job(path, SCRIPTS[kind], size, variables) as job:
        statuses = [job.end(rank) for rank in range(size)]
        assert statuses == [0] * size, job.output(0)
        return [job.output(rank) for rank in range(size)]


def kill(path: Path, kind: str, rank: int, step: int, size: int = 2) -> None:
    """Run a job in which a rank is killed after a step."""
    with Job(path, SCRIPTS[kind], size, {"KILL": f"{rank}:{step}"}) as job:
        assert job.end(rank) == -signal.SIGKILL, job.output(rank)
        assert all(job.end(other) != 0 for other in range(size))


def losses(output: str) -> Dict[int, str]:
    return {int(number): loss for number, loss in re.findall(r"step (\d+) (\S+) \.", output)}


def weights(output: str) -> str:
    return re.findall(r"weights (\S+) \.", output)[0]


def resumed_at(output: str) -> int:
    return int(re.findall(r"resuming from \S+ step (\d+),", output)[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], List[str]]:
    """Give a function that returns what an uninterrupted job prints, run once."""

    @functools.lru_cache(maxsize=None)
    def outputs(kind: str, size: int) -> List[str]:
        return run(tmp_path_factory.mktemp("whole"), kind, size)

    return outputs


Whole = Callable[[str, int], List[str]]


def compare(outputs: List[str], whole: List[str]) -> int:
    """Compare a resumed job with an uninterrupted one; return the step it resumed from."""
    step = resumed_at(outputs[0])
    for output, expected in zip(outputs, whole):
        assert losses(output) == {n: loss for n, loss in losses(expected).items() if n > step}
        assert weights(output) == weights(expected) == weights(whole[0])
    return step


def test_module_whose_rank_was_killed_resumes(tmp_path: Path, whole: Whole) -> None:
    """Gluon's ``Trainer`` is in ``tests/survival/test_horovod.py``."""
    kill(tmp_path, "module", rank=1, step=17)
    assert compare(run(tmp_path, "module"), whole("module", 2)) >= 13


def test_only_rank_0_writes_and_needs_the_file(tmp_path: Path, whole: Whole) -> None:
    with Job(tmp_path, GLUON, 2, {"KILL": "0:7"}, shared=False) as job:
        assert job.end(0) == -signal.SIGKILL, job.output(0)
        job.end(1)
    assert catalog.listing(str(tmp_path / "checkpoints-0"))
    assert not (tmp_path / "checkpoints-1").exists()
    with Job(tmp_path, GLUON, 2, {}, shared=False) as job:
        assert [job.end(0), job.end(1)] == [0, 0], job.output(1)
        compare([job.output(0), job.output(1)], whole("gluon", 2))


def test_stop_is_answered_by_rank_0(tmp_path: Path) -> None:
    """The others train on until their supervisor ends them: here, until rank 0 has left."""
    # At a stop between two points of the schedule, MXNet's own generators are not seeded.
    variables = {"DROPOUT": "0", "EVERY": "1000"}
    with Job(tmp_path, GLUON, 2, {**variables, "PAUSE": "0.05"}) as job:
        eventually(lambda: "step 5 " in job.output(0), "step 5")
        for process in reversed(job.processes):
            process.send_signal(signal.SIGTERM)
        assert job.end(0) == 128 + signal.SIGTERM, job.output(0)
        assert "stopping after step" in job.output(0)
        assert job.end(1) != 0
        assert "stopping after step" not in job.output(1)
    [entry] = catalog.listing(str(tmp_path / "checkpoints"))
    whole = run(tmp_path / "whole", "gluon", **variables)
    assert compare(run(tmp_path, "gluon", **variables), whole) == entry.step >= 5


def test_checkpoint_before_init_is_an_error(tmp_path: Path) -> None:
    script = GLUON.replace("checkpoint = Checkpoint(", "hvd.shutdown()\ncheckpoint = Checkpoint(")
    with Job(tmp_path, script, 2, {}) as job:
        assert [job.end(0), job.end(1)] == [1, 1]
        assert "call hvd.init()" in job.output(0)
