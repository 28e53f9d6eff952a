"""Trains the network of ``train.py`` with Horovod: a process for each GPU, or as many as asked for.

Every process trains on its own part of the images; Horovod adds up the gradients. Run it with

    sagemaker-mxnet-training local --hosts 2 --processes-per-host 2 examples/digits/train_horovod.py

or give it to ``sagemaker.mxnet.MXNet`` as ``entry_point``, with ``distribution={"mpi": {"enabled":
True, "processes_per_host": 2}}``. The image needs Horovod (``scripts/build-image.sh --horovod``).
"""

import argparse
import os

import horovod.mxnet as hvd
import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from train import accuracy, build_network, load_data

from sagemaker_mxnet_training.training_utils import save


def parse_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="of each process")
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model-dir", default=os.environ.get("SM_MODEL_DIR", "model"))
    return parser.parse_args()


def main():
    args = parse_arguments()
    hvd.init()
    rank, size = hvd.rank(), hvd.size()
    mx.random.seed(args.seed)
    # All processes of a host see all of its GPUs; each takes one.
    device = mx.gpu(hvd.local_rank()) if mx.context.num_gpus() else mx.cpu()

    images, labels, validation_images, validation_labels = load_data(args.seed)
    # Every process must make the same number of steps.
    steps = len(images) // size // args.batch_size
    if steps == 0:
        raise SystemExit(f"--batch-size {args.batch_size}: a process has fewer images than that")
    images = mx.nd.array(images[rank::size], ctx=device)
    labels = mx.nd.array(labels[rank::size], ctx=device)
    validation_images = mx.nd.array(validation_images, ctx=device)
    print(f"rank={rank} size={size} local_rank={hvd.local_rank()} steps={steps}", flush=True)

    net = build_network(device)
    parameters = net.collect_params()
    # All begin with the weights of the first process, as soon as a batch has given them shapes.
    hvd.broadcast_parameters(parameters, root_rank=0)
    # Its step divides by the number of processes: step() gets the batch size of one of them.
    trainer = hvd.DistributedTrainer(parameters, "adam", {"learning_rate": args.lr})
    loss_of = gluon.loss.SoftmaxCrossEntropyLoss()

    shuffle = np.random.RandomState(args.seed)
    for epoch in range(args.epochs):
        order = mx.nd.array(shuffle.permutation(len(images)), ctx=device)
        for batch in order[: steps * args.batch_size].reshape((steps, args.batch_size)):
            with autograd.record():
                loss = loss_of(net(images.take(batch)), labels.take(batch))
            loss.backward()
            trainer.step(args.batch_size)
        if rank == 0:
            measured = accuracy(net, validation_images, validation_labels)
            print(f"epoch={epoch + 1} validation-accuracy={measured:.4f}", flush=True)

    mx.nd.waitall()  # if a process exits before its last step is done, the others fail
    if rank == 0:
        save(args.model_dir, net)


if __name__ == "__main__":
    main()
