"""Log lines of steps that take long: one line when a step begins, and one for every 30 s."""

import contextlib
import sys
import threading
import time
from typing import Iterator

INTERVAL = 30.0
"""Seconds between two lines about a step that goes on."""


def write_line(text: str) -> None:
    """Write one line to stderr, unless nobody reads it: that is no reason to fail."""
    with contextlib.suppress(OSError):
        print(f"[sagemaker-mxnet-training] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(step: str, interval: float = INTERVAL) -> Iterator[None]:
    """Log that a step begins, and every ``interval`` seconds that it goes on.

    Args:
        step: what is done, as in ``downloading s3://bucket/key``.
        interval: seconds between the lines.
    """
    start = time.monotonic()
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(interval):
            write_line(f"still {step} ({time.monotonic() - start:.0f} s)")

    write_line(step)
    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
