"""Trains dense layers: over the kvstore, with the optimizer on the servers, or with Horovod."""

import argparse
import os
import time

import mxnet as mx
from marks import mark
from mxnet import autograd, gluon

parser = argparse.ArgumentParser()
parser.add_argument("--layers", type=int)
parser.add_argument("--width", type=int)
parser.add_argument("--steps", type=int)
parser.add_argument("--checkpoints", type=int, default=0)
parser.add_argument("--horovod", type=int, default=0)
parser.add_argument("--exchange", type=int, default=0, help="of gradients, and the optimizer, only")
arguments = parser.parse_args()

BATCH = 16
WARM_UP = 3

net = gluon.nn.HybridSequential()
for _ in range(arguments.layers):
    net.add(gluon.nn.Dense(arguments.width, in_units=arguments.width, use_bias=False))
net.initialize(mx.init.Xavier())
net.hybridize(static_alloc=True)
if arguments.horovod:
    import horovod.mxnet as hvd

    hvd.init()
    hvd.broadcast_parameters(net.collect_params())
    trainer = hvd.DistributedTrainer(net.collect_params(), "sgd", {"learning_rate": 1e-4})
else:
    kv = mx.kv.create("dist_sync")
    trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 1e-4}, kvstore=kv)
loss = gluon.loss.L2Loss()
data = mx.nd.random.normal(shape=(BATCH, arguments.width))


def step():
    if arguments.exchange:
        for parameter in net.collect_params().values():
            parameter.data()._fresh_grad = True  # as backward() marks it
        trainer.step(BATCH)
        mx.nd.waitall()  # as the next forward pass needs the weights
        return
    with autograd.record():
        error = loss(net(data), data)
    error.backward()
    trainer.step(BATCH)


def numbered(count):
    """Yield the numbers of the steps."""
    if not arguments.checkpoints:
        yield from range(count)
        return
    from sagemaker_mxnet_training.checkpoints import Checkpoint, catalog

    checkpoint = Checkpoint(net, trainer)
    for _ in checkpoint.epochs(1):
        yield from checkpoint.batches(range(count))
    written = catalog.listing(os.path.join(os.environ["SAGEMAKER_BASE_DIR"], "checkpoints"))
    mark("checkpoints", written[-1].number - 1 if written else 0)  # but for that of the end


if arguments.exchange:
    with autograd.record():
        error = loss(net(data), data)
    error.backward()
total = WARM_UP + arguments.steps
for number in numbered(total):
    if number == WARM_UP:
        mx.nd.waitall()
        mark("training")
        began = time.monotonic()
    step()
    if number == total - 1:
        mx.nd.waitall()
        mark("steps_per_second", arguments.steps / (time.monotonic() - began))
mark("trained")
