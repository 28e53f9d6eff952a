"""Writes checkpoints in a thread while training continues."""

import logging
import threading
import time
from typing import Iterable, Mapping, Optional

from sagemaker_mxnet_toolkit.failure import FailureKind
from sagemaker_mxnet_toolkit.processes.child_report import Report
from sagemaker_mxnet_training.checkpoints import storage
from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointError, Member

_LOG = logging.getLogger("sagemaker_mxnet_training.checkpoints")


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
            storage.prepare(self._directory)
            name = storage.commit(self._directory, position["step"], members)
            seconds = round(time.monotonic() - started, 3)
            self._report.event("checkpoint", file=name, seconds=seconds, **position)
            storage.retain(self._directory, self._keep, self.resumed_from)
        except Exception as error:
            self.fail(position["step"], error)
        self.cost_s += time.thread_time() - cpu


def _reason(error: BaseException) -> str:
    if isinstance(error, (CheckpointError, OSError)):
        return str(error)
    return f"{type(error).__name__}: {error}"
