"""A script is killed after its last checkpoint and before it saves its model.

The next attempt has no epoch left, so it never calls the network.
"""

from pathlib import Path
from typing import Dict

import pytest

from sagemaker_mxnet_toolkit.model_files import PARAMS, SHAPES, SYMBOL
from tests.support.jobs import job

BEGIN = """
import signal
import mxnet as mx
from mxnet import autograd, gluon
from sagemaker_mxnet_training.checkpoints import Checkpoint
from sagemaker_mxnet_training.training_utils import save

mx.random.seed(3)
kvstore = os.environ["KVSTORE"]
data = [mx.nd.array([[number, 1, 2], [2, number, 1]]) for number in range(5)]
"""

GLUON = """
model = gluon.nn.HybridSequential(prefix="net_")
with model.name_scope():
    model.add(gluon.nn.Dense(4, in_units=3), gluon.nn.BatchNorm(in_channels=4))
    model.add(gluon.nn.Dropout(0.5), gluon.nn.Dense(2, in_units=4))
model.initialize(mx.init.Xavier())
model.hybridize()
trainer = gluon.Trainer(model.collect_params(), "adam", kvstore=kvstore)
checkpoint = Checkpoint(model, trainer)


def train(batch):
    with autograd.record():
        loss = (model(batch) ** 2).sum()
    loss.backward()
    trainer.step(2)
"""

TRAIN = {
    "epochs": GLUON
    + """
for _ in checkpoint.epochs(2):
    for batch in checkpoint.batches(data):
        train(batch)
""",
    "own loop": GLUON
    + """
for _ in range(2):
    for batch in checkpoint.batches(data):
        train(batch)
checkpoint.save()
""",
    "fit": """
hidden = mx.sym.BatchNorm(mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=4))
output = mx.sym.LinearRegressionOutput(mx.sym.FullyConnected(hidden, num_hidden=1), name="out")
model = mx.mod.Module(output, label_names=["out_label"])
rows = mx.nd.concat(*data, dim=0)
batches = mx.io.NDArrayIter(rows, rows.sum(axis=1), batch_size=2, label_name="out_label")
Checkpoint().fit(
    model, batches, num_epoch=2, optimizer="adam", kvstore=kvstore, eval_metric="mse"
)
""",
}

END = """
if "KILLED" in os.environ and os.environ["SAGEMAKER_MXNET_RESTART_COUNT"] == "0":
    if host == "algo-1":
        os.kill(os.getpid(), signal.SIGKILL)
save(os.environ["SM_MODEL_DIR"], model)
"""


def model(path: Path, train: str, hosts: int, **env: str) -> Dict[str, bytes]:
    """Run a job; return the files of its model."""
    with job(
        path,
        BEGIN + TRAIN[train] + END,
        hosts,
        env={"KVSTORE": "dist_sync" if hosts > 1 else "device", **env},
        parameter_server=hosts > 1,
    ) as cluster:
        end = cluster[1].ended()
        directory = cluster[1].base / "model"
    assert end.success, end.output
    assert ("restarting (attempt 2)" in end.output) == ("KILLED" in env)
    return {name: (directory / name).read_bytes() for name in (PARAMS, SHAPES, SYMBOL)}


@pytest.mark.parametrize(
    "train, hosts", [("epochs", 1), ("epochs", 2), ("own loop", 1), ("fit", 1), ("fit", 2)]
)
def test_model_is_that_of_an_uninterrupted_run(tmp_path: Path, train: str, hosts: int) -> None:
    whole = model(tmp_path / "whole", train, hosts)
    assert model(tmp_path / "killed", train, hosts, KILLED="1") == whole
