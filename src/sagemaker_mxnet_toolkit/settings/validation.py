"""How values are checked: each ``Kind`` says what is valid, and ``Validator`` collects faults."""

import math
import os
import re
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any, Callable, Dict, Generic, List, Optional, TypeVar

from sagemaker_mxnet_toolkit.settings.faults import Faults, Found
from sagemaker_mxnet_toolkit.settings.json_text import parse

LONGEST = 7 * 86400.0
"""The longest duration that can be set, in seconds. Waits are handed to the kernel in milliseconds
of 32 bits, which end at 24 days (poll(2), epoll_wait(2))."""

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}

# Faults reported for one list; the others are most likely the same.
_SAMPLE = 3

T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class Kind(Generic[T]):
    """What values of one kind are.

    Attributes:
        convert: returns the value, or raises ``ValueError`` with the problem.
        expected: what is valid, as messages say it.
        unit: what a number counts, such as ``s``; may be empty.
    """

    convert: Callable[[Any], T]
    expected: str
    unit: str = ""


class Validator:
    """Turns what was found into values. An invalid value is a fault, and gives the default.

    Args:
        faults: where faults are noted.
    """

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def value(self, found: Optional[Found], kind: Kind[T], default: T) -> T:
        """Return a valid value, or the default if nothing was found or it is invalid."""
        if found is None:
            return default
        try:
            return kind.convert(found.value)
        except ValueError as error:
            self.faults.add(str(error), found, kind.expected)
            return default

    def path(self, found: Optional[Found], default: str) -> str:
        """Return an absolute path."""
        return os.path.abspath(self.value(found, PATH, default))

    def names(self, found: Found, kind: Kind[str], what: str) -> Optional[List[str]]:
        """Return a list of different names; ``None`` if it has a fault."""
        if found.value is None:
            return None
        expected = f"a JSON list of {what}s: {kind.expected}"
        if not isinstance(found.value, list):
            self.faults.add("not a list", found, expected)
            return None
        problems = []
        for item in found.value:
            try:
                kind.convert(item)
            except ValueError as error:
                problems.append((str(error), found._replace(value=item)))
        for problem, where in problems[:_SAMPLE]:
            self.faults.add(problem, where, expected)
        if problems:
            return None
        twice = [name for name, count in Counter(found.value).items() if count > 1]
        for name in twice[:_SAMPLE]:
            where = found._replace(value=name)
            self.faults.add(f"a {what} named twice", where, f"a JSON list of different {what}s")
        return None if twice else list(found.value)


def unpassable(text: str) -> str:
    """Return why a text cannot be an argument or a variable of a program, or an empty text."""
    if "\0" in text:
        return "a text with a NUL character"
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        return f"a text with a character that cannot be encoded as {error.encoding}"
    return ""


def _text(value: Any) -> str:
    problem = unpassable(value) if isinstance(value, str) else "not text"
    if problem:
        raise ValueError(problem)
    return str(value)


def text(expected: str) -> "Kind[str]":
    """Return the kind of texts that can be handed to a program."""
    return Kind(_text, expected)


def matching(pattern: "re.Pattern[str]", what: str, expected: str) -> "Kind[str]":
    """Return the kind of texts that match a pattern, such as names.

    Args:
        pattern: matches the whole text.
        what: names the kind in a message, with its article.
        expected: what is valid.
    """

    def convert(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"not {what}")
        return value

    return Kind(convert, expected)


def choice(*values: str) -> "Kind[str]":
    """Return the kind of texts that are one of a few."""

    def convert(value: Any) -> str:
        if value not in values:
            raise ValueError("not one of the choices")
        return str(value)

    return Kind(convert, " or ".join([", ".join(values[:-1]), values[-1]]))


def whole(low: int, high: int, what: str) -> "Kind[int]":
    """Return the kind of whole numbers in a range, given as numbers or as text.

    Args:
        low: the smallest valid number.
        high: the largest.
        what: names the kind in a message, with its article.
    """

    def convert(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"not {what}")
        return value

    return Kind(convert, f"a whole number from {low} to {high}")


def port(low: int = 1) -> "Kind[int]":
    """Return the kind of TCP ports. With a ``low`` of 0, 0 means any free port."""
    return whole(low, 65535, "a port")


def seconds(low: float = 0.0, high: float = LONGEST) -> "Kind[float]":
    """Return the kind of durations in seconds, given as numbers or as text."""

    def convert(value: Any) -> float:
        try:
            # float() would also accept a bool, which is what JSON's true is.
            duration = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            duration = math.nan
        if not low <= duration <= high:
            raise ValueError("not a duration")
        return duration

    return Kind(convert, f"a number of seconds from {low:.0f} to {high:.0f}", "s")


def _flag(value: Any) -> bool:
    # bool("False") would be true.
    word = str(value).strip().lower()
    if word not in ("true", "1", "false", "0"):
        raise ValueError("neither true nor false")
    return word in ("true", "1")


def _level(value: Any) -> int:
    named = _LEVELS.get(value.strip().upper()) if isinstance(value, str) else None
    return named if named is not None else whole(0, 100, "a log level").convert(value)


def _addresses(value: Any) -> Dict[str, str]:
    if isinstance(value, str):
        try:
            value = parse(value)
        except ValueError as error:
            raise ValueError(f"not JSON, {error}") from None
    if not isinstance(value, dict) or not all(map(is_ipv4, value.values())):
        raise ValueError("not addresses of hosts")
    return value


def is_ipv4(value: Any) -> bool:
    """Tell whether a value is the text of an IPv4 address."""
    try:
        socket.inet_pton(socket.AF_INET, value)
    except (OSError, TypeError, ValueError):
        return False
    return True


PATH = text("a path")
FLAG = Kind(_flag, "true or false")
LOG_LEVEL = Kind(_level, "a whole number from 0 to 100, or the name of a level such as INFO")
ADDRESSES = Kind(
    _addresses, 'a JSON object of host names and IPv4 addresses, such as {"algo-1": "10.0.0.1"}'
)
