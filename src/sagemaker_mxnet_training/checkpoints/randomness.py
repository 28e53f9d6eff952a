"""Random numbers that follow from the position in training.

MXNet 1.9.1 cannot read the state of its generators, only set a seed. So no state is saved: what is
random follows from the seed, the host, and the step. Python's and NumPy's generators are set before
every batch (8 microseconds); MXNet's, whose 1,024 generators take 1.4 ms once an operator such as
``Dropout`` has used them, before each epoch's first batch and every ``stride`` steps, at which
checkpoints are taken. A run that goes on from such a checkpoint draws the same numbers as one that
was never interrupted. One that was stopped between two of them (SIGTERM) draws others from
MXNet until the next.
"""

import hashlib
import random
from typing import Optional


class Randomness:
    """Seeds the global generators of Python, NumPy and MXNet.

    Args:
        seed: any whole number; ``None`` leaves all generators alone.
        host: place of this host, so that hosts draw different numbers.
        stride: steps between two seeds of MXNet's generators.
    """

    def __init__(self, seed: Optional[int], host: int, stride: int) -> None:
        self._seed = seed
        self._host = host
        self._stride = stride

    def epoch(self, epoch: int) -> None:
        """Set the generators for what an epoch draws before its first batch."""
        self._set("epoch", epoch, self._host, True)

    def batch(self, step: int, first: bool) -> None:
        """Set the generators before a batch is drawn.

        Args:
            step: steps done before it, over all epochs.
            first: whether it is the first of its epoch, or of this process.
        """
        # The first of all is where Gluon initializes weights whose shapes it did not know. All
        # hosts must find the same: those of rank 0 are taken, and which host that is varies.
        host = self._host if step else 0
        self._set("step", step, host, first or step % self._stride == 0 or step == 1)

    def _set(self, kind: str, number: int, host: int, mxnet_too: bool) -> None:
        if self._seed is None:
            return
        import numpy  # noqa: PLC0415

        text = f"{self._seed} {host} {kind} {number}"
        value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        random.seed(value)
        numpy.random.seed(value)
        if mxnet_too:
            import mxnet  # noqa: PLC0415

            mxnet.random.seed(value >> 1)  # it takes a signed 32-bit number
