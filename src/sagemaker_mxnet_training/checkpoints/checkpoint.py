"""``Checkpoint``, the public class for training scripts."""

import math
import operator
import os
import time
from typing import Any, Dict, Iterable, Iterator, List, Optional

from sagemaker_mxnet_training.checkpoints import job_environment, module_fit, resume
from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointError
from sagemaker_mxnet_training.checkpoints.gluon_state import GluonState
from sagemaker_mxnet_training.checkpoints.manager import CheckpointManager
from sagemaker_mxnet_training.checkpoints.schedule import Every, Schedule


class Checkpoint:
    """Writes checkpoints during training, and resumes from the last one.

    With Gluon, create it before the first step, on every host::

        checkpoint = Checkpoint(net, trainer)
        for epoch in checkpoint.epochs(10):
            for data, label in checkpoint.batches(loader):
                ...

    With Module, ``Checkpoint().fit(module, train_iter, num_epoch=10)``.

    The first host writes the checkpoints. They contain the weights, the optimizer with its state
    and learning-rate schedule (from the workers or the kvstore's servers), the position in the
    data, ``state`` and ``best``. Training pauses while these are copied; a thread writes the file.
    If a checkpoint cannot be written, a warning is logged; for the last one it is an error.

    On SIGTERM or SIGINT the script finishes its current step, writes a checkpoint and exits. Before
    the first step it exits at once. With a distributed kvstore only the first host does this; the
    others continue until they are stopped. If only the script got the signal, the job is restarted
    from this checkpoint. Outside a job the exit status is 128 plus the signal's number.

    A resumed run computes exactly what an uninterrupted one would have, if the computation itself
    is reproducible, ``every`` is a number of steps, and random numbers come from the global
    generators of Python, NumPy or MXNet in the main process. These are seeded for each batch (see
    ``schedule.RandomSeeds``). Worker processes of a ``DataLoader`` have their own generators.
    ``dist_async``, and ``dist_sync`` with three or more hosts, are not reproducible.

    The optimizer is stored with ``pickle``, as in ``Trainer.save_states``: resume only from
    checkpoints that you trust.

    Create one instance per script. A directory can be used by one process at a time.

    Args:
        net: a ``gluon.Block``, or a list of several, such as those of a GAN; omit it for ``fit``.
        trainer: the ``gluon.Trainer`` of its parameters, or a list of several.
        directory: the checkpoint directory; default ``SM_CHECKPOINT_DIR``, or
            ``/opt/ml/checkpoints`` (``checkpoints`` in ``SAGEMAKER_BASE_DIR``).
        every: the interval, a number of steps or a ``datetime.timedelta``; by default at least
            10 s, and long enough that checkpoints take at most 3.5 % of the time.
        keep: number of checkpoints to keep, at least 1. The one that a run has resumed from is kept
            as well, until a newer one is in S3.
        seed: seed of the random numbers; ``None`` does not seed the generators.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is not valid, or training has already started.
        CheckpointError: the checkpoint to resume from does not fit the script, or it is corrupt
            and ``SAGEMAKER_MXNET_RESUME`` requires it; the directory is in use or not writable; or
            the state cannot be stored in a checkpoint.
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
        if isinstance(keep, bool) or not isinstance(keep, int):
            raise TypeError(f"keep: expected a number of checkpoints, got {keep!r}")
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep!r}")
        if isinstance(seed, bool) or not isinstance(seed, (int, type(None))):
            raise TypeError(f"seed: expected an int or None, got {seed!r}")
        job = job_environment.read(os.environ, directory)
        schedule = Schedule(every, time.monotonic())
        training = None if net is None else GluonState(job, _listed(net), _listed(trainer))
        self._manager = CheckpointManager(job, schedule, keep, seed)
        self._smaller: Optional[bool] = None  # of the calls of best
        if training is not None:
            self._manager.training = training
            self._manager.check()
            found = resume.find(job, training.open_distributed)
            if found is not None:
                with found:
                    training.restore(found)
                    self._manager.resume(found)
            training.follow_updates(self._manager.loop.trainer_stepped)

    @property
    def state(self) -> Dict[str, Any]:
        """A dict of JSON values for the script, which is saved and restored.

        Change its entries, or assign another dict, which replaces what was restored.

        Raises:
            CheckpointError: the assigned value is not a dict.
        """
        return self._manager.state

    @state.setter
    def state(self, values: Dict[str, Any]) -> None:
        if not isinstance(values, dict):
            raise CheckpointError(
                f"checkpoint.state: expected a dict of JSON values, got {values!r}; set an entry, "
                'such as checkpoint.state["values"] = ...'
            )
        self._manager.state = values

    @property
    def step(self) -> int:
        """Number of completed steps, in all epochs and runs.

        A step is one batch of ``batches``. The current batch is not included, also after
        ``trainer.step``: it is counted when the loop reads the next batch, or ends. To stop
        after 1,000 steps, leave the loop before the next batch is trained::

            for epoch in checkpoint.epochs(10):
                for data, label in checkpoint.batches(loader):
                    if checkpoint.step >= 1000:
                        break
                    ...
                if checkpoint.step >= 1000:
                    break
            checkpoint.save()
        """
        return self._manager.loop.step

    def epochs(self, count: int) -> Iterator[int]:
        """Yield the numbers of the remaining epochs.

        The first may have been interrupted in an earlier run. After the last one, a checkpoint is
        written. A later run with a larger ``count`` resumes from it.

        Args:
            count: total number of epochs, including those of earlier loops and runs.

        Raises:
            CheckpointError: the last checkpoint cannot be written, or another loop over ``epochs``
                has not ended, or has already run this many epochs; or ``count`` is not an integer
                of at least 0.
        """
        self._check_loop("epochs")
        return self._manager.epochs(_whole_number("epochs", count))

    def batches(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yield the remaining batches of ``data``.

        Batches that were completed before an interruption are read from ``data`` and skipped, so
        that the order is the same. These may be all batches of an epoch. A batch is complete when a
        trainer has stepped after it was yielded.

        An epoch may have several loops, one after the other; outside ``epochs`` each loop is an
        epoch. Combine, limit or prefetch data inside the call, as in ``batches(zip(a, b))``.

        Args:
            data: an iterable that starts at the first batch, such as a ``gluon.data.DataLoader``.

        Raises:
            CheckpointError: another loop over ``batches`` has not ended, batches are read in
                another thread than the one that trains, or ``data`` is an iterator that is used up
                or not iterable.
        """
        self._check_loop("batches")
        if not (hasattr(type(data), "__iter__") or hasattr(type(data), "__getitem__")):
            raise CheckpointError(
                "batches: expected a gluon.data.DataLoader, a list or something else that a for "
                f"loop can read, got {data!r}; check what the script passes"
            )
        return self._manager.batches(data)

    def save(self) -> None:
        """Write a checkpoint now and wait for it, for instance after a ``break``.

        Checkpoints are also written at intervals, on a stop, and after the last epoch. Call this on
        all hosts; the first one writes.

        Raises:
            CheckpointError: the checkpoint cannot be written.
        """
        self._check_loop("save")
        self._manager.save()

    def best(self, value: float, smaller: bool = False) -> bool:
        """Return whether a value is better than all earlier ones, including those of earlier runs.

        Args:
            value: a metric, such as the validation accuracy; an array of one number will do. NaN is
                never better.
            smaller: whether smaller is better, as for a loss.

        Raises:
            CheckpointError: the value is not a number, or ``smaller`` differs from an earlier call:
                a ``Checkpoint`` remembers the best value of one metric.
        """
        if self._smaller is not None and self._smaller is not bool(smaller):
            raise CheckpointError(
                f"best: smaller={bool(smaller)} after a call with smaller={self._smaller}; a "
                "Checkpoint compares one metric: keep the best value of another one in "
                "checkpoint.state"
            )
        self._smaller = bool(smaller)
        try:
            # MXNet's array of one number has asscalar, and not always float.
            number = float(value.asscalar() if hasattr(value, "asscalar") else value)
        except (TypeError, ValueError):
            raise CheckpointError(f"best: expected a number, got {value!r:.100}") from None
        better = not math.isnan(number) and (
            self._manager.best is None
            or (number < self._manager.best if smaller else number > self._manager.best)
        )
        if better:
            self._manager.best = number
        return better

    def fit(self, module: Any, train_data: Any, *, num_epoch: int, **options: Any) -> None:
        """Train a module like ``module.fit(train_data, num_epoch=num_epoch, **options)``.

        Resumes from the last checkpoint, also in the middle of an epoch; metrics of that epoch only
        include the batches of this run. ``train_data`` is reset before each epoch, and once for
        each epoch of earlier runs, since its order may depend on the number of resets.

        Args:
            module: a ``mx.mod.Module`` or ``BucketingModule`` without an optimizer.
            train_data: a ``mx.io.DataIter``.
            num_epoch: total number of epochs.
            **options: other arguments of ``Module.fit``.

        Raises:
            CheckpointError: see the constructor; or the last checkpoint cannot be written, the
                module already has an optimizer, or ``num_epoch`` is not an integer of at least 0.
        """
        if self._manager.training is not None or module.optimizer_initialized:
            raise CheckpointError(
                "fit: expected a Checkpoint() without arguments, and a module without an "
                "optimizer: pass optimizer, optimizer_params and kvstore to fit"
            )
        count = _whole_number("fit: num_epoch", num_epoch)
        module_fit.fit(self._manager, module, train_data, count, options)

    def _check_loop(self, what: str) -> None:
        if not isinstance(self._manager.training, GluonState):
            raise CheckpointError(
                f"{what}: expected a Checkpoint(net, trainer); a Module needs fit()"
            )


def _whole_number(what: str, count: Any) -> int:
    """Return the number of epochs as an int.

    Raises:
        CheckpointError: it is not an integer of at least 0.
    """
    try:
        number = operator.index(count)
    except TypeError:
        number = -1
    if number < 0:
        remedy = "pass the total number of epochs, including those of earlier loops and runs"
        if isinstance(count, str):
            remedy = (
                "without type=int an argument of the script is text: "
                'parser.add_argument("--epochs", type=int)'
            )
        raise CheckpointError(
            f"{what}: expected a whole number, 0 or more, got {count!r}; {remedy}"
        )
    return number


def _listed(value: Any) -> List[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
