"""The text of an exception: its type and message in one line, and its traceback."""

import builtins
from typing import Sequence

_GROUP_MEMBERS = 3
"""Exceptions of a group that are named in its summary."""

_GROUP_DEPTH = 3
"""Groups within groups that a summary looks into."""


def summary(error: BaseException) -> str:
    """Return type and message in one line, such as ``ValueError: boom``.

    They are what Python prints last in a traceback, without the notes of ``add_note`` (CPython
    3.11), which may follow there. A ``SyntaxError`` names its file and line; an exception group
    (CPython 3.11) is followed by its first members.
    """
    return " ".join(_summary(error, _GROUP_DEPTH).split())


def text(error: BaseException) -> str:
    """Return what Python prints about an exception that nobody catches: traceback and notes."""
    try:
        import traceback  # noqa: PLC0415 - for failures alone, and every script would wait for it

        lines = traceback.format_exception(type(error), error, error.__traceback__)
    except Exception as failure:  # such as a MemoryError: the summary must not be lost with it
        return f"(no traceback: {type(failure).__name__})"
    return "".join(lines).rstrip()


def _summary(error: BaseException, depth: int) -> str:
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("__main__", "builtins"):
        name = f"{kind.__module__}.{name}"
    try:
        message = str(error)
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
    """Return the exceptions of an exception group; nothing for any other, and before 3.11."""
    group = getattr(builtins, "BaseExceptionGroup", None)
    if group is None or not isinstance(error, group):
        return ()
    members: Sequence[BaseException] = error.exceptions
    return members
