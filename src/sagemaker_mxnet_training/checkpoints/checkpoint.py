"""``Checkpoint``: what a training script uses."""

import math
import os
from typing import Any, Dict, Iterable, Iterator, Optional

from sagemaker_mxnet_training.checkpoints import job_environment, module_fit, resume
from sagemaker_mxnet_training.checkpoints.gluon_state import GluonState
from sagemaker_mxnet_training.checkpoints.run import Run
from sagemaker_mxnet_training.checkpoints.schedule import Every


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
        keep: how many of the newest checkpoints to keep, at least 1. The one that a run goes on
            from stays as well, until a newer one is in S3.
        seed: what random numbers follow from; ``None`` leaves the generators alone.

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
        job = job_environment.read(os.environ, directory)
        self._run = Run(job, every, keep, seed)
        if net is not None:
            training = GluonState(job, net, trainer)
            if training.started:
                raise ValueError("create the Checkpoint before the first step of its trainer")
            self._run.training = training
            found = resume.find(job, training.open_distributed)
            if found is not None:
                with found as source:
                    training.restore(source)
                    self._run.go_on(source)

    @property
    def state(self) -> Dict[str, Any]:
        """A dict of the script's own, saved and restored with the rest; JSON values only."""
        return self._run.state

    @property
    def step(self) -> int:
        """Steps done, over all epochs and runs."""
        return self._run.step

    def epochs(self, count: int) -> Iterator[int]:
        """Yield the numbers of the epochs that are left to do, of ``count``.

        The first may be one that was interrupted. After the last a checkpoint is written, from
        which a later run with a larger ``count`` goes on.

        Raises:
            CheckpointError: when the last checkpoint cannot be written.
        """
        while self._run.epoch < count:
            self._run.randomness.epoch(self._run.epoch)
            yield self._run.epoch
            self._run.next_epoch()
        self._run.finish()

    def batches(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of one epoch that are left to do.

        Those that were done before an interruption are drawn from ``data`` and dropped, so that
        the order is the same.

        Args:
            data: gives the batches of one epoch, such as a ``gluon.data.DataLoader``.
        """
        for batch in self._run.draw(data):
            yield batch
            self._run.count()
            self._run.boundary()

    def best(self, value: float, smaller: bool = False) -> bool:
        """Tell whether ``value`` is better than all values before, in earlier runs too.

        Args:
            value: for instance the accuracy of validation. NaN is never better.
            smaller: whether smaller is better, as for a loss.
        """
        value = float(value)
        better = not math.isnan(value) and (
            self._run.best is None
            or (value < self._run.best if smaller else value > self._run.best)
        )
        if better:
            self._run.best = value
        return better

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
        if self._run.training is not None or module.optimizer_initialized:
            raise ValueError(
                "fit: expected a new Checkpoint(), and a module without an optimizer: pass "
                "optimizer, optimizer_params and kvstore to fit"
            )
        module_fit.fit(self._run, module, train_data, num_epoch, options)
