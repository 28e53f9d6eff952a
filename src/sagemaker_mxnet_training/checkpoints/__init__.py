"""Checkpoints for training scripts: a job that was stopped or killed goes on where it was.

    checkpoint = Checkpoint(net, trainer)
    for epoch in checkpoint.epochs(10):
        for data, label in checkpoint.batches(loader):
            ...

``catalog`` lists and verifies checkpoint files and imports neither MXNet nor NumPy, nor does this.
"""

from sagemaker_mxnet_training.checkpoints.checkpoint import Checkpoint
from sagemaker_mxnet_training.checkpoints.errors import CheckpointError

__all__ = ["Checkpoint", "CheckpointError"]
