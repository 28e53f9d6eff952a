"""Trains a small convolutional network on scikit-learn's handwritten digits, on one host or many.

Each host trains on its own part of the images; the kvstore adds up the gradients. Run it with

    sagemaker-mxnet-training local --hosts 2 --source-dir examples/digits examples/digits/train.py

or give it to ``sagemaker.mxnet.MXNet`` as ``entry_point``; hyperparameters arrive as arguments.
Started again with the same checkpoint directory, it goes on where it was.
"""

import argparse
import json
import os

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from mxnet.gluon import nn
from sklearn.datasets import load_digits

from sagemaker_mxnet_training.checkpoints import Checkpoint
from sagemaker_mxnet_training.training_utils import save


def parse_arguments(hosts):
    distributed = len(hosts) > 1 and "DMLC_ROLE" in os.environ
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="of each host")
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kvstore", default="dist_sync" if distributed else "device")
    parser.add_argument("--model-dir", default=os.environ.get("SM_MODEL_DIR", "model"))
    parser.add_argument("--checkpoint-dir", default=os.environ.get("SM_CHECKPOINT_DIR"))
    return parser.parse_args()


def load_data(seed):
    """Return training and validation images and labels, the same split on every host."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 1, 8, 8)
    order = np.random.RandomState(seed).permutation(len(images))
    validation, training = order[:360], order[360:]
    return images[training], labels[training], images[validation], labels[validation]


def build_network(device):
    net = nn.HybridSequential()
    net.add(
        nn.Conv2D(16, kernel_size=3, padding=1, activation="relu"),
        nn.MaxPool2D(2),
        nn.Conv2D(32, kernel_size=3, padding=1, activation="relu"),
        nn.Flatten(),
        nn.Dense(64, activation="relu"),
        nn.Dense(10),
    )
    net.initialize(mx.init.Xavier(), ctx=device)
    net.hybridize()  # a hybridized network is what save() can save
    return net


def accuracy(net, images, labels):
    predicted = net(images).argmax(axis=1).asnumpy()
    return float((predicted == labels).mean())


def main():
    # This host's place among all hosts, which is its kv.rank too.
    hosts = sorted(json.loads(os.environ.get("SM_HOSTS", '["localhost"]')))
    index = hosts.index(os.environ.get("SM_CURRENT_HOST", hosts[0]))
    args = parse_arguments(hosts)
    mx.random.seed(args.seed)
    device = mx.gpu() if mx.context.num_gpus() else mx.cpu()

    images, labels, validation_images, validation_labels = load_data(args.seed)
    # With dist_sync every host must make the same number of steps, or the others wait for ever.
    steps = len(images) // len(hosts) // args.batch_size
    if steps == 0:
        raise SystemExit(f"--batch-size {args.batch_size}: a host has fewer images than that")
    images = mx.nd.array(images[index :: len(hosts)], ctx=device)
    labels = mx.nd.array(labels[index :: len(hosts)], ctx=device)
    validation_images = mx.nd.array(validation_images, ctx=device)

    net = build_network(device)
    net(images[:1])  # initializes the weights, whose shapes depend on the data
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()
    kv = mx.kv.create(args.kvstore)
    print(f"{hosts[index]}: rank={kv.rank} num_workers={kv.num_workers} steps={steps}", flush=True)
    trainer = gluon.Trainer(net.collect_params(), "adam", {"learning_rate": args.lr}, kvstore=kv)

    # Resumes from the last checkpoint, if there is one; its seeds make a shuffle repeatable.
    checkpoint = Checkpoint(net, trainer, seed=args.seed, directory=args.checkpoint_dir)
    for epoch in checkpoint.epochs(args.epochs):
        order = mx.nd.array(np.random.permutation(len(images)), ctx=device)
        batches = order[: steps * args.batch_size].reshape((steps, args.batch_size))
        for batch in checkpoint.batches(batches):
            with autograd.record():
                loss = loss_of(net(images.take(batch)), labels.take(batch))
            loss.backward()
            trainer.step(args.batch_size * kv.num_workers)
        measured = accuracy(net, validation_images, validation_labels)
        print(f"epoch={epoch + 1} validation-accuracy={measured:.4f}", flush=True)

    save(args.model_dir, net)  # on the first host; the others return at once


if __name__ == "__main__":
    main()
