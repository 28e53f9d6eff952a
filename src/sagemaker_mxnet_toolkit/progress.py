"""Progress of slow steps in the log: one line when a step starts, and one every 30 seconds."""

import contextlib
import sys
import threading
import time
from typing import Iterator

INTERVAL = 30.0
"""Seconds between two log lines about the same step."""


def write_line(text: str) -> None:
    """Write one line to stderr. A closed stderr is not an error."""
    with contextlib.suppress(OSError):
        print(f"[sagemaker-mxnet-training] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(step: str, interval: float = INTERVAL) -> Iterator[None]:
    """Log a step when it starts, and every ``interval`` seconds until the block ends.

    Args:
        step: the step, such as ``downloading s3://bucket/key``.
        interval: seconds between two lines.
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
