"""Checkpoints for training scripts: a job that was stopped or killed goes on where it was.

    checkpoint = Checkpoint(net, trainer)
    for epoch in checkpoint.epochs(10):
        for data, label in checkpoint.batches(loader):
            ...

``catalog`` lists and verifies checkpoint files and imports neither MXNet nor NumPy, nor does this.

Experimental, and not documented for users yet. Known faults: on two hosts a stop ends the first
host at once, and the others only after ``stop_grace``; and a script that passes a kvstore object of
its own to the ``Trainer`` may fail to resume on two hosts ("init 1 first" on a server).
"""

from sagemaker_mxnet_training.checkpoints.checkpoint import Checkpoint
from sagemaker_mxnet_training.checkpoints.errors import CheckpointError

__all__ = ["Checkpoint", "CheckpointError"]
