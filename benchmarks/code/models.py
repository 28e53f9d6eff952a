"""Makes the models and the bodies that are served: ``models.py DIRECTORY``."""

import json
import sys
from pathlib import Path

import mxnet as mx
import numpy as np

from sagemaker_mxnet_training.training_utils import save


def mlp(directory: Path) -> None:
    """Save a Module: 784 inputs, layers of 256, 128 and 10."""
    net = mx.sym.Variable("data")
    for units in (256, 128):
        net = mx.sym.Activation(mx.sym.FullyConnected(net, num_hidden=units), act_type="relu")
    net = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(net, num_hidden=10), name="softmax")
    module = mx.mod.Module(net)
    module.bind([("data", (1, 784))], [("softmax_label", (1,))])
    module.init_params(mx.init.Xavier())
    save(str(directory), module)


def resnet(directory: Path) -> None:
    """Save ResNet-18 with random parameters."""
    net = mx.gluon.model_zoo.vision.resnet18_v1()
    net.initialize(mx.init.Xavier())
    net.hybridize()
    net(mx.nd.zeros((1, 3, 224, 224)))
    save(str(directory), net)


def bodies(directory: Path, shape: tuple) -> None:
    """Write one row as JSON, CSV and NPY."""
    row = np.random.RandomState(1).rand(1, *shape).astype("float32")
    (directory / "body.json").write_text(json.dumps(row.tolist()))
    (directory / "body.csv").write_text(",".join(map(str, row.ravel())))
    np.save(directory / "body.npy", row)


if __name__ == "__main__":
    mx.random.seed(1)
    for name, build, shape in (("mlp", mlp, (784,)), ("resnet", resnet, (3, 224, 224))):
        directory = Path(sys.argv[1], name)
        (directory / "model").mkdir(parents=True)
        build(directory / "model")
        bodies(directory, shape)
