"""Encodes predictions in JSON, CSV and NPY, and failures of functions as text.

A float32 is written with the digits of the equal double, as the released inference toolkit does:
clients compare them. JSON has neither NaN nor infinity: they become ``null``.
"""

import collections
import io
from collections import abc
from typing import Any, Sequence

import msgspec
import numpy as np
import orjson

from sagemaker_mxnet_serving.inference import Request, Response
from sagemaker_mxnet_serving.worker.media_types import CSV, JSON
from sagemaker_mxnet_serving.worker.script import user_traceback
from sagemaker_mxnet_toolkit.log import write_all

_STDERR = 2


def encode(outputs: Sequence[Any], name: str) -> bytes:
    """Encode a model's outputs, NumPy arrays of numbers.

    Args:
        outputs: one array; for JSON also several, which become a list.
        name: the content type, one of ``media_types.SUPPORTED``.
    """
    if name == JSON:
        written = [_array_to_json(np.asarray(each)) for each in outputs]
        return written[0] if len(written) == 1 else b"[" + b",".join(written) + b"]"
    (array,) = outputs
    if name == CSV:
        return _to_csv(np.asarray(array))
    stream = io.BytesIO()
    np.save(stream, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


def to_json(value: Any) -> bytes:
    """Encode a value of Python, NumPy or MXNet as JSON.

    Raises:
        TypeError: it cannot be encoded.
    """
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        if error.__cause__ is not None:  # _plain's own
            raise
        # Unlike orjson, msgspec writes integers beyond 64 bits, and NumPy numbers as keys.
        return msgspec.json.encode(value, enc_hook=_plain)


_SEQUENCES = (tuple, abc.Set, abc.Iterator, abc.KeysView, abc.ValuesView, collections.deque, range)


def _plain(value: Any) -> Any:
    """Return an equal value of a type that JSON encoders support."""
    if hasattr(value, "asnumpy"):
        value = value.asnumpy()
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind == "M":
            value = value.astype("datetime64[us]")
        return value.tolist()
    for kind in (str, float, int):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, _SEQUENCES):
        return list(value)
    if isinstance(value, abc.Mapping):
        return dict(value)
    raise TypeError(f"a value of type {type(value).__name__} cannot be encoded as JSON")


def _array_to_json(array: Any) -> bytes:
    return orjson.dumps(_widened(array), option=orjson.OPT_SERIALIZE_NUMPY)


def _widened(array: Any) -> Any:
    """Return an equal array of doubles, whose numbers orjson writes as Python does."""
    if array.ndim == 0:
        return array.item()
    return np.ascontiguousarray(array, np.float64 if array.dtype.kind == "f" else None)


def _to_csv(array: Any) -> bytes:
    """Encode each row as one line."""
    rows = _widened(array.reshape((len(array), -1)) if array.ndim else array.reshape((1, 1)))
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        lines = [",".join(map(repr, row)) for row in rows.tolist()]
        return ("\n".join(lines) + "\n").encode("ascii")
    text = orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)
    return text[2:-2].replace(b"],[", b"\n") + b"\n" if rows.size else b""


def failure_response(request: Request, function: str, error: BaseException) -> Response:
    """Return the response for a function that failed, and log the exception.

    The exception's text is for the log only: it may contain paths, data or secrets.
    """
    kind = type(error).__name__
    head = f"request {request.id}: {function} raised {kind}"
    # One write, so that the lines of several workers do not mix.
    lines = f"[{request.id}] ".join(["", *user_traceback(error).splitlines(keepends=True)])
    write_all(_STDERR, f"{head}\n{lines}\n".encode("utf-8", "replace"))
    return Response(
        500,
        f"{function} raised {kind}; see the container's log for request {request.id}\n".encode(
            "utf-8", "replace"
        ),
    )
