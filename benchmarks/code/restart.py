"""Trains with checkpoints over the kvstore; one worker kills itself once, after the third one."""

import os
import signal
import time

import mxnet as mx
from marks import mark
from mxnet import autograd, gluon

from sagemaker_mxnet_training.checkpoints import Checkpoint, catalog

again = os.environ["SAGEMAKER_MXNET_RESTART_COUNT"] != "0"
net = gluon.nn.Dense(256, in_units=256)
net.initialize(mx.init.Xavier())
trainer = gluon.Trainer(net.collect_params(), "adam", kvstore="dist_sync")
loss = gluon.loss.L2Loss()
data = mx.nd.random.normal(shape=(16, 256))
directory = os.path.join(os.environ["SAGEMAKER_BASE_DIR"], "checkpoints")
first = os.environ["SM_CURRENT_HOST"] == "127.0.0.1"
began = False

checkpoint = Checkpoint(net, trainer, every=10)
for _ in checkpoint.epochs(1):
    for _ in checkpoint.batches(range(1500)):
        with autograd.record():
            error = loss(net(data), data)
        error.backward()
        trainer.step(16)
        if not began:
            mx.nd.waitall()
            began = True
            mark("again" if again else "step")
        if first and not again:
            time.sleep(0.01)  # training must not end before
            if len(catalog.listing(directory)) > 1:
                mark("fault")
                os.kill(os.getpid(), signal.SIGKILL)
