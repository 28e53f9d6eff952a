"""The job's entry point: trains on the channels that it was given, on its host's part of them."""

import json
import os

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from network import build
from tabulate import tabulate

from sagemaker_mxnet_training.training_utils import save


def load(channel):
    """Return images and labels of a channel."""
    with np.load(os.path.join(os.environ[f"SM_CHANNEL_{channel.upper()}"], "digits.npz")) as data:
        return data["images"], data["labels"]


def main():
    # SM_HPS keeps the JSON types; on the command line everything is text.
    hyperparameters = json.loads(os.environ["SM_HPS"])
    rows = [(name, type(value).__name__, value) for name, value in hyperparameters.items()]
    print(tabulate(rows, ["hyperparameter", "type", "value"]), flush=True)
    batch = hyperparameters["batch-size"]
    hosts = json.loads(os.environ["SM_HOSTS"])
    index = hosts.index(os.environ["SM_CURRENT_HOST"])

    images, labels = load("train")
    steps = len(images) // len(hosts) // batch  # the same on every host, as dist_sync needs it
    images, labels = (
        mx.nd.array(images[index :: len(hosts)]),
        mx.nd.array(labels[index :: len(hosts)]),
    )
    validation_images, validation_labels = load("validation")

    mx.random.seed(1)
    net = build(hyperparameters["layers"], hyperparameters["hybridize"])
    net.initialize(mx.init.Xavier())
    kv = mx.kv.create("dist_sync" if "DMLC_ROLE" in os.environ else "local")
    trainer = gluon.Trainer(
        net.collect_params(),
        "adam",
        {"learning_rate": hyperparameters["learning-rate"], **hyperparameters["optimizer"]},
        kvstore=kv,
    )
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    for epoch in range(1, hyperparameters["epochs"] + 1):
        order = mx.nd.array(np.random.RandomState(epoch).permutation(len(images)))
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            with autograd.record():
                loss = loss_of(net(images.take(chosen)), labels.take(chosen))
            loss.backward()
            trainer.step(batch * kv.num_workers)
        predicted = net(mx.nd.array(validation_images)).argmax(axis=1).asnumpy()
        accuracy = float((predicted == validation_labels).mean())
        print(f"epoch={epoch} validation-accuracy={accuracy:.4f}", flush=True)

    save(os.environ["SM_MODEL_DIR"], net)


if __name__ == "__main__":
    main()
