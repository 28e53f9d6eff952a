"""Strict JSON, and conversion of JSON values to and from environment variables."""

import json
import math
from typing import Any, Iterator, Tuple

DEEPEST = 64
"""Maximum levels of nesting, far above that of any real configuration."""


def parse(text: str) -> Any:
    """Parse JSON.

    Python's ``json`` also accepts ``NaN``, ``Infinity`` and 1e999, which are not valid JSON and
    which other programs that read ``SM_HPS`` reject.

    Raises:
        ValueError: it is not valid JSON, is nested deeper than ``DEEPEST``, or contains NaN,
            infinity or a number that is too large.
    """
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if any(depth > DEEPEST for depth, _ in walk(value)):
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def walk(value: Any) -> Iterator[Tuple[int, Any]]:
    """Yield a JSON value and every key and value in it, each with its depth."""
    pending = [(0, value)]
    while pending:
        depth, value = pending.pop()
        yield depth, value
        if isinstance(value, dict):
            pending += [(depth + 1, item) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            pending += [(depth + 1, item) for item in value]


def decode(text: str) -> Any:
    """Return a hyperparameter's value: the parsed JSON, or the text if it is not valid JSON."""
    try:
        return parse(text)
    except ValueError:
        return text


def variable_text(value: Any) -> str:
    """Return the text of an environment variable for a JSON value.

    Strings stay as they are, ``null`` becomes empty, and others become JSON, as in
    sagemaker-training 5.1.4 (``mapping.to_env_vars``).
    """
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
