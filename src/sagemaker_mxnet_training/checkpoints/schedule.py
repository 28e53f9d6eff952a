"""Schedules checkpoints, and seeds random generators.

MXNet 1.9.1 can set a seed but not save the state of its generators. So random numbers depend only
on the seed, the worker's rank and the step. A run that resumes at a step where MXNet's generators
are seeded gets the same random numbers as an uninterrupted one.
"""

import hashlib
import random
from datetime import timedelta
from typing import Optional, Union

SHARE = 0.035
"""Maximum share of the time for automatic checkpoints (CheckFreq, Mohan et al., FAST 2021)."""

SHORTEST_S = 10.0
"""Minimum interval of automatic checkpoints in seconds, since SageMaker uploads each of them."""

STRIDE = 20
"""Checkpoints that are due by time are written at a step that is a multiple of this."""

Every = Union[int, timedelta, None]
"""Interval of checkpoints in steps or time; ``None`` for automatic."""


class Schedule:
    """Decides when a checkpoint is due. The caller passes the time (``time.monotonic``).

    Args:
        every: interval in steps or time; ``None`` for an interval at which checkpoints take at most
            ``SHARE`` of the time.
        now: the current time.

    Raises:
        TypeError: ``every`` has another type.
        ValueError: it is not positive.
    """

    def __init__(self, every: Every, now: float) -> None:
        if isinstance(every, bool) or not isinstance(every, (int, timedelta, type(None))):
            raise TypeError(
                f"every: expected a number of steps, a datetime.timedelta or None, got {every!r}"
            )
        size = every.total_seconds() if isinstance(every, timedelta) else every
        if size is not None and size <= 0:
            raise ValueError(f"every: expected a number or time above zero, got {every!r}")
        self._every = every
        self._last = now
        self._interval_s = SHORTEST_S

    @property
    def follows_time(self) -> bool:
        """Whether checkpoints are due by time, and not only by steps."""
        return not isinstance(self._every, int)

    @property
    def stride(self) -> int:
        """Checkpoints are only written at steps that are a multiple of this."""
        return self._every if isinstance(self._every, int) else STRIDE

    def due(self, step: int, now: float) -> bool:
        """Return whether a checkpoint is due after this many steps."""
        if step % self.stride:
            return False
        if isinstance(self._every, timedelta):
            return now - self._last >= self._every.total_seconds()
        return self._every is not None or now - self._last >= self._interval_s

    def started(self, now: float) -> None:
        """Record that a checkpoint was started."""
        self._last = now

    def record_cost(self, seconds: float) -> None:
        """Record the cost of a checkpoint: the pause of training, and the writer's CPU time."""
        self._interval_s = max(SHORTEST_S, seconds / SHARE)


class RandomSeeds:
    """Seeds the global generators of Python, NumPy and MXNet according to the step.

    Python's and NumPy's are seeded before each batch (8 microseconds). MXNet's 1,024 generators
    take 1.4 ms once an operator such as ``Dropout`` has used them, so they are seeded before the
    first batch of each epoch and every ``stride`` steps. A run that resumes between two of these
    steps, after SIGTERM, gets other random numbers from MXNet until the next one.

    Args:
        seed: any integer; ``None`` does not seed the generators.
        rank: rank of the worker, so that workers get different numbers.
        stride: steps between two seeds of MXNet's generators.
    """

    def __init__(self, seed: Optional[int], rank: int, stride: int) -> None:
        self._seed = seed
        self._rank = rank
        self._stride = stride

    def seed_epoch(self, epoch: int) -> None:
        """Seed the generators before an epoch."""
        self._set("epoch", epoch, self._rank, mxnet_too=True)

    def seed_batch(self, step: int, first: bool) -> None:
        """Seed the generators before a batch is read.

        Args:
            step: number of completed steps, in all epochs.
            first: whether it is the first batch of its epoch, or of this process.
        """
        # Gluon initializes weights of unknown shape at the first batch. All workers use the same
        # seed for it, since without a kvstore each keeps its own weights.
        rank = self._rank if step else 0
        mxnet_too = first or step % self._stride == 0 or step == 1
        self._set("step", step, rank, mxnet_too)

    def _set(self, kind: str, number: int, rank: int, mxnet_too: bool) -> None:
        if self._seed is None:
            return
        import numpy

        text = f"{self._seed} {rank} {kind} {number}"
        value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        random.seed(value)
        numpy.random.seed(value)
        if mxnet_too:
            import mxnet

            mxnet.random.seed(value >> 1)  # it takes a signed 32-bit number
