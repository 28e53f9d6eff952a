"""Trains a graph convolution of DGL on MXNet."""

import dgl
import mxnet as mx
from dgl.nn.mxnet import GraphConv

tail, head = (mx.nd.array(nodes, dtype="int64") for nodes in ([0, 1, 2], [1, 2, 0]))
graph = dgl.graph((tail, head))
layer = GraphConv(4, 2)
layer.initialize()
trainer = mx.gluon.Trainer(layer.collect_params(), "adam", {"learning_rate": 0.1})
features = mx.nd.random.normal(shape=(3, 4))
losses = []
for _ in range(5):
    with mx.autograd.record():
        loss = ((layer(graph, features) - 1) ** 2).mean()
    loss.backward()
    trainer.step(1)
    losses.append(loss.asscalar())
assert losses[-1] < losses[0], losses
