"""Puts checkpoints into a directory, each as a whole or not at all, and deletes old ones."""

import contextlib
import os
from typing import Iterable, Optional

from sagemaker_mxnet_toolkit.fileset import naming
from sagemaker_mxnet_training.checkpoints import archive, catalog


def prepare(directory: str) -> None:
    """Make the directory if needed, and delete what a killed process left there.

    Raises:
        OSError: when the directory cannot be made or read.
    """
    os.makedirs(directory, exist_ok=True)
    for name in catalog.leftovers(os.listdir(directory)):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))


def commit(directory: str, step: int, members: Iterable[archive.Member]) -> str:
    """Write a checkpoint and return its file's name. The file appears complete and flushed.

    Args:
        directory: an existing directory; only one process writes into it.
        step: steps of training that were done.
        members: as ``archive.write`` takes them.

    Raises:
        OSError: when it cannot be written, with the path. Nothing is left of it then.
        CheckpointError: as ``members`` raises it.
    """
    name = catalog.next_name(os.listdir(directory), step)
    temporary = os.path.join(directory, catalog.temporary_name(name))
    try:
        with naming(temporary):
            with open(temporary, "xb") as file:
                archive.write(file, members)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, os.path.join(directory, name))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _flush(directory)
    return name


def retain(directory: str, keep: int, inherited: Optional[str] = None) -> None:
    """Delete what ``catalog.expired`` says; what cannot be deleted stays."""
    for name in catalog.expired(os.listdir(directory), keep, inherited):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))


def _flush(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems flush no directory
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
