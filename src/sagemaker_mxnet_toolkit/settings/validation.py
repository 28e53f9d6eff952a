"""From what was found to values of the right kind, or to faults that say what was expected."""

import dataclasses
import math
import os
import re
from collections import Counter
from typing import List, Optional

from sagemaker_mxnet_toolkit.settings.sources import Faults, Found

LONGEST = 28 * 86400.0
"""The longest time that can be set, in seconds: SageMaker ends every training job after 28 days
(API reference, StoppingCondition)."""

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}

# Faults reported of one list; the others are most likely the same.
_SAMPLE = 3


class Validator:
    """Turns what was found into values. What has a fault is noted, and replaced by the default.

    Args:
        faults: where faults are noted.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def text(self, found: Optional[Found], default: str, expected: str = "text") -> str:
        """Return a text that can be handed to a program."""
        if found is None:
            return default
        trouble = unpassable(found.value) if isinstance(found.value, str) else "not text"
        if trouble:
            self._faults.add(trouble, found, expected)
            return default
        return str(found.value)

    def path(self, found: Optional[Found], default: str) -> str:
        """Return an absolute path."""
        return os.path.abspath(self.text(found, default, "a path"))

    def whole(self, found: Optional[Found], default: int, low: int, high: int, what: str) -> int:
        """Return a whole number, given as such or as text."""
        if found is None:
            return default
        value = found.value
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._faults.add(f"not {what}", found, f"a whole number from {low} to {high}")
            return default
        return value

    def port(self, found: Optional[Found], default: int, low: int = 1) -> int:
        """Return a TCP port."""
        return self.whole(found, default, low, 65535, "a port")

    def seconds(self, found: Optional[Found], default: float, zero: bool) -> float:
        """Return a duration in seconds."""
        if found is None:
            return default
        try:
            # float() would also take the bool that JSON's true is.
            value = math.nan if isinstance(found.value, bool) else float(found.value)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if 0 < value <= LONGEST or (zero and value == 0):
            return value
        expected = f"seconds, {'from' if zero else 'more than'} 0 to {LONGEST:.0f}"
        self._faults.add("not a duration", found, expected)
        return default

    def flag(self, found: Optional[Found]) -> bool:
        """Return true or false, which ``bool("False")`` would not."""
        word = "false" if found is None else str(found.value).strip().lower()
        if word not in ("true", "1", "false", "0"):
            self._faults.add("neither true nor false", found, "true or false")
        return word in ("true", "1")

    def level(self, found: Optional[Found]) -> int:
        """Return a log level, given as a number or by its name in ``logging``."""
        if found is not None and isinstance(found.value, str):
            named = _LEVELS.get(found.value.strip().upper())
            if named is not None:
                return named
        return self.whole(found, _LEVELS["INFO"], 0, 100, "a log level")

    def names(self, found: Found, pattern: "re.Pattern[str]", what: str) -> Optional[List[str]]:
        """Return a list of different names; ``None`` where it has a fault."""
        if found.value is None:
            return None
        expected = f"a JSON list of {what}s"
        if not isinstance(found.value, list):
            self._faults.add("not a list", found, expected)
            return None
        wrong = [x for x in found.value if not (isinstance(x, str) and pattern.match(x))]
        for item in wrong[:_SAMPLE]:
            self._faults.add(f"not a {what}", dataclasses.replace(found, value=item), expected)
        if wrong:
            return None
        twice = [name for name, count in Counter(found.value).items() if count > 1]
        for name in twice[:_SAMPLE]:
            where = dataclasses.replace(found, value=name)
            self._faults.add(f"a {what} named twice", where, "different ones")
        return None if twice else list(found.value)


def unpassable(text: str) -> str:
    """Return why a text can be no argument and no variable of a program, or an empty text."""
    if "\0" in text:
        return "a text with a NUL character"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "a text with half a surrogate pair"
    return ""
