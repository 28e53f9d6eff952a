"""Checkpoints for training scripts: a job that was stopped or killed resumes.

    checkpoint = Checkpoint(net, trainer)
    for epoch in checkpoint.epochs(10):
        for data, label in checkpoint.batches(loader):
            ...

The interface between this package and the supervisor:

- ``SAGEMAKER_MXNET_RESUME`` in the environment of every role, the same on all hosts: the name of
  the file to resume from, in the script's checkpoint directory, or ``none`` for a fresh start. By
  default the first host selects its newest valid checkpoint for all hosts. A user may set the
  variable for the first attempt; ``local`` sets ``none`` unless it is run with ``--resume``.
- ``catalog.newest_whole(directory)`` returns that file. It reads the files completely, which takes
  about a second per gigabyte.
- The events ``checkpointing``, ``resumed``, ``checkpoint`` and ``left`` (``processes.child_report``
  documents their fields).
- After SIGTERM the first host writes a last checkpoint, reports ``checkpoint`` and ``left``, and
  exits with status 0. With a distributed kvstore the other hosts continue until they are stopped.

The names below are imported on first use: ``catalog`` needs neither MXNet nor NumPy, and a kvstore
server only needs ``server_state``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagemaker_mxnet_training.checkpoints.checkpoint import Checkpoint
    from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointError

__all__ = ["Checkpoint", "CheckpointError"]

_MODULES = {"Checkpoint": "checkpoint", "CheckpointError": "checkpoint_file"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
