"""Checkpoints for training scripts: a job that was stopped or killed goes on where it was.

    checkpoint = Checkpoint(net, trainer)
    for epoch in checkpoint.epochs(10):
        for data, label in checkpoint.batches(loader):
            ...

What this package and whoever supervises the script's processes know of each other:

- ``SAGEMAKER_MXNET_RESUME`` in the environment of every role, the same on all hosts: the name of
  the file to go on from, in the script's directory of checkpoints, or ``none`` for a fresh start.
  Without it the first host takes its newest whole checkpoint, and tells the other hosts. In the
  job's own environment it is the user's choice, for the first attempt: ``local`` sets ``none``
  there, unless told to resume.
- ``catalog.newest_whole(directory)`` says which one that is. It only reads files, every byte of
  them: that takes a second for each gigabyte or so.
- The events ``checkpointing``, ``resumed`` and ``checkpoint`` (``processes.child_report`` has their
  fields).
- After a SIGTERM the first host writes a last checkpoint, reports it, and leaves with status 0.
  With a distributed kvstore the other hosts go on until they are ended, which is then.

``Checkpoint`` is imported when it is first used: ``catalog`` needs neither MXNet nor NumPy, and is
imported in 0.04 s of CPU.
"""

from typing import TYPE_CHECKING, Any

from sagemaker_mxnet_training.checkpoints.errors import CheckpointError

if TYPE_CHECKING:
    from sagemaker_mxnet_training.checkpoints.checkpoint import Checkpoint

__all__ = ["Checkpoint", "CheckpointError"]


def __getattr__(name: str) -> Any:
    if name != "Checkpoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sagemaker_mxnet_training.checkpoints.checkpoint import Checkpoint  # noqa: PLC0415

    return Checkpoint
