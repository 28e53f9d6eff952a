"""``Checkpoint``: what a training script uses."""

import itertools
import json
import logging
import math
import os
import time
from typing import Any, Dict, Iterable, Iterator, List, Optional

from sagemaker_mxnet_toolkit.processes.child_report import opened_report
from sagemaker_mxnet_training.checkpoints import job_environment, resume
from sagemaker_mxnet_training.checkpoints.errors import CheckpointError
from sagemaker_mxnet_training.checkpoints.gluon_state import GluonState
from sagemaker_mxnet_training.checkpoints.module_state import (
    EpochData,
    ModuleState,
    split_weights,
)
from sagemaker_mxnet_training.checkpoints.randomness import Randomness
from sagemaker_mxnet_training.checkpoints.schedule import Every, Schedule
from sagemaker_mxnet_training.checkpoints.stop import StopRequest
from sagemaker_mxnet_training.checkpoints.training_state import TrainingState
from sagemaker_mxnet_training.checkpoints.writer import Writer

_LOG = logging.getLogger("sagemaker_mxnet_training.checkpoints")


class Checkpoint:
    """Writes checkpoints of a training, and lets the next run go on from the last one.

    With Gluon, create it before the first step, on every host:

        checkpoint = Checkpoint(net, trainer)
        for epoch in checkpoint.epochs(10):
            for data, label in checkpoint.batches(loader):
                ...

    With Module, ``Checkpoint().fit(module, train_iter, num_epoch=10)``.

    The first host writes. A checkpoint holds weights, the optimizer with its state and its
    learning-rate schedule (wherever they are: in the workers, or in the kvstore's servers), the
    position in the data, ``state`` and ``best``. Training waits while they are copied; the file is
    written beside it. One that cannot be written is a warning, except for the last one.

    On SIGTERM, or SIGINT, the next step is the last: a checkpoint is written, and the script leaves
    with status 0. With a distributed kvstore the first host does this; the others cannot know which
    step is its last, and go on until they are ended.

    A run that goes on computes what it would have computed without the interruption, bit for bit,
    where the computation itself is reproducible, if ``every`` counts steps and what is random comes
    from the global generators of Python, NumPy or MXNet in the main process, after this object was
    created: they are seeded anew for each batch (``randomness`` says how). Worker processes of a
    ``DataLoader`` have generators of their own. ``dist_async``, and ``dist_sync`` with three hosts
    or more, are not reproducible.

    The optimizer is stored as ``Trainer.save_states`` stores it, with ``pickle``: go on only from
    checkpoints whose source you trust.

    Args:
        net: a ``gluon.Block``; none for ``fit``.
        trainer: the ``gluon.Trainer`` of its parameters.
        directory: where checkpoints are written; default ``SM_CHECKPOINT_DIR``, or
            ``/opt/ml/checkpoints`` (``checkpoints`` below ``SAGEMAKER_BASE_DIR``).
        every: a number of steps, or a ``datetime.timedelta``; by default as often as takes at most
            3.5 % of the time, and every 10 s at most.
        keep: how many of the newest checkpoints to keep, at least 1.
        seed: what random numbers follow from; ``None`` leaves the generators alone.

    Attributes:
        state: a dict of the script's own, restored from the checkpoint; JSON values only.
        step: steps done, over all epochs and runs.

    Raises:
        TypeError: when an argument is of another type.
        ValueError: when an argument makes no sense, or training has begun.
        CheckpointError: when the checkpoint to go on from does not fit, or, where
            ``SAGEMAKER_MXNET_RESUME`` names it, is damaged.
    """

    def __init__(
        self,
        net: Any = None,
        trainer: Any = None,
        *,
        directory: Optional[str] = None,
        every: Every = None,
        keep: int = 2,
        seed: Optional[int] = 0,
    ) -> None:
        if (net is None) != (trainer is None):
            raise TypeError("expected a network and its trainer, or neither, for fit()")
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep!r}")
        self._job = job_environment.read(os.environ, directory)
        self._report = opened_report()
        self._schedule = Schedule(every, time.monotonic())
        self._randomness = Randomness(seed, self._job.place, self._schedule.stride)
        self._writer = Writer(self._job.directory, keep, self._report)
        self._stop = StopRequest()
        self._training: Optional[TrainingState] = None
        self.state: Dict[str, Any] = {}
        self.step = 0
        self._epoch = 0
        self._batch = 0
        self._best: Optional[float] = None
        self._saved_at: Optional[int] = None  # step of the last checkpoint
        self._epoch_over = False
        self._report.event("checkpointing", directory=self._job.directory)
        if net is not None:
            gluon = GluonState(self._job, net, trainer)
            if gluon.started:
                raise ValueError("create the Checkpoint before the first step of its trainer")
            self._training = gluon
            found = resume.find(self._job, gluon.open_distributed)
            if found is not None:
                with found as source:
                    gluon.restore(source)
                    self._go_on(source)

    # Gluon.

    def epochs(self, count: int) -> Iterator[int]:
        """Yield the numbers of the epochs that are left to do, of ``count``.

        The first may be one that was interrupted. After the last a checkpoint is written, from
        which a later run with a larger ``count`` goes on.

        Raises:
            CheckpointError: when the last checkpoint cannot be written.
        """
        while self._epoch < count:
            self._randomness.epoch(self._epoch)
            yield self._epoch
            self._epoch, self._batch = self._epoch + 1, 0
        self._finish()

    def batches(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of one epoch that are left to do.

        Those that were done before an interruption are drawn from ``data`` and dropped, so that
        the order is the same.

        Args:
            data: gives the batches of one epoch, such as a ``gluon.data.DataLoader``.
        """
        for batch in self._draw(data):
            yield batch
            self._count()
            self._boundary()

    def best(self, value: float, smaller: bool = False) -> bool:
        """Tell whether ``value`` is better than all values before, in earlier runs too.

        Args:
            value: for instance the accuracy of validation. NaN is never better.
            smaller: whether smaller is better, as for a loss.
        """
        value = float(value)
        better = not math.isnan(value) and (
            self._best is None or (value < self._best if smaller else value > self._best)
        )
        if better:
            self._best = value
        return better

    # Module.

    def fit(self, module: Any, train_data: Any, *, num_epoch: int, **options: Any) -> None:
        """Train a module as ``module.fit(train_data, num_epoch=num_epoch, **options)`` does.

        Goes on from the last checkpoint, in the middle of an epoch too; metrics of that epoch count
        the batches of this run only. ``train_data`` is reset before each epoch, and for each that
        was done before, since its order may follow from how often that was.

        Args:
            module: a ``mx.mod.Module`` or ``BucketingModule`` without an optimizer.
            train_data: a ``mx.io.DataIter``.
            num_epoch: epochs to have done in the end.
            **options: as ``Module.fit`` takes them.

        Raises:
            ValueError: when the module has its optimizer.
            CheckpointError: as the constructor does, and when the last checkpoint cannot be
                written.
        """
        if self._training is not None or module.optimizer_initialized:
            raise ValueError(
                "fit: expected a new Checkpoint(), and a module without an optimizer: pass "
                "optimizer, optimizer_params and kvstore to fit"
            )
        training = ModuleState(self._job, module, options.pop("kvstore", "local"))
        self._training = training
        source = resume.find(self._job, training.open_distributed)
        self._epoch = int(options.pop("begin_epoch", 0))
        if source is not None:
            self._go_on(source)
            arguments, auxiliary = split_weights(source)
            options.update(arg_params=arguments, aux_params=auxiliary, force_init=True)
        unrestored: List[resume.Source] = [] if source is None else [source]

        def batches() -> Iterator[Any]:
            if unrestored:  # fit has set the optimizer up by now
                with unrestored.pop() as checkpoint:
                    training.restore_optimizer(checkpoint)
            self._epoch_over = False
            yield from self._draw(train_data)
            self._epoch_over = True

        def reset() -> None:
            self._randomness.epoch(self._epoch)
            train_data.reset()

        def after_batch(_: Any) -> None:
            self._count()
            if not self._epoch_over:
                self._boundary()

        def after_epoch(*_: Any) -> None:
            self._epoch, self._batch = self._epoch + 1, 0
            self._boundary()

        for epoch in range(self._epoch + 1):
            self._randomness.epoch(epoch)
            train_data.reset()
        module.fit(
            EpochData(train_data, batches, reset),
            num_epoch=num_epoch,
            begin_epoch=self._epoch,
            kvstore=training.given_kvstore,
            batch_end_callback=[*_listed(options.pop("batch_end_callback", None)), after_batch],
            epoch_end_callback=[*_listed(options.pop("epoch_end_callback", None)), after_epoch],
            **options,
        )
        self._finish()

    # What both do.

    def _draw(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yield what is left of an epoch's batches, each with its own random numbers."""
        done = self._batch
        before = self.step - done
        self._randomness.batch(before, first=True)
        batches = iter(data)
        for number in itertools.count():
            self._randomness.batch(before + number, first=number in (0, done))
            try:
                batch = next(batches)
            except StopIteration:
                return
            if number >= done:
                yield batch

    def _count(self) -> None:
        self.step += 1
        self._batch += 1

    def _boundary(self) -> None:
        """Do between two steps what is due: write a checkpoint, or leave."""
        training = self._training
        assert training is not None
        if self._stop.requested and (self._job.is_first or not training.distributed):
            _LOG.warning("stopping after step %d", self.step)
            self._finish()
            raise SystemExit(0)
        now = time.monotonic()
        if self._job.is_first and not self._writer.busy and self._schedule.due(self.step, now):
            self._write()

    def _write(self) -> None:
        training = self._training
        if training is None or not training.started or self._saved_at == self.step:
            return
        began = time.monotonic()
        self._schedule.cost(self._writer.cost)
        self._schedule.taken(began)
        self._saved_at = self.step
        position = {"step": self.step, "epoch": self._epoch, "batch": self._batch}
        try:
            about = {**position, **training.about(), "best": self._best, "state": self.state}
            text = json.dumps(about).encode()
            captured = training.capture()
        except Exception as error:
            self._writer.failed(self.step, error)
            return
        members = itertools.chain([(resume.ABOUT, (text,))], captured)
        self._writer.start(position, members, time.monotonic() - began)

    def _finish(self) -> None:
        """Write the last checkpoint, if anything was done since the one before."""
        if self._job.is_first:
            self._writer.settle()
            self._write()
            self._writer.wait()

    def _go_on(self, source: resume.Source) -> None:
        about = source.about
        try:
            self.step, self._epoch, self._batch = about["step"], about["epoch"], about["batch"]
            self.state, self._best = about["state"], about["best"]
            hosts = about["hosts"]
        except KeyError as error:
            raise CheckpointError(f"{source.name}: {resume.ABOUT} has no {error}") from error
        self._saved_at = self.step
        if hosts != self._job.hosts:
            _LOG.warning(
                "%s was written by a job of %d hosts, this one has %d: batches done before are "
                "skipped by number",
                source.name,
                hosts,
                self._job.hosts,
            )
        self._report.event("resumed", file=source.name, step=self.step)
        if self._job.is_first:
            print(
                f"training goes on from {source.name}: step {self.step}, epoch {self._epoch}, "
                f"batch {self._batch}",
                flush=True,
            )


def _listed(value: Any) -> List[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
