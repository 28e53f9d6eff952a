"""Exceptions as text: a summary in one line, the traceback, and the last line a process printed."""

import builtins
import re
from typing import Sequence

_GROUP_MEMBERS = 3
"""Number of exceptions of a group that its summary names."""

_TERMINATED = re.compile(r"terminate called after throwing an instance of '(.*)'")

# Escape sequences (ECMA-48): control sequences, operating system commands (such as a window's
# title), and others.
_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])"
)
# Other control characters, except tabs and line ends.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_GROUP_DEPTH = 3
"""Number of nested groups that a summary includes."""


def summary(error: BaseException) -> str:
    """Return type and message in one line, such as ``ValueError: boom``.

    Notes of ``add_note`` (CPython 3.11) are left out. A ``SyntaxError`` includes its file and line;
    an exception group (CPython 3.11) is followed by its first members.
    """
    return " ".join(_summary(error, _GROUP_DEPTH).split())


def cause_line(error: BaseException) -> str:
    """Return the last line of an error's message, which has the cause in errors of MXNet.

    These start with a C++ stack.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def text(error: BaseException) -> str:
    """Return the traceback that Python prints for an uncaught exception, including notes."""
    try:
        import traceback  # only needed after a failure; importing it would delay every script

        lines = traceback.format_exception(type(error), error, error.__traceback__)
    except Exception as failure:  # such as a MemoryError; the caller still has the summary
        return f"(no traceback: {type(failure).__name__})"
    return "".join(lines).rstrip()


def plain(text: str) -> str:
    """Remove colours and other terminal sequences; escape other control characters."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", _SEQUENCE.sub("", text))


def last_words(stderr: str) -> str:
    """Return the cause of a process' death from its stderr; empty if it printed nothing.

    This is the exception at the end of a traceback, the ``what()`` of a C++ exception, or else the
    last line: a failed assertion, the C library's reason for SIGABRT, or a command's message.
    """
    # CPython's faulthandler prints the stack after this line.
    before, dump, after = stderr.rpartition("Fatal Python error: ")
    text = before if dump else after
    _, trace, raised = text.rpartition("Traceback (most recent call last):\n")
    exceptions = [line for line in raised.splitlines() if line[:1].strip()] if trace else []
    if exceptions:
        return exceptions[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number in range(len(lines) - 1, -1, -1):
        name = _TERMINATED.match(lines[number])
        if name is not None:
            what = lines[number + 1 : number + 2]
            return ": ".join([name[1], *(line.replace("what():", "").strip() for line in what)])
    return lines[-1] if lines else ""


def _summary(error: BaseException, depth: int) -> str:
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("__main__", "builtins"):
        name = f"{kind.__module__}.{name}"
    try:
        message = str(error)
        # MXNet's message begins with the stack of its library, and repeats the name after it.
        before, trace, raised = message.partition("Traceback (most recent call last):\n")
        if trace and not before:
            message = re.sub(rf"\A(?: .*\n)*(?:{kind.__qualname__}: )?", "", raised)
    except Exception:
        message = f"<exception in {name}.__str__>"
    line = f"{name}: {message}" if message else name
    members = _members(error)
    if not members or depth == 0:
        return line
    listed = [_summary(member, depth - 1) for member in members[:_GROUP_MEMBERS]]
    listed += ["..."] if len(members) > _GROUP_MEMBERS else []
    return f"{line}: {'; '.join(listed)}"


def _members(error: BaseException) -> Sequence[BaseException]:
    """Return the exceptions of an exception group; empty for others, and before CPython 3.11."""
    group = getattr(builtins, "BaseExceptionGroup", None)
    if group is None or not isinstance(error, group):
        return ()
    members: Sequence[BaseException] = error.exceptions
    return members
