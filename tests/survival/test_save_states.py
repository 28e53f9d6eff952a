"""MXNet's own way to save an optimizer's state names the way that works with a kvstore."""

from pathlib import Path

import pytest

from tests.support.jobs import job

TRAINER = """
import mxnet as mx
from mxnet import autograd, gluon
net = gluon.nn.Dense(1)
net.initialize()
trainer = gluon.Trainer(net.collect_params(), "adam", kvstore="dist_sync")
with autograd.record():
    loss = net(mx.nd.ones((1, 2)))
loss.backward()
trainer.step(1)
trainer.%s_states("/tmp/never")
"""

MODULE = """
import mxnet as mx
symbol = mx.sym.LinearRegressionOutput(mx.sym.FullyConnected(mx.sym.Variable("data"),
                                       num_hidden=1), name="out")
data = mx.io.NDArrayIter(mx.nd.ones((4, 2)), mx.nd.ones((4,)), 2, label_name="out_label")
module = mx.mod.Module(symbol, label_names=["out_label"])
module.fit(data, num_epoch=1, kvstore="dist_sync")
module.save_optimizer_states("/tmp/never")
"""


@pytest.mark.parametrize(
    "body, verb",
    [(TRAINER % "save", "saved"), (TRAINER % "load", "loaded"), (MODULE, "saved")],
    ids=["Trainer.save_states", "Trainer.load_states", "Module.save_optimizer_states"],
)
def test_the_error_says_what_to_do(tmp_path: Path, body: str, verb: str) -> None:
    with job(tmp_path, body, parameter_server=True) as cluster:
        end = cluster[1].ended()
    assert f"the optimizer's state cannot be {verb} here" in end.cause
    assert "sagemaker_mxnet_training.checkpoints.Checkpoint(net, trainer)" in end.cause
