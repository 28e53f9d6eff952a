"""Tracks the position of training in its data.

A position only includes batches that were trained, not those that were only read: a batch is
trained when a trainer has stepped after the script got the batch. Loops for which this does not
work are errors.
"""

import itertools
import logging
import threading
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointError
from sagemaker_mxnet_training.checkpoints.schedule import RandomSeeds

_LOG = logging.getLogger("sagemaker_mxnet_training.checkpoints")


@dataclass(frozen=True)
class Position:
    """A point between two batches.

    Attributes:
        step: number of batches before it, in all epochs.
        epoch: number of the epoch.
        passes: number of batches in each pass over data in this epoch. The last pass has not ended.
    """

    step: int = 0
    epoch: int = 0
    passes: Tuple[int, ...] = (0,)

    def to_event(self) -> Dict[str, int]:
        """Return step, epoch and batch."""
        return {"step": self.step, "epoch": self.epoch, "batch": sum(self.passes)}

    def to_json(self) -> Dict[str, Any]:
        """Return the position as a checkpoint stores it."""
        return {**self.to_event(), "passes": list(self.passes)}

    @classmethod
    def from_json(cls, about: Mapping[str, Any]) -> "Position":
        """Parse the result of ``to_json``.

        Raises:
            KeyError: a value is missing (but release 5.0 had no ``passes``).
        """
        passes = about.get("passes", [about["batch"]])
        return cls(about["step"], about["epoch"], tuple(passes))


class Loop:
    """The current position, updated by the script's loops over ``epochs`` and ``batches``.

    Outside ``epochs`` each pass over ``batches`` is an epoch.

    Attributes:
        step: number of completed batches, in all epochs and runs.
        epoch: number of the current epoch.
        unsaved: whether a trainer has stepped since the last checkpoint.
        own_passes: number of passes outside ``epochs`` that have started in this process.
    """

    def __init__(self) -> None:
        self.unsaved = False
        self._untrained: Optional[Position] = None  # the first batch that is not trained yet
        self._untrained_before: Optional[Position] = None  # the same, before the last batch
        self._has_batch = False  # whether the script has a batch
        self._stepped = False  # whether a trainer has stepped since
        self._reader: Optional[int] = None  # id of the thread that reads batches
        self._running: Optional[object] = None  # token of the current pass
        self._used_up: Optional[Any] = None  # the last iterator that a pass has read to its end
        self._in_epochs = False
        self._epochs_used = False
        self._reached = -1  # largest count of a completed loop over epochs
        self.own_passes = 0
        self.move_to(Position())

    def move_to(self, position: Position) -> None:
        """Move to a position, before the first loop."""
        self.step, self.epoch = position.step, position.epoch
        self._passes: List[int] = list(position.passes)
        self._pass = 0  # number of the next pass of this epoch in this process
        self._epoch_start = position.step - sum(position.passes)

    @property
    def position(self) -> Position:
        """The point from which a resumed run has to continue."""
        return self._untrained or self._current()

    def begin_epochs(self, count: int) -> None:
        """Start a loop over ``epochs``.

        Raises:
            CheckpointError: it would train less than the script apparently expects.
        """
        if self._in_epochs:
            raise CheckpointError("epochs: the previous loop over epochs() has not ended")
        if self.own_passes:
            raise CheckpointError(
                "epochs: batches() was used outside epochs() before; use it only inside epochs()"
            )
        if count <= self._reached:
            raise CheckpointError(
                f"epochs({count}) has nothing to do: an earlier loop has completed {self._reached} "
                "epochs; pass the total number of epochs, not that of one loop"
            )
        self._in_epochs = self._epochs_used = True

    def end_epochs(self, count: int, finished: bool) -> None:
        """End a loop over ``epochs``."""
        if self._running is not None:
            self.end_pass(self._running)
        self._in_epochs = False
        if finished:
            self._reached = max(self._reached, count)

    def next_epoch(self) -> None:
        """Start the next epoch, and end a pass that the script has left."""
        if self._running is not None:
            self.end_pass(self._running)
        self._epoch_start += sum(self._passes)
        self.epoch, self._passes, self._pass = self.epoch + 1, [0], 0

    def begin_pass(self) -> Optional[object]:
        """Start a pass over ``batches``; return a token, or ``None`` if it was already completed.

        Raises:
            CheckpointError: batches would be lost, now or in a resumed run.
        """
        if self._running is not None:
            raise CheckpointError(
                "batches: the previous loop over batches() has not ended; use batches(zip(a, b)) "
                "for batches of two sources, and close() to end a generator early"
            )
        if not self._in_epochs:
            if self._epochs_used:
                raise CheckpointError("batches: use it inside the loop over epochs()")
            self.own_passes += 1
            if self.own_passes <= self.epoch:
                return None
        self._running = object()
        return self._running

    def draw(self, data: Iterable[Any], seeds: RandomSeeds) -> Iterator[Any]:
        """Yield the remaining batches of a pass over ``data``, seeding random numbers for each.

        Raises:
            CheckpointError: ``data`` is an iterator that an earlier pass has used up.
        """
        done, over = self._passes[self._pass], self._pass < len(self._passes) - 1
        before = self._epoch_start + sum(self._passes[: self._pass])
        seeds.seed_batch(before, first=True)
        batches = iter(data)
        for number in itertools.count():
            if over and number == done:
                return  # the script left the pass here
            seeds.seed_batch(before + number, first=number in (0, done))
            try:
                batch = next(batches)
            except StopIteration:
                if number == 0 and data is self._used_up:
                    raise CheckpointError(
                        f"batches: no data in epoch {self.epoch}, since an earlier loop has used "
                        "this iterator up; pass what can be read again, such as the DataLoader or "
                        "a list, or call reset() of a DataIter before each epoch"
                    ) from None
                self._used_up = data if batches is data else None
                if number < done:
                    _LOG.warning(
                        "batches: the data of epoch %d has only %d batches, but %d were completed "
                        "before; check that the data and the batch size are those of the earlier "
                        "run",
                        self.epoch,
                        number,
                        done,
                    )
                elif number == 0:
                    _LOG.warning(
                        "batches: the data of epoch %d has no batches, so it trains nothing; check "
                        "that the files were found, and that this host's part of the data is at "
                        "least a batch if an incomplete one is discarded",
                        self.epoch,
                    )
                return
            if number >= done:
                yield batch

    def batch_yielded(self) -> None:
        """Record that the script gets a batch."""
        self._untrained_before = self._untrained
        if self._untrained is None:
            self._untrained = self._current()
        self._passes[self._pass] += 1
        self._has_batch, self._stepped = True, False
        self._reader = threading.get_ident()

    def trainer_stepped(self) -> None:
        """Record a step of a trainer, which trains all batches that the script has got.

        Raises:
            CheckpointError: batches are read in another thread, and so ahead of training.
        """
        if self._reader not in (None, threading.get_ident()):
            raise CheckpointError(
                "batches: read in another thread than the one that trains, so a resumed run would "
                "skip some; prefetch inside the call, with batches(prefetching(loader))"
            )
        self._untrained = None
        self._stepped = self.unsaved = True

    def check_pass(self, token: object) -> None:
        """Check that the pass of a generator has not ended.

        Raises:
            CheckpointError: its epoch has ended.
        """
        if token is not self._running:
            raise CheckpointError("batches: the loop was used after its epoch had ended")

    def batch_done(self) -> None:
        """Record that the script has completed its batch."""
        self.step += 1
        self._has_batch = False

    def end_pass(self, token: object) -> bool:
        """End a pass, at its end or when the script leaves it; return whether it was running."""
        if token is not self._running:
            return False
        self._running = None
        if self._has_batch and self._stepped:
            self.batch_done()
        elif self._has_batch:  # the script left the loop before training the batch
            self._has_batch = False
            self._passes[self._pass] -= 1
            self._untrained = self._untrained_before
        self._pass += 1
        if self._pass == len(self._passes):
            self._passes.append(0)
        if not self._in_epochs:
            self.next_epoch()
        return True

    def _current(self) -> Position:
        passes = tuple(self._passes)
        return Position(self._epoch_start + sum(passes), self.epoch, passes)
