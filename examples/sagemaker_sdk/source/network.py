"""A helper module beside the entry point: the network."""

from mxnet.gluon import nn


def build(layers, hybridize):
    """Return a fully connected network with ten outputs.

    Args:
        layers: widths of the hidden layers.
        hybridize: compile it; only a hybridized network can be saved for inference.
    """
    net = nn.HybridSequential()
    net.add(nn.Flatten())
    for width in layers:
        net.add(nn.Dense(width, activation="relu"))
    net.add(nn.Dense(10))
    if hybridize:
        net.hybridize()
    return net
