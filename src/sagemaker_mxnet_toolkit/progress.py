"""The voice of the steps before training: one line when one begins, and one for every 30 s."""

import contextlib
import sys
import threading
import time
from typing import Iterator

INTERVAL = 30.0
"""Seconds between two lines about a step that goes on."""


def say(text: str) -> None:
    """Write one line to stderr."""
    print(f"[sagemaker-mxnet-training] {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(step: str, interval: float = INTERVAL) -> Iterator[None]:
    """Say that a step begins, and again and again that it goes on.

    Args:
        step: what is done, as in ``downloading s3://bucket/key``.
        interval: seconds between the lines.
    """
    start = time.monotonic()
    done = threading.Event()

    def speak() -> None:
        while not done.wait(interval):
            say(f"still {step} ({time.monotonic() - start:.0f} s)")

    say(step)
    thread = threading.Thread(target=speak, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
