"""Validation of values: a ``Kind`` converts one value, and ``Validator`` collects the errors."""

import math
import os
import re
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any, Callable, Dict, Generic, List, Optional, TypeVar

from sagemaker_mxnet_toolkit.settings.sources import Faults, Found, parse

LONGEST = 7 * 86400.0
"""The longest valid duration in seconds; poll(2) and epoll_wait(2) overflow after 24 days."""

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}

# Errors reported for one list; the others are probably the same.
_SAMPLE = 3

T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class Kind(Generic[T]):
    """A kind of values.

    Attributes:
        convert: returns the value, or raises ``ValueError`` with the problem.
        expected: description of valid values for messages.
        unit: unit of a number, such as ``s``; may be empty.
    """

    convert: Callable[[Any], T]
    expected: str
    unit: str = ""


class Validator:
    """Validates and converts values. An invalid value is recorded and replaced by the default."""

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
        """Return a list of distinct names, or ``None`` if it is invalid."""
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
            self.faults.add(f"duplicate {what}", where, f"a JSON list of different {what}s")
        return None if twice else list(found.value)


def argument_problem(text: str) -> str:
    """Return why a string cannot be an argument or a variable of a program; empty if it can."""
    if "\0" in text:
        return "contains a NUL character"
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        return f"contains a character that cannot be encoded as {error.encoding}"
    return ""


def _string(value: Any) -> str:
    problem = argument_problem(value) if isinstance(value, str) else "not a string"
    if problem:
        raise ValueError(problem)
    return str(value)


def string(expected: str) -> "Kind[str]":
    """Return the kind of strings that can be passed to a program."""
    return Kind(_string, expected)


def matching(pattern: "re.Pattern[str]", what: str, expected: str) -> "Kind[str]":
    """Return the kind of strings that match a pattern, such as names.

    Args:
        pattern: matches the whole string.
        what: name of the kind in messages, with its article.
        expected: description of valid values.
    """

    def convert(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"not {what}")
        return value

    return Kind(convert, expected)


def integer(low: int, high: int, what: str) -> "Kind[int]":
    """Return the kind of integers in a range, given as numbers or as strings.

    Args:
        low: the smallest valid number.
        high: the largest.
        what: name of the kind in messages, with its article.
    """

    def convert(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"not {what}")
        return value

    return Kind(convert, f"an integer from {low} to {high}")


def port(low: int = 1) -> "Kind[int]":
    """Return the kind of TCP ports. If ``low`` is 0, 0 means any free port."""
    return integer(low, 65535, "a port")


def seconds(low: float = 0.0, high: float = LONGEST) -> "Kind[float]":
    """Return the kind of durations in seconds, given as numbers or as strings."""

    def convert(value: Any) -> float:
        try:
            # float() also accepts a bool.
            duration = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            duration = math.nan
        if not low <= duration <= high:
            raise ValueError("not a duration")
        return duration

    return Kind(convert, f"a number of seconds from {low:.0f} to {high:.0f}", "s")


def _flag(value: Any) -> bool:
    # bool("False") is True.
    word = str(value).strip().lower()
    if word not in ("true", "1", "false", "0"):
        raise ValueError("neither true nor false")
    return word in ("true", "1")


def _level(value: Any) -> int:
    named = _LEVELS.get(value.strip().upper()) if isinstance(value, str) else None
    return named if named is not None else integer(0, 100, "a log level").convert(value)


def _addresses(value: Any) -> Dict[str, str]:
    if isinstance(value, str):
        try:
            value = parse(value)
        except ValueError as error:
            raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(value, dict) or not all(map(is_ipv4, value.values())):
        raise ValueError("not a mapping of host names to IPv4 addresses")
    return value


def is_ipv4(value: Any) -> bool:
    """Return whether a value is an IPv4 address."""
    try:
        socket.inet_pton(socket.AF_INET, value)
    except (OSError, TypeError, ValueError):
        return False
    return True


PATH = string("a path")
FLAG = Kind(_flag, "true or false")
LOG_LEVEL = Kind(_level, "an integer from 0 to 100, or the name of a level such as INFO")
ADDRESSES = Kind(
    _addresses, 'a JSON object of host names and IPv4 addresses, such as {"algo-1": "10.0.0.1"}'
)
