"""Writes checkpoints to a directory atomically, in a thread, and deletes old ones."""

import contextlib
import errno
import logging
import os
import threading
import time
from typing import Dict, Iterable, List, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.atomic_files import naming, try_lock
from sagemaker_mxnet_toolkit.failure import FailureKind
from sagemaker_mxnet_toolkit.processes.child_report import Report
from sagemaker_mxnet_training.checkpoints import catalog, checkpoint_file
from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointError, Member

_LOG = logging.getLogger("sagemaker_mxnet_training.checkpoints")

LOCK = ".in-use" + catalog.IGNORED
"""The lock file of a directory, with a description of the process that has locked it."""

PATIENCE_S = 5.0
"""Seconds to wait for a locked directory, since the script of a killed job may be about to end."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_locks: Dict[Tuple[int, int], int] = {}  # device and inode of a directory: its lock


def lock(directory: str, owner: str) -> None:
    """Create a directory if needed, and lock it until this process ends.

    Args:
        directory: the directory of checkpoints.
        owner: description of this process, for the error of another one.

    Raises:
        CheckpointError: this process or another one has locked it.
        OSError: it cannot be created or written.
    """
    os.makedirs(directory, exist_ok=True)
    status = os.stat(directory)
    key = status.st_dev, status.st_ino
    if key in _locks:
        raise CheckpointError(
            f"this script already has a Checkpoint in {directory}, and a second one would mix "
            "their weights: pass all networks and trainers to one, Checkpoint([a, b], [trainer_a, "
            "trainer_b]), or use different directories"
        )
    path = os.path.join(directory, LOCK)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not try_lock(descriptor):
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 1024, 0).decode("utf-8", "replace")
                raise CheckpointError(
                    f"{directory} is in use by {holder or 'another process'}: wait until it ends, "
                    "or use another directory"
                )
            time.sleep(0.05)
        with naming(path):
            with contextlib.suppress(PermissionError):  # the file of another user
                os.fchmod(descriptor, 0o666)  # the next job may run as another user
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner.encode("utf-8", "replace"), 0)
    except BaseException:
        os.close(descriptor)
        raise
    _locks[key] = descriptor


def unlock() -> None:
    """Close the locks in a forked child, which would keep them after the end of its parent."""
    for descriptor in _locks.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=unlock)


def check_space(directory: str, size: int) -> None:
    """Check that a checkpoint can be written to a directory.

    Args:
        directory: an existing directory.
        size: minimum size of a checkpoint in bytes.

    Raises:
        OSError: it cannot be written, with the path.
    """
    prepare(directory)
    name = catalog.temporary_name(catalog.next_name(os.listdir(directory), 0))
    path = os.path.join(directory, name)
    try:
        with naming(path), open(path, "xb") as file:
            file.write(bytes(4096))
            file.flush()
            try:
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            except OSError as error:  # not supported by some file systems
                if error.errno in _NO_SPACE:
                    raise
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def prepare(directory: str) -> None:
    """Create the directory if needed, and delete incomplete files of a killed process.

    Raises:
        OSError: the directory cannot be created or read.
    """
    os.makedirs(directory, exist_ok=True)
    for name in catalog.leftovers(os.listdir(directory)):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))


def commit(directory: str, step: int, members: Iterable[Member]) -> str:
    """Write a checkpoint atomically and flush it; return its file's name.

    Args:
        directory: an existing directory, to which only one process writes.
        step: number of completed steps.
        members: see ``checkpoint_file.write``.

    Raises:
        OSError: it cannot be written, with the path. No file is left.
        CheckpointError: raised by ``members``.
    """
    name = catalog.next_name(os.listdir(directory), step)
    temporary = os.path.join(directory, catalog.temporary_name(name))
    try:
        with naming(temporary):
            with open(temporary, "xb") as file:
                checkpoint_file.write(file, members)
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
    """Delete expired checkpoints (``catalog.expired``). Errors are ignored."""
    names: List[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(directory)
    for name in catalog.expired(names, keep, inherited):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))


def _flush(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not supported by some network file systems
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class UnwrittenError(CheckpointError):
    """A required checkpoint, the first or the last one, cannot be written.

    Args:
        text: the message.
        error: the cause; an ``OSError`` with a path is a problem of the directory.
    """

    def __init__(self, text: str, error: BaseException) -> None:
        super().__init__(text)
        if isinstance(error, OSError) and error.filename is not None:
            self.kind = FailureKind.CHECKPOINT


class Writer:
    """Writes one checkpoint at a time in a thread.

    Args:
        directory: the directory, created when it is first needed.
        keep: number of checkpoints to keep.
        report: gets an event ``checkpoint`` with ``file``, ``step``, ``epoch`` and ``batch`` for
            each complete checkpoint.

    Attributes:
        resumed_from: name of the file that training has resumed from, which is in S3.
        cost_s: cost of the last checkpoint in seconds: the pause of training and the CPU time of
            the thread.
    """

    def __init__(self, directory: str, keep: int, report: Report) -> None:
        self.resumed_from: Optional[str] = None
        self.cost_s = 0.0
        self._directory = directory
        self._keep = keep
        self._report = report
        self._thread: Optional[threading.Thread] = None
        self._failure: Optional[BaseException] = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, position: Mapping[str, int], members: Iterable[Member], waited: float) -> None:
        """Start writing a checkpoint.

        Args:
            position: ``step``, ``epoch`` and ``batch``.
            members: the file's members, consumed in the thread.
            waited: seconds that training was paused for them.
        """
        self._failure = None
        self.cost_s = waited
        self._thread = threading.Thread(
            target=self._write, args=(position, members), name="checkpoint"
        )
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint could not be written."""
        return self._failure is not None

    def fail(self, step: int, error: BaseException) -> None:
        """Log that a checkpoint cannot be written; ``raise_failure`` raises the error."""
        self._failure = error
        _LOG.warning("the checkpoint of step %d cannot be written: %s", step, _reason(error))

    def join(self) -> None:
        """Wait until no checkpoint is being written."""
        if self._thread is not None:
            self._thread.join()

    def raise_failure(self) -> None:
        """Raise the error of the last checkpoint, if it failed.

        Raises:
            UnwrittenError: the last checkpoint was not written.
        """
        if self._failure is not None:
            text = f"the last checkpoint cannot be written: {_reason(self._failure)}"
            raise UnwrittenError(text, self._failure) from self._failure

    def _write(self, position: Mapping[str, int], members: Iterable[Member]) -> None:
        started, cpu = time.monotonic(), time.thread_time()
        try:
            prepare(self._directory)
            name = commit(self._directory, position["step"], members)
            seconds = round(time.monotonic() - started, 3)
            self._report.event("checkpoint", file=name, seconds=seconds, **position)
            retain(self._directory, self._keep, self.resumed_from)
        except Exception as error:
            self.fail(position["step"], error)
        self.cost_s += time.thread_time() - cpu


def _reason(error: BaseException) -> str:
    if isinstance(error, (CheckpointError, OSError)):
        return str(error)
    return f"{type(error).__name__}: {error}"
