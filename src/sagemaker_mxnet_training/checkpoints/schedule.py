"""When a checkpoint is due. The caller passes the time (``time.monotonic``)."""

from datetime import timedelta
from typing import Union

SHARE = 0.035
"""Largest part of the time that automatic checkpoints may take: the figure of CheckFreq (Mohan et
al., FAST 2021)."""

SHORTEST = 10.0
"""Seconds between automatic checkpoints, at the least: each of them is uploaded in SageMaker."""

STRIDE = 20
"""A checkpoint that time makes due waits for a step that is a multiple of this (``randomness``)."""

Every = Union[int, timedelta, None]
"""Steps, or time, between checkpoints; ``None`` for automatic."""


class Schedule:
    """Says when a checkpoint is due.

    Args:
        every: steps or time between checkpoints; ``None`` for as often as takes at most ``SHARE``
            of the time.
        now: the time.

    Raises:
        TypeError: when ``every`` is of another type.
        ValueError: when it is not positive.
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
        self._interval = SHORTEST

    @property
    def follows_time(self) -> bool:
        """Whether time, and not only the number of steps, makes a checkpoint due."""
        return not isinstance(self._every, int)

    @property
    def stride(self) -> int:
        """Steps of which every due step is a multiple."""
        return self._every if isinstance(self._every, int) else STRIDE

    def due(self, step: int, now: float) -> bool:
        """Tell whether a checkpoint is due after this many steps."""
        if step % self.stride:
            return False
        if isinstance(self._every, timedelta):
            return now - self._last >= self._every.total_seconds()
        return self._every is not None or now - self._last >= self._interval

    def taken(self, now: float) -> None:
        """Note that a checkpoint was begun."""
        self._last = now

    def cost(self, seconds: float) -> None:
        """Note what a checkpoint cost: seconds that training waited, and CPU of the writer."""
        self._interval = max(SHORTEST, seconds / SHARE)
