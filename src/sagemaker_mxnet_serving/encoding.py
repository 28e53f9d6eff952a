"""From a prediction to the bytes of an answer: JSON, CSV and NPY.

JSON is written by orjson, which reads NumPy's memory and writes a float32 with as many digits as
a float32 has. JSON has no NaN and no infinity: they become ``null``.
"""

import io
from typing import Any, List, Sequence, Union

import numpy as np
import orjson

from sagemaker_mxnet_serving.media_types import CSV, JSON

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def encode(outputs: Sequence[Any], name: str) -> bytes:
    """Write a model's outputs, NumPy arrays of numbers.

    Args:
        outputs: one array; or several, for JSON only: they become a list in the model's order.
        name: the content type, one of ``media_types.SUPPORTED``.
    """
    if name == JSON:
        return to_json(outputs[0] if len(outputs) == 1 else list(outputs))
    (array,) = outputs
    if name == CSV:
        return _to_csv(np.asarray(array))
    stream = io.BytesIO()
    np.save(stream, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


def to_json(value: Any) -> bytes:
    """Write any value of Python, NumPy or MXNet as JSON.

    Raises:
        TypeError: when there is no JSON for it.
    """
    return orjson.dumps(value, default=_plain, option=_OPTIONS)


def _plain(value: Any) -> Any:
    """Return what orjson knows in place of what it does not."""
    if hasattr(value, "asnumpy"):
        value = value.asnumpy()
    if isinstance(value, np.ndarray):
        if value.dtype == np.float16:
            value = value.astype(np.float32)
        if value.dtype.kind in "biuf" and value.ndim:
            return np.ascontiguousarray(value)
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (set, frozenset)):
        return list(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _to_csv(array: Any) -> bytes:
    """Write a line for each row, all its numbers in one line."""
    rows = array.reshape((len(array), -1)) if array.ndim else array.reshape((1, 1))
    if rows.dtype == np.float16:
        rows = rows.astype(np.float32)
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        lines: List[Union[str, bytes]] = [",".join(map(str, row)) for row in rows]
        return ("\n".join(map(str, lines)) + "\n").encode("ascii")
    text = orjson.dumps(np.ascontiguousarray(rows), option=_OPTIONS)
    return text[2:-2].replace(b"],[", b"\n") + b"\n" if rows.size else b""
