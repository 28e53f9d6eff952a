"""JSON as every reader of the configuration understands it, and values as variables hold them."""

import json
import math
from typing import Any, Iterator, Tuple

DEEPEST = 64
"""Levels of nesting that JSON may have; no real configuration comes near it."""


def parse(text: str) -> Any:
    """Return the value of a JSON text.

    Python's ``json`` also accepts ``NaN``, ``Infinity`` and 1e999, which are not JSON, and which
    other readers of ``SM_HPS`` refuse.

    Raises:
        ValueError: it is not JSON, is nested deeper than ``DEEPEST``, or holds NaN, infinity or a
            number that is too large.
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
    """Return a hyperparameter's value: its JSON value, or the text itself if it is not JSON."""
    try:
        return parse(text)
    except ValueError:
        return text


def variable_text(value: Any) -> str:
    """Return a value as a variable holds it: text as it is, ``null`` empty, anything else as JSON.

    The form is that of sagemaker-training 5.1.4 (``mapping.to_env_vars``).
    """
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
