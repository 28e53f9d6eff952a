"""What child programs report: events to the supervisor, and lines in the log.

Events are JSON objects, one per line, over a pipe.

The child inherits the write end of the pipe, ``SAGEMAKER_MXNET_REPORT_FD``. Each object has the key
``event``: ``started`` when the process starts its work, ``stepped`` when a server's optimizer has
run for the first time, ``finished`` when the script has finished. A failure is ``{"event":
"failed", "reason": "<one line>", "detail": "<more lines>", "kind": "<value of FailureKind>"}``. A
script with ``checkpoints.Checkpoint`` also sends, on each host:

- ``checkpointing``, with ``directory``: it uses checkpoints in this directory. Sent before it
  resumes.
- ``resumed``, with ``file`` (a name in that directory) and ``step``: it has resumed from this
  checkpoint. Not sent for a fresh start.
- ``checkpoint``, with ``file``, ``step``, ``epoch``, ``batch`` (completed before it) and
  ``seconds`` (duration of writing): a checkpoint is complete and flushed. Only the first host
  writes checkpoints and sends this.

A script that trains with Horovod sends ``horovod``, with ``threads``: the ids of Horovod's threads.

A script that exits early because of a signal, through a checkpoint or a handler with
``sys.exit(0)``, sends ``left``, with ``signal`` (its number).
"""

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any, Iterator, MutableMapping, Optional, TextIO

from sagemaker_mxnet_toolkit.failure import FailureKind
from sagemaker_mxnet_toolkit.settings.variables import REPORT_FD

LINE_LIMIT = 32 * 1024
"""Maximum size of a line in bytes, with its newline: half the capacity of a pipe (pipe(7))."""

INTERVAL = 30.0
"""Seconds between two log lines about the same step."""


class Report:
    """The child's end of the pipe. It never blocks and never raises.

    A forked child sends nothing.

    Args:
        fd: the pipe's write end, or ``None`` to send nothing.
    """

    def __init__(self, fd: Optional[int]) -> None:
        self._fd = fd
        self._pid = os.getpid()
        self._torn = False

    def event(self, name: str, **fields: Any) -> bool:
        """Send one event.

        Args:
            name: the value of the key ``event``.
            **fields: other keys, with JSON values. Long strings are cut to fit ``LINE_LIMIT``.

        Returns:
            Whether the complete line was written.
        """
        if self._fd is None or os.getpid() != self._pid:
            return False
        line = _line({"event": name, **fields})
        if self._torn:
            # Separate this line from the partial one, which the reader drops.
            line = b"\n" + line
        try:
            written = os.write(self._fd, line)
        except OSError:  # the pipe is full or closed
            return False
        self._torn = written < len(line)
        return not self._torn

    def failed(
        self, reason: str, detail: str = "", kind: FailureKind = FailureKind.INTERNAL
    ) -> None:
        """Report why this process failed; print it to stderr if it cannot be sent.

        Args:
            reason: the cause in one line.
            detail: additional lines, such as a traceback, of which the end is kept.
            kind: the kind of the failure.
        """
        reason = " ".join(reason.split("\n"))
        if not self.event("failed", reason=reason, detail=detail, kind=kind.value):
            with contextlib.suppress(OSError, ValueError):  # stderr is closed
                print_whole(f"{reason}\n{detail}".rstrip())


_opened = Report(None)


def open_report(environ: Optional[MutableMapping[str, str]] = None) -> Report:
    """Open the pipe that the environment names, without passing it to children of this process.

    Args:
        environ: ``os.environ`` by default. The variable is removed from it.
    """
    text = (os.environ if environ is None else environ).pop(REPORT_FD, "")
    global _opened  # noqa: PLW0603
    try:
        fd = int(text)
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
    except (ValueError, OSError, OverflowError):
        return Report(None)
    _opened = Report(fd)
    return _opened


def opened_report() -> Report:
    """Return the result of ``open_report`` in this process, or a report that sends nothing."""
    return _opened


def _line(fields: MutableMapping[str, Any]) -> bytes:
    """Encode fields as a line of at most ``LINE_LIMIT`` bytes, shortening strings until it fits."""
    while True:
        text = json.dumps(fields, ensure_ascii=False, default=str)
        # Lone surrogates, for example from os.fsdecode, become \udcxx escapes.
        line = text.encode("utf-8", "backslashreplace") + b"\n"
        if len(line) <= LINE_LIMIT:
            return line
        longest = max(fields, key=lambda key: len(str(fields[key])))
        value = str(fields[longest])
        half = len(value) // 2
        # The cause is at the beginning of a reason, and at the end of other strings.
        fields[longest] = value[:half] if longest == "reason" else value[-half:]


def write_line(text: str) -> None:
    """Write one line to stderr. A closed stderr is not an error."""
    with contextlib.suppress(OSError):
        print_whole(f"[sagemaker-mxnet-training] {text}")


def print_whole(text: str, file: Optional[TextIO] = None) -> None:
    """Write a line, or several, at once: other processes of the host write to the same stream.

    Without a buffer (``python -u``), ``print`` writes the end of the line by itself.

    Args:
        text: the line, without its end.
        file: the stream; stderr by default.
    """
    stream = file or sys.stderr
    stream.write(f"{text}\n")
    stream.flush()


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
