"""Decides between two steps whether to write a checkpoint or to stop the script."""

import atexit
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterable, Iterator, Optional

from sagemaker_mxnet_toolkit.failure import signal_name
from sagemaker_mxnet_toolkit.processes.child_report import opened_report, print_whole
from sagemaker_mxnet_training.checkpoints import storage
from sagemaker_mxnet_training.checkpoints.checkpoint_file import ABOUT, CheckpointError
from sagemaker_mxnet_training.checkpoints.job_environment import JobEnvironment
from sagemaker_mxnet_training.checkpoints.loop import Loop, Position
from sagemaker_mxnet_training.checkpoints.resume import CheckpointReader
from sagemaker_mxnet_training.checkpoints.schedule import RandomSeeds, Schedule
from sagemaker_mxnet_training.checkpoints.storage import UnwrittenError, Writer
from sagemaker_mxnet_training.checkpoints.training_state import TrainingState

_LOG = logging.getLogger("sagemaker_mxnet_training.checkpoints")
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

stopping = False
"""Whether the job is stopping, while this worker trains until the first one has left; for
``roles``."""


class CheckpointManager:
    """Manages the checkpoints of a training run.

    Args:
        job: the job.
        schedule: when checkpoints are due.
        keep, seed: see ``Checkpoint``.

    Attributes:
        job: the job.
        training: the state that checkpoints contain; ``None`` until it is known.
        state: the script's own state.
        best: the best value of the script, if any.
        loop: the position in the data.
        seeds: seeds of the random generators.

    Raises:
        CheckpointError: this or another process has a ``Checkpoint`` in the same directory.
        UnwrittenError: the directory is not writable.
    """

    def __init__(
        self, job: JobEnvironment, schedule: Schedule, keep: int, seed: Optional[int]
    ) -> None:
        self.job = job
        self.training: Optional[TrainingState] = None
        self.state: Dict[str, Any] = {}
        self.best: Optional[float] = None
        self.loop = Loop()
        self.seeds = RandomSeeds(seed, job.rank, schedule.stride)
        self._report = opened_report()
        self._schedule = schedule
        self._state_checked = False
        self._first_step = 0  # step at which this run has started
        self._writer = Writer(job.directory, keep, self._report)
        # A failing script does not wait for threads. Let it finish the current checkpoint.
        atexit.register(self._writer.join)
        self._stop = StopRequest(self._on_stop)
        self._report.event("checkpointing", directory=job.directory)
        if job.is_first:
            with _writable(job.directory):
                storage.lock(job.directory, job.owner)

    def check(self) -> None:
        """Check at the start that checkpoints can be written.

        Raises:
            UnwrittenError: the directory is not writable, or has no space for the weights.
            CheckpointError: the optimizer cannot be stored.
        """
        assert self.training is not None
        self.training.check_optimizers()
        if self.job.is_first:
            with _writable(self.job.directory):
                storage.check_space(self.job.directory, self.training.size)

    def resume(self, checkpoint: CheckpointReader) -> None:
        """Restore the position and the script's state from a checkpoint.

        Raises:
            CheckpointError: a value is missing.
        """
        about = checkpoint.about
        try:
            position = Position.from_json(about)
            self.state, self.best = about["state"], about["best"]
            workers = about["hosts"]
        except KeyError as error:
            raise CheckpointError(f"{checkpoint.name}: {ABOUT} has no {error}") from error
        self.loop.move_to(position)
        self._first_step = position.step
        self._writer.resumed_from = checkpoint.name
        if workers != self.job.workers:
            _LOG.warning(
                "%s was written by a job of %d workers, but this one has %d: as many batches are "
                "skipped as were completed before",
                checkpoint.name,
                workers,
                self.job.workers,
            )
        self._report.event("resumed", file=checkpoint.name, step=position.step)
        if self.job.is_first:
            print_whole(
                f"resuming from {checkpoint.name}: step {position.step}, epoch {position.epoch}, "
                f"batch {sum(position.passes)}",
                sys.stdout,
            )

    def epochs(self, count: int) -> Iterator[int]:
        """Yield the numbers of the remaining epochs."""
        loop, finished = self.loop, False
        loop.begin_epochs(count)
        try:
            while loop.epoch < count:
                self.seeds.seed_epoch(loop.epoch)
                yield loop.epoch
                self.next_epoch()
                if loop.epoch < count:
                    self.between_steps()
            finished = True
        except GeneratorExit:
            if loop.unsaved and self.job.is_first:
                _LOG.warning(
                    "epochs: the loop was left after step %d, and the last steps are in no "
                    "checkpoint, so a later run would repeat them; call checkpoint.save() after a "
                    "break",
                    loop.step,
                )
            raise
        finally:
            loop.end_epochs(count, finished)
        self.write_last()

    def batches(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yield the remaining batches of a pass over ``data``."""
        loop = self.loop
        current = loop.begin_pass()
        if current is None:  # an epoch that was completed before, in the script's own loop
            self.seeds.seed_epoch(loop.own_passes)  # for what the script shuffles for the next one
            return
        epoch = loop.epoch
        try:
            for batch in loop.draw(data, self.seeds):
                loop.batch_yielded()
                yield batch
                loop.check_pass(current)
                loop.batch_done()
                self.between_steps()
        finally:
            ended = loop.end_pass(current)
            if ended and loop.epoch != epoch and not sys.is_finalizing():
                self.seeds.seed_epoch(loop.epoch)

    def next_epoch(self) -> None:
        """Start the next epoch."""
        self.loop.next_epoch()
        self._state_checked = False

    def between_steps(self) -> None:
        """Write a checkpoint or stop the script, if this is due."""
        training, step = self.training, self.loop.step
        assert training is not None
        if self._stop.requested and (self.job.is_first or not training.distributed):
            self._leave(self._stop.number)
        if not self.job.is_first:
            return
        if not self._state_checked:
            self._check_state()
        if self._writer.busy or step % self._schedule.stride:
            return
        if self._schedule.follows_time:
            # A loop that does not read results runs far ahead of the computation.
            training.synchronize()
        if self._schedule.due(step, time.monotonic()):
            self._write()

    def save(self) -> None:
        """Write a checkpoint now, even without new steps, and wait for it.

        Raises:
            CheckpointError: it cannot be written.
        """
        self.loop.unsaved = True
        self.write_last()

    def write_last(self) -> None:
        """Write the last checkpoint, unless there is one of this step, and wait for it.

        Raises:
            CheckpointError: it cannot be written.
        """
        if not self.job.is_first:
            return
        for _ in range(2):  # retry once, since a connection may have failed
            self._writer.join()
            if self._writer.failed:
                self.loop.unsaved = True  # there may be space for it now
            self._write()
        self._writer.join()
        self._writer.raise_failure()

    @property
    def _has_trained(self) -> bool:
        """Whether this run has trained since it started."""
        return self.loop.unsaved or self.loop.step != self._first_step

    def _on_stop(self, number: int) -> None:
        """Exit at once if there is nothing to write.

        Waiting for the first step could hang, since it needs all hosts, and the same signal may
        have ended the script of a host that has not created its ``Checkpoint`` yet.
        """
        global stopping  # noqa: PLW0603
        if not self.job.is_first:
            stopping = True
        elif not self._has_trained:
            self._leave(number)

    def _leave(self, number: int) -> None:
        """Write a checkpoint, report that the script has not finished, and exit."""
        step = self.loop.step
        _LOG.warning("stopping after step %d: %s", step, signal_name(number))
        if self._has_trained:
            self.write_last()
        reported = self._report.event("left", signal=number, step=step)
        # Without a supervisor, the exit status shows that training has not finished.
        raise SystemExit(0 if reported else 128 + number)

    def _check_state(self) -> None:
        """Check that the script's state can be stored, before training."""
        self._about(self.loop.position)
        self._state_checked = True

    def _about(self, position: Position) -> bytes:
        """Return the content of ``ABOUT``.

        Raises:
            CheckpointError: the script's state cannot be stored.
        """
        assert self.training is not None
        about = {**position.to_json(), **self.training.about(), "best": self.best}
        try:
            _check_keys(self.state)
            return json.dumps({**about, "state": self.state}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"checkpoint.state cannot be stored: {error}; expected JSON values: dicts with "
                "string keys, lists, strings, int, float, bool and None (convert a number of NumPy "
                "with float(value))"
            ) from error

    def _write(self) -> None:
        training, position = self.training, self.loop.position
        if training is None or not training.started or not self.loop.unsaved:
            return
        started = time.monotonic()
        self._schedule.record_cost(self._writer.cost_s)
        self._schedule.started(started)
        about = self._about(position)
        self.loop.unsaved = False
        try:
            captured = training.capture()
        except Exception as error:
            self._writer.fail(position.step, error)
            return
        members = itertools.chain([(ABOUT, (about,))], captured)
        self._writer.start(position.to_event(), members, time.monotonic() - started)


def _check_keys(value: Any) -> None:
    """Check that all keys of dicts are strings, which others become in JSON.

    Raises:
        TypeError: a key is not a string.
    """
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is not a string: use {str(key)!r}")
    if isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            _check_keys(each)


class StopRequest:
    """Handles SIGTERM and SIGINT, and also calls earlier handlers of the script.

    A second SIGINT only calls the earlier handler, which raises ``KeyboardInterrupt`` by default.

    Args:
        on_first: called by the handler with the first signal; may raise ``SystemExit``.

    Attributes:
        number: the first signal; 0 if there was none.
    """

    def __init__(self, on_first: Callable[[int], None] = lambda number: None) -> None:
        self.number = 0
        self._on_first = on_first
        self._pid = os.getpid()
        self._previous: Dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in _STOP_SIGNALS:
                self._previous[number] = signal.getsignal(number)
                signal.signal(number, self._handle)

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.number != 0

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            # SIGTERM must end a worker process of a DataLoader.
            self._restore_handlers()
            os.kill(os.getpid(), number)
            return
        previous = self._previous[number]
        first, self.number = not self.requested, self.number or number
        if callable(previous) and (previous is not signal.default_int_handler or not first):
            previous(number, frame)
        if first:
            self._on_first(number)

    def _restore_handlers(self) -> None:
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_DFL if previous is None else previous)


@contextlib.contextmanager
def _writable(directory: str) -> Iterator[None]:
    """Convert an ``OSError`` to an error of the script."""
    try:
        yield
    except OSError as error:
        text = f"checkpoints cannot be written to {directory}: {error}"
        raise UnwrittenError(f"{text}; free disk space, or make it writable", error) from error
