"""Training with Horovod: the same result as in one process, and the example."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.horovod,
    pytest.mark.skipif(
        importlib.util.find_spec("horovod") is None,
        reason="needs Horovod, which scripts/horovod-wheel.sh installs",
    ),
]

TRAIN = """
import os

import horovod.mxnet as hvd
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon

hvd.init()
mx.random.seed(hvd.rank())  # the first rank's weights count
net = gluon.nn.HybridSequential()
net.add(gluon.nn.Dense(16, activation="relu", in_units=8), gluon.nn.Dense(1, in_units=16))
net.initialize(mx.init.Xavier())
parameters = net.collect_params()
hvd.broadcast_parameters(parameters, root_rank=0)
trainer = hvd.DistributedTrainer(parameters, "adam", {"learning_rate": 0.01})
rows = np.random.RandomState(1).normal(size=(20, 32, 8)).astype("float32")
for step, batch in enumerate(rows):
    data = mx.nd.array(batch[hvd.rank() :: hvd.size()])
    with autograd.record():
        loss = ((net(data) - data.sum(axis=1, keepdims=True)) ** 2).mean()
    loss.backward()
    trainer.step(1)
    mean = hvd.allreduce(loss, name="loss").asscalar()
    if hvd.rank() == 0:
        os.write(1, f"loss {step} {float(mean)!r}\\n".encode())  # print makes several writes
weights = hvd.allgather(mx.nd.stack(*[p.data().norm().reshape(1) for p in parameters.values()]).T)
assert (weights.asnumpy() == weights.asnumpy()[0]).all(), "all ranks have the same weights"
"""


def local(directory: Path, *words: str) -> str:
    argv = [sys.executable, "-m", "sagemaker_mxnet_training", "local", *words]
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(directory: Path, hosts: int, processes: int) -> List[float]:
    options = ("--hosts", str(hosts), "--processes-per-host", str(processes))
    output = local(directory, *options, "--run-dir", f"run-{hosts}-{processes}", "train.py")
    return [float(value) for value in re.findall(r"loss \d+ (\S+)$", output, re.MULTILINE)]


@pytest.mark.parametrize("first", ["horovod.mxnet", "mxnet"])
def test_other_extensions_can_be_imported_afterwards(first: str) -> None:
    """Horovod made C++ symbols of MXNet's library global: ``import onnx`` crashed."""
    source = f"import {first}, horovod.mxnet as hvd, onnx; hvd.init(); print(hvd.size())"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.parametrize(("hosts", "processes"), [(2, 2), (1, 2)])
def test_ranks_train_what_one_process_trains(tmp_path: Path, hosts: int, processes: int) -> None:
    source = tmp_path / "train.py"
    source.write_text(TRAIN)
    alone = losses(tmp_path, 1, 1)
    assert len(alone) == 20
    assert losses(tmp_path, hosts, processes) == pytest.approx(alone, abs=1e-6, rel=1e-6)


def test_example_learns_the_digits(tmp_path: Path) -> None:
    script = ROOT / "examples/digits/train_horovod.py"
    options = ("--hosts", "2", "--processes-per-host", "2", "--run-dir", str(tmp_path / "run"))
    output = local(tmp_path, *options, str(script), "--epochs", "6")
    reached = re.findall(r"validation-accuracy=([\d.]+)", output)
    assert float(reached[-1]) > 0.9, output
    model = tmp_path / "run" / "algo-1" / "model"
    assert "model-0000.params" in os.listdir(model)
