"""How a child process tells the supervisor what happened: one JSON object a line, over a pipe.

The supervisor starts a child with ``SAGEMAKER_MXNET_REPORT_FD`` naming the inherited write end of
a pipe. Every line is an object with the key ``event``: ``started`` when the process begins its
work, ``stepped`` when a server's optimizer has run for the first time, ``finished`` when the script
has. A failure is ``{"event": "failed", "reason": "<one line>", "detail": "<more lines>", "kind":
"<value of FailureKind>"}``. A script with ``checkpoints.Checkpoint`` adds, on each host:

- ``checkpointing``, with ``directory``: it uses checkpoints in this directory. Sent before it looks
  for one to go on from.
- ``resumed``, with ``file`` (a name in that directory) and ``step``: it goes on from this one. Not
  sent for a fresh start.
- ``checkpoint``, with ``file``, ``step``, ``epoch``, ``batch`` (all done before it) and ``seconds``
  (that writing took): one is complete and flushed. Sent by the first host alone, which writes them.

Little is imported, as the worker imports this before the user's script.
"""

import contextlib
import json
import os
import sys
from typing import Any, MutableMapping, Optional

FD_VARIABLE = "SAGEMAKER_MXNET_REPORT_FD"
"""Variable that names the inherited file descriptor, as a decimal number."""

LINE_LIMIT = 32 * 1024
"""Bytes of one line, its newline included: half of what an empty Linux pipe takes (pipe(7))."""

# Values of failure.FailureKind. The enum itself costs the worker an import of dataclasses.
EXCEPTION = "exception"
EXIT_STATUS = "exit status"
INTERNAL = "internal"
NETWORK = "network"
REQUIREMENTS = "requirements"


class Report:
    """The child's end of the pipe. It never blocks and never raises: the report is not the work.

    It belongs to the process that made it: from a forked child nothing is sent.

    Args:
        fd: the pipe's write end, or ``None`` where nobody listens.
    """

    def __init__(self, fd: Optional[int]) -> None:
        self._fd = fd
        self._pid = os.getpid()
        self._torn = False

    def event(self, name: str, **fields: Any) -> bool:
        """Send one event.

        Args:
            name: what happened; the value of the key ``event``.
            **fields: more keys, with values that JSON has. Long texts are cut to ``LINE_LIMIT``.

        Returns:
            Whether the whole line is in the pipe.
        """
        if self._fd is None or os.getpid() != self._pid:
            return False
        line = _line({"event": name, **fields})
        if self._torn:
            # The reader drops the torn half line; this one must not be glued to it.
            line = b"\n" + line
        try:
            written = os.write(self._fd, line)
        except OSError:  # full (nobody reads), or closed
            return False
        self._torn = written < len(line)
        return not self._torn

    def failed(self, reason: str, detail: str = "", kind: str = INTERNAL) -> None:
        """Report why this process failed; on stderr when nobody listens.

        Args:
            reason: the cause in one line.
            detail: more lines, such as the end of a traceback; its end is what is kept.
            kind: what sort of failure it is, a value of ``failure.FailureKind``.
        """
        reason = " ".join(reason.split("\n"))
        if not self.event("failed", reason=reason, detail=detail, kind=kind):
            with contextlib.suppress(OSError, ValueError):  # nobody reads stderr either
                print(f"{reason}\n{detail}".rstrip(), file=sys.stderr, flush=True)


_opened = Report(None)


def open_report(environ: Optional[MutableMapping[str, str]] = None) -> Report:
    """Take the pipe over from the environment, so that no child of this process has it too.

    Args:
        environ: where to look, ``os.environ`` by default. The variable is removed from it.
    """
    text = (os.environ if environ is None else environ).pop(FD_VARIABLE, "")
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
    """Return the report that ``open_report`` opened in this process, or one that nobody reads."""
    return _opened


def _line(fields: MutableMapping[str, Any]) -> bytes:
    """Encode fields as a line of at most ``LINE_LIMIT`` bytes, halving the texts until it fits."""
    while True:
        text = json.dumps(fields, ensure_ascii=False, default=str)
        # Lone surrogates, as os.fsdecode makes them, become JSON's own \udcxx escapes.
        line = text.encode("utf-8", "backslashreplace") + b"\n"
        if len(line) <= LINE_LIMIT:
            return line
        longest = max(fields, key=lambda key: len(str(fields[key])))
        value = str(fields[longest])
        half = len(value) // 2
        # A cause is told at the beginning of a reason, and at the end of everything else.
        fields[longest] = value[:half] if longest == "reason" else value[-half:]
