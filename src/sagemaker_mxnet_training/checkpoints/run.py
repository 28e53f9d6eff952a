"""One run of a training: where it is, what is due between two steps, what it goes on from."""

import atexit
import itertools
import json
import logging
import time
from typing import Any, Dict, Iterable, Iterator, Optional

from sagemaker_mxnet_toolkit.processes.child_report import opened_report
from sagemaker_mxnet_training.checkpoints import resume
from sagemaker_mxnet_training.checkpoints.errors import CheckpointError
from sagemaker_mxnet_training.checkpoints.job_environment import JobEnvironment
from sagemaker_mxnet_training.checkpoints.randomness import Randomness
from sagemaker_mxnet_training.checkpoints.schedule import Every, Schedule
from sagemaker_mxnet_training.checkpoints.stop import StopRequest
from sagemaker_mxnet_training.checkpoints.training_state import TrainingState
from sagemaker_mxnet_training.checkpoints.writer import Writer

_LOG = logging.getLogger("sagemaker_mxnet_training.checkpoints")


class Run:
    """A run of a training, from the checkpoint it goes on from to its last one.

    Args:
        job: the job.
        every, keep, seed: as ``Checkpoint`` takes them.

    Attributes:
        job: the job.
        training: what a checkpoint captures; ``None`` until it is known.
        state: what the script keeps in a checkpoint.
        best: the best value of the script, if any.
        step: steps done, over all epochs and runs.
        epoch: number of the current epoch.
        batch: batches of it that are done.
    """

    def __init__(self, job: JobEnvironment, every: Every, keep: int, seed: Optional[int]) -> None:
        self.job = job
        self.training: Optional[TrainingState] = None
        self.state: Dict[str, Any] = {}
        self.best: Optional[float] = None
        self.step = 0
        self.epoch = 0
        self.batch = 0
        self._saved_at: Optional[int] = None  # step of the last checkpoint
        self._report = opened_report()
        self._schedule = Schedule(every, time.monotonic())
        self.randomness = Randomness(seed, job.place, self._schedule.stride)
        self._writer = Writer(job.directory, keep, self._report)
        # A script that fails ends without waiting for threads: a checkpoint that is being written
        # is worth a moment.
        atexit.register(self._writer.settle)
        self._stop = StopRequest()
        self._report.event("checkpointing", directory=job.directory)

    def draw(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yield what is left of an epoch's batches, each with its own random numbers."""
        done = self.batch
        before = self.step - done
        self.randomness.batch(before, first=True)
        batches = iter(data)
        for number in itertools.count():
            self.randomness.batch(before + number, first=number in (0, done))
            try:
                batch = next(batches)
            except StopIteration:
                return
            if number >= done:
                yield batch

    def count(self) -> None:
        """Count a step."""
        self.step += 1
        self.batch += 1

    def next_epoch(self) -> None:
        """Count an epoch."""
        self.epoch, self.batch = self.epoch + 1, 0

    def boundary(self) -> None:
        """Do between two steps what is due: write a checkpoint, or leave."""
        training = self.training
        assert training is not None
        if self._stop.requested and (self.job.is_first or not training.distributed):
            _LOG.warning("stopping after step %d", self.step)
            self.finish()
            raise SystemExit(0)
        if not self.job.is_first or self._writer.busy or self.step % self._schedule.stride:
            return
        if self._schedule.follows_time:
            # A loop that reads no result runs far ahead of what is computed, and takes no time.
            training.settle()
        if self._schedule.due(self.step, time.monotonic()):
            self._write()

    def _write(self) -> None:
        training = self.training
        if training is None or not training.started or self._saved_at == self.step:
            return
        began = time.monotonic()
        self._schedule.cost(self._writer.cost)
        self._schedule.taken(began)
        self._saved_at = self.step
        position = {"step": self.step, "epoch": self.epoch, "batch": self.batch}
        try:
            about = {**position, **training.about(), "best": self.best, "state": self.state}
            text = json.dumps(about).encode()
            captured = training.capture()
        except Exception as error:
            self._writer.fail(self.step, error)
            return
        members = itertools.chain([(resume.ABOUT, (text,))], captured)
        self._writer.start(position, members, time.monotonic() - began)

    def finish(self) -> None:
        """Write the last checkpoint, if anything was done since the one before.

        Raises:
            UnwrittenError: when it cannot be written.
        """
        if self.job.is_first:
            self._writer.settle()
            if self._writer.failed:
                self._saved_at = None  # there may be space for it now
            self._write()
            self._writer.wait()

    def go_on(self, source: resume.Source) -> None:
        """Take the position of a checkpoint.

        Raises:
            CheckpointError: when it has none.
        """
        about = source.about
        try:
            self.step, self.epoch, self.batch = about["step"], about["epoch"], about["batch"]
            self.state, self.best = about["state"], about["best"]
            hosts = about["hosts"]
        except KeyError as error:
            raise CheckpointError(f"{source.name}: {resume.ABOUT} has no {error}") from error
        self._saved_at = self.step
        self._writer.inherited = source.name
        if hosts != self.job.hosts:
            _LOG.warning(
                "%s was written by a job of %d hosts, this one has %d: batches done before are "
                "skipped by number",
                source.name,
                hosts,
                self.job.hosts,
            )
        self._report.event("resumed", file=source.name, step=self.step)
        if self.job.is_first:
            print(
                f"training goes on from {source.name}: step {self.step}, epoch {self.epoch}, "
                f"batch {self.batch}",
                flush=True,
            )
