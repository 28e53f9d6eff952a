"""Writes checkpoints beside training, one at a time."""

import logging
import threading
import time
from typing import Iterable, Mapping, Optional

from sagemaker_mxnet_toolkit.processes.child_report import Report
from sagemaker_mxnet_training.checkpoints import storage
from sagemaker_mxnet_training.checkpoints.archive import Member
from sagemaker_mxnet_training.checkpoints.errors import CheckpointError, UnwrittenError

_LOG = logging.getLogger("sagemaker_mxnet_training.checkpoints")


class Writer:
    """Writes one checkpoint at a time in a thread.

    Args:
        directory: where to; made when it is first needed.
        keep: checkpoints to keep.
        report: is told of each checkpoint that is complete, by an event ``checkpoint`` with
            ``file``, ``step``, ``epoch`` and ``batch``.
    """

    def __init__(self, directory: str, keep: int, report: Report) -> None:
        self._directory = directory
        self._keep = keep
        self.inherited: Optional[str] = None
        """Name of the file that training goes on from, which S3 has."""
        self._report = report
        self._thread: Optional[threading.Thread] = None
        self._failure: Optional[BaseException] = None
        self.cost = 0.0
        """Seconds that the last checkpoint took: training waited, and this thread used a CPU."""

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, position: Mapping[str, int], members: Iterable[Member], waited: float) -> None:
        """Begin to write a checkpoint.

        Args:
            position: ``step``, ``epoch`` and ``batch``.
            members: the file's members; consumed in the thread.
            waited: seconds that training waited for them.
        """
        self._failure = None
        self.cost = waited
        self._thread = threading.Thread(
            target=self._write, args=(position, members), name="checkpoint"
        )
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint could not be written."""
        return self._failure is not None

    def fail(self, step: int, error: BaseException) -> None:
        """Warn that a checkpoint cannot be written; ``wait`` raises it."""
        self._failure = error
        _LOG.warning("the checkpoint of step %d is not written: %s", step, _reason(error))

    def settle(self) -> None:
        """Wait until no checkpoint is being written."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Wait for the last checkpoint.

        Raises:
            UnwrittenError: when it was not written.
        """
        self.settle()
        if self._failure is not None:
            text = f"the last checkpoint is not written: {_reason(self._failure)}"
            raise UnwrittenError(text) from self._failure

    def _write(self, position: Mapping[str, int], members: Iterable[Member]) -> None:
        began, cpu = time.monotonic(), time.thread_time()
        try:
            storage.prepare(self._directory)
            name = storage.commit(self._directory, position["step"], members)
        except Exception as error:
            self.fail(position["step"], error)
            return
        seconds = round(time.monotonic() - began, 3)
        self._report.event("checkpoint", file=name, seconds=seconds, **position)
        storage.retain(self._directory, self._keep, self.inherited)
        self.cost += time.thread_time() - cpu


def _reason(error: BaseException) -> str:
    if isinstance(error, (CheckpointError, OSError)):
        return str(error)
    return f"{type(error).__name__}: {error}"
