"""A resumed script's copy of the optimizer has the learning rate that the servers have."""

from pathlib import Path

import pytest

from tests.support.jobs import job

SCRIPT = """
import os, signal
import mxnet as mx
from mxnet import autograd, gluon
from sagemaker_mxnet_training.checkpoints import Checkpoint

net = gluon.nn.Dense(1, use_bias=False, in_units=1, weight_initializer="zeros")
net.initialize()
trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1.0}, kvstore="KVSTORE")
checkpoint = Checkpoint(net, trainer, every=1)
say("rate", trainer.learning_rate)
for epoch in checkpoint.epochs(1):
    for batch in checkpoint.batches([1, 2, 3, 4]):
        checkpoint._manager._writer.join()  # so that the next checkpoint is written
        if batch == 2:
            trainer.set_learning_rate(0.5)
        if batch == 3:
            if os.environ["SAGEMAKER_MXNET_RESTART_COUNT"] == "0":
                os.kill(os.getpid(), signal.SIGKILL)
            trainer.set_learning_rate(1.0)  # what it was made with
        with autograd.record():
            loss = net(mx.nd.ones((1, 1))).sum()
        loss.backward()
        trainer.step(1)
say("weight", net.weight.data().asscalar())
"""


@pytest.mark.parametrize("kvstore", ["dist_sync", "local"])
def test_learning_rate_after_a_resume(tmp_path: Path, kvstore: str) -> None:
    body = SCRIPT.replace("KVSTORE", kvstore)
    with job(tmp_path, body, parameter_server=kvstore == "dist_sync") as cluster:
        end = cluster[1].ended()
    assert end.success, end.output
    assert "rate 1.0" in end.output
    assert "rate 0.5" in end.output
    assert "weight [[-3.5]]" in end.output, end.output
