"""Decodes the body of a request, JSON, CSV or NPY, to NumPy arrays.

The result is arrays of the model's type, in a shape that it supports, or an ``InferenceError`` of
status 400 or 415 that names the first wrong row or column. Memory is proportional to the body: an
NPY header that declares more than the body contains is rejected.

msgspec decodes JSON. It gets the nesting and the type of the numbers, rejects anything else, and
reports the position. Python's parser then decodes what msgspec rejects, because it supports NaN and
Infinity. msgspec also decodes CSV if all numbers are valid JSON, five times as fast as
``numpy.fromstring``.
"""

import functools
import io
import json
import math
import re
from dataclasses import dataclass
from typing import (
    Any,
    Callable,
    Iterator,
    List,
    Mapping,
    NoReturn,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import msgspec
import numpy as np
from numpy.lib import format as numpy_format

from sagemaker_mxnet_serving.inference import InferenceError
from sagemaker_mxnet_serving.worker.media_types import CSV, JSON, NPY, SUPPORTED, MediaType

_BOM = b"\xef\xbb\xbf"
_MAX_DIMENSIONS = 32  # NumPy 1's limit
_LONGEST_INTEGER = 20  # digits of an integer of 64 bits
_SHOWN = 40  # characters of a value in a message

# Characters of CSV cells that are JSON numbers. Without brackets, which would add rows.
_JSON_NUMBERS = b"0123456789+-.eE, \t\n"

# Python's other codecs are not character sets (zlib), or take quadratic time (punycode).
_CHARACTER_SETS = frozenset(
    {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "latin1", "windows-1252"}
    | {"utf-16", "utf-16le", "utf-16be"}
)

_numpy_format: Any = numpy_format  # untyped
_NPY_MAGIC = b"\x93NUMPY"
_NPY_LONGEST_HEADER = 10_000


@dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
        name: its name in the graph.
        dtype: its NumPy type.
        row: the shape of one row: all dimensions after the first; None if it is unknown.
        rows: its first dimension, if that is fixed; None if it is the number of rows of a batch.
        optional: whether a request may omit it.
    """

    name: str
    dtype: Any
    row: Optional[Tuple[int, ...]] = None
    rows: Optional[int] = None
    optional: bool = False

    @property
    def expected(self) -> str:
        """Its shape, for messages."""
        if self.row is None:
            return "the model's shape, rows first"
        first = "rows" if self.rows is None else str(self.rows)
        return f"shape ({', '.join([first, *map(str, self.row)])})"


Accepts = Callable[[Sequence[Tuple[int, ...]]], bool]
"""Returns whether a model supports inputs of these shapes."""


def decode(
    body: bytes,
    media_type: MediaType,
    inputs: Sequence[Input],
    accepts: Accepts = lambda shapes: False,
) -> List[Any]:
    """Decode a body to one array for each input, all with the same number of rows.

    Args:
        body: the body of the request.
        media_type: its content type.
        inputs: the model's inputs. An optional one may be None, or missing at the end.
        accepts: called if rows do not have the shape that the model was saved with. If the model
            does not support the request's shape either, but rows have as many numbers as the
            model's, they are reshaped.

    Raises:
        InferenceError: 415 if the content type is not supported, 400 if the body does not match the
            content type or the model.
    """
    name = media_type.name
    if name not in SUPPORTED or (len(inputs) > 1 and name != JSON):
        raise _unsupported(name, inputs)
    if name == NPY:
        arrays = [_decode_npy(body, inputs[0])]
    else:
        body = utf8(body, media_type)
        if not body or body.isspace():
            raise InferenceError(f"the body is empty; {_expectation(name, inputs)}")
        if name == JSON:
            arrays = _decode_json(body, inputs)
        else:
            header = media_type.parameters.get("header", "").lower() == "present"
            arrays = [_decode_csv(body, header, inputs[0], accepts)]
    _check_rows(arrays, inputs)
    for array, each in zip(arrays, inputs):
        if each.row is not None and array.shape[1:] != each.row:
            break
    else:
        return arrays
    if accepts([array.shape for array in arrays]):
        return arrays
    return [_reshape(array, each, name) for array, each in zip(arrays, inputs)]


def utf8(body: bytes, media_type: MediaType) -> bytes:
    """Return a text body in UTF-8, without a byte order mark.

    Raises:
        InferenceError: the character set is not supported, or the body is not encoded in it.
    """
    charset = media_type.parameters.get("charset", "utf-8").lower()
    if charset not in _CHARACTER_SETS:
        raise InferenceError(f"charset {charset[:_SHOWN]!r} is not supported; send UTF-8", 415)
    if charset not in ("utf-8", "utf8", "us-ascii", "ascii"):
        try:
            body = body.decode(charset).lstrip("\ufeff").encode("utf-8")
        except UnicodeError:
            raise InferenceError(f"the body is not valid {charset}") from None
    return body[len(_BOM) :] if body.startswith(_BOM) else body


def _unsupported(name: str, inputs: Sequence[Input]) -> InferenceError:
    given = f"Content-Type {name[:_SHOWN]!r} is not supported" if name else "no Content-Type"
    if len(inputs) > 1:
        text = f"{given}; a model with several inputs expects {_expectation(JSON, inputs)}"
    else:
        text = f"{given}; expected {', '.join(SUPPORTED[:-1])} or {SUPPORTED[-1]}"
    return InferenceError(text, 415)


def _expectation(name: str, inputs: Sequence[Input]) -> str:
    if len(inputs) > 1:
        shapes = ", ".join(f'"{each.name}": {each.expected}' for each in inputs)
        return f"application/json: an object of lists, {shapes}"
    if name == CSV:
        columns = _columns(inputs[0])
        count = "numbers" if columns is None else f"{columns} numbers"
        return f"expected lines of {count}, separated by commas"
    return f"expected one list of numbers of {inputs[0].expected}"


def _check_rows(arrays: Sequence[Any], inputs: Sequence[Input]) -> None:
    counts = {each.name: len(a) for each, a in zip(inputs, arrays) if a is not None}
    if 0 in counts.values():
        raise InferenceError("the body has no rows; expected at least one")
    free = set()
    for each in inputs:
        count = counts.get(each.name)
        if each.rows is None:
            free.add(count)
        elif count not in (None, each.rows):
            raise InferenceError(f"{each.name} has {count} rows, expected {each.rows}")
    if len(free - {None}) > 1:
        found = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise InferenceError(f"the inputs have different numbers of rows ({found})")


def _reshape(array: Any, item: Input, name: str) -> Any:
    """Reshape rows to the model's shape, if they have as many numbers."""
    row, found = item.row, array.shape[1:]
    if row is None or found == row:
        return array
    if math.prod(found) == math.prod(row):
        return array.reshape((len(array), *row))
    axis = next((i for i, size in enumerate(row) if found[i : i + 1] != (size,)), 0)
    if name == JSON and len(found) == len(row):
        place = _path([0] * (axis + 1))
        what = f"JSON: the list at {place} has {found[axis]} entries, expected {row[axis]}"
        raise InferenceError(f"{what}; {_expectation(JSON, [item])}")
    kind = "JSON" if name == JSON else "NPY"
    raise InferenceError(
        f"{kind}: the array has shape {array.shape}; the model expects {item.expected}"
    )


def _cast(array: Any, item: Input) -> Any:
    """Convert an array to the model's type; raise an error for a number that does not fit."""
    if array.dtype == item.dtype:
        return array
    with np.errstate(all="ignore"):
        result = array.astype(item.dtype)
    if result.dtype.kind == "f":
        finite = np.isfinite(result)
        bad = None if finite.all() else ~finite & np.isfinite(array)
    else:
        bad = result != array
    if bad is not None and bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InferenceError(
            f"{array[index]!s} at {_path(index)} does not fit the model's type, {result.dtype}"
        )
    return result


def _path(index: Sequence[int]) -> str:
    return "".join(f"[{i}]" for i in index)


# JSON


_OBJECT = re.compile(rb"[ \t\r\n]*\{")
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError)


def _decode_json(body: bytes, inputs: Sequence[Input]) -> List[Any]:
    try:
        parts = _assign(_split(body, inputs), inputs)
        return _each(inputs, parts, _strict)
    except _DECODE_ERRORS as error:
        rejected = error
    try:
        value = json.loads(body.decode("utf-8"), parse_int=_json_int, parse_float=_json_float)
    except (ValueError, RecursionError):
        raise _not_json(rejected, _expectation(JSON, inputs)) from None
    return _each(inputs, _assign(value, inputs), _lenient)


def _split(body: bytes, inputs: Sequence[Input]) -> Union[bytes, Mapping[str, Any], List[Any]]:
    """Split the text of an object, or of a list with an entry for each input."""
    if _OBJECT.match(body):
        found: Mapping[str, Any] = _decoder(Mapping[str, msgspec.Raw]).decode(body)
        return {name: bytes(part) for name, part in found.items()}
    if len(inputs) == 1:
        return body
    return [bytes(part) for part in _decoder(List[msgspec.Raw]).decode(body)]


def _assign(value: Any, inputs: Sequence[Input]) -> Sequence[Any]:
    """Return the value of each input: by name, by position, or all of it for a single input."""
    if isinstance(value, Mapping):
        names = [each.name for each in inputs]
        required = {each.name for each in inputs if not each.optional}
        if not required <= set(value) <= set(names):
            given = ", ".join(map(repr, sorted(value)))[:200] or "an empty object"
            expected = ", ".join(names)
            raise InferenceError(f"JSON: expected an object with {expected}, got {given}")
        return [value.get(name) for name in names]
    if len(inputs) == 1:
        return [value]
    least = sum(not each.optional for each in inputs)
    if not isinstance(value, list) or not least <= len(value) <= len(inputs):
        raise InferenceError(f"JSON: expected {_expectation(JSON, inputs)}")
    return [*value, *[None] * (len(inputs) - len(value))]


def _each(inputs: Sequence[Input], parts: Sequence[Any], read: Callable[..., Any]) -> List[Any]:
    if len(inputs) == 1:
        return [read(parts[0], inputs[0])]
    arrays = []
    for each, part in zip(inputs, parts):
        try:
            arrays.append(None if part is None and each.optional else read(part, each))
        except InferenceError as error:
            raise InferenceError(f"{each.name}: {error}") from None
    while arrays[-1] is None:
        arrays.pop()
    return arrays


def _strict(body: bytes, item: Input) -> Any:
    """Decode nested lists of JSON numbers."""
    rank = _depth(body)
    if rank > _MAX_DIMENSIONS:
        raise InferenceError(f"JSON: {rank} levels of lists; {_expectation(JSON, [item])}")
    integers = np.dtype(item.dtype).kind in "iu"
    nested = _list_decoder(max(rank, 1), int if integers else float).decode(body)
    return _array(nested, rank, item, np.int64 if integers else np.float64)


def _lenient(value: Any, item: Input) -> Any:
    """Convert nested lists of numbers, booleans, and strings of numbers to an array."""
    rank, first = 0, value
    while isinstance(first, list):
        rank, first = rank + 1, first[0] if first else None
    if not 1 <= rank <= _MAX_DIMENSIONS:
        found = f"{rank} levels of lists" if rank else "this is not a list"
        raise InferenceError(f"JSON: {found}; {_expectation(JSON, [item])}")
    integers = np.dtype(item.dtype).kind in "iu"
    return _array(_numbers(value, rank, item), rank, item, None if integers else np.float64)


def _numbers(value: Any, rank: int, item: Input, index: Tuple[int, ...] = ()) -> Any:
    if isinstance(value, list) and rank:
        return [_numbers(each, rank - 1, item, (*index, i)) for i, each in enumerate(value)]
    if isinstance(value, (int, float)) and not rank:
        return value
    if isinstance(value, str) and not rank:
        try:
            return _json_int(value.strip()) if value.strip().isdecimal() else _number(value)
        except ValueError:
            pass
    shown = "null" if value is None else json.dumps(value)[:_SHOWN]
    what = "a number" if not rank else "a list"
    raise InferenceError(
        f"JSON: expected {what}, got {shown} at {_path(index)}; {_expectation(JSON, [item])}"
    )


def _json_int(text: str) -> Union[int, float]:
    # int() takes quadratic time.
    return int(text) if len(text) <= _LONGEST_INTEGER else _json_float(text)


def _json_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(text)
    return value


def _array(nested: Any, rank: int, item: Input, dtype: Any) -> Any:
    try:
        array = np.array(nested, dtype=dtype)
    except OverflowError:
        raise InferenceError("JSON: a number exceeds 64 bits") from None
    except (ValueError, TypeError):  # lists of different lengths
        array = None
    if array is None or array.ndim != rank or 0 in array.shape or array.dtype.kind not in "biuf":
        _raise_ragged(nested, item, rank, _expectation(JSON, [item]))
    return _cast(array, item)


def _depth(body: bytes) -> int:
    """Return the number of opening brackets at the beginning of a body."""
    depth = 0
    for byte in body:
        if byte == 0x5B:  # [
            depth += 1
        elif byte not in b" \t\r\n":
            break
    return depth


@functools.lru_cache(maxsize=None)
def _list_decoder(rank: int, kind: type) -> Any:
    shape: Any = kind
    for _ in range(rank):
        shape = List[shape]
    return msgspec.json.Decoder(shape)


@functools.lru_cache(maxsize=None)
def _decoder(kind: Any) -> Any:
    return msgspec.json.Decoder(kind)


def _not_json(error: Exception, expected: str) -> InferenceError:
    text = str(error) if isinstance(error, msgspec.DecodeError) else "The body is not valid UTF-8"
    text = text.replace("`", "").replace(" - at $", " at ").rstrip()
    if not text.startswith("JSON"):
        text = f"JSON: {text[:1].lower()}{text[1:]}"
    return InferenceError(f"{text}; {expected}")


def _raise_ragged(nested: Any, item: Input, rank: int, expected: str) -> NoReturn:
    """Raise an error for the first list whose length is not that of the model or the first row."""
    row = item.row
    if row is None or len(row) != rank - 1:
        first, lengths = nested[0] if nested else [], []
        for _ in range(rank - 1):
            lengths.append(len(first))
            first = first[0] if first else []
        row = tuple(lengths)
    for index, length, found in _wrong_lengths(nested, row):
        raise InferenceError(
            f"JSON: the list at {_path(index)} has {found} entries, expected {length}; {expected}"
        )
    raise InferenceError(f"JSON: {expected}")


def _wrong_lengths(
    lists: Any, row: Sequence[int], index: Tuple[int, ...] = ()
) -> Iterator[Tuple[Tuple[int, ...], int, int]]:
    if not row:
        return
    for i, entry in enumerate(lists):
        if len(entry) != row[0]:
            yield (*index, i), row[0], len(entry)
        yield from _wrong_lengths(entry, row[1:], (*index, i))


# CSV


def _columns(item: Input) -> Optional[int]:
    return None if item.row is None else math.prod(item.row)


def _decode_csv(body: bytes, header: bool, item: Input, accepts: Accepts) -> Any:
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if header:
        body = body.partition(b"\n")[2]
    body = body.rstrip()
    array = _json_numbers(body)
    columns = _columns(item)
    if array is None or (columns is not None and array.shape[1] != columns):
        if array is not None and accepts([array.shape]):
            return _cast(array, item)
        array = _cells(body, columns, 2 if header else 1)
    if item.row is not None:
        array = array.reshape((len(array), *item.row))
    return _cast(array, item)


def _json_numbers(body: bytes) -> Optional[Any]:
    """Decode lines of JSON numbers; return None for anything else, or a ragged array."""
    if body.translate(None, _JSON_NUMBERS):
        return None
    try:
        rows = _list_decoder(2, float).decode(b"[[" + body.replace(b"\n", b"],[") + b"]]")
        return np.array(rows, dtype=np.float64)
    except (ValueError, msgspec.DecodeError):  # not a ValueError in msgspec 0.18
        return None


def _cells(body: bytes, columns: Optional[int], first: int) -> Any:
    """Decode lines cell by cell; raise an error for the first wrong cell.

    Args:
        body: the lines. Empty ones are skipped.
        columns: cells of each line; None: as many as in the first.
        first: the number of the first line.
    """
    lines = body.decode("utf-8", "replace").split("\n")
    rows = [(number, line) for number, line in enumerate(lines, first) if line.strip()]
    if columns is None:
        columns = rows[0][1].count(",") + 1 if rows else 0
    # The array ends before the first line of a wrong length: many short lines must not allocate
    # many long rows.
    fitting = next((i for i, (_, line) in enumerate(rows) if line.count(",") + 1 != columns), None)
    array = np.empty((len(rows) if fitting is None else fitting, columns), dtype=np.float64)
    for i, (number, line) in enumerate(rows[: len(array) + 1]):
        cells = line.split(",")
        numbers = []
        for j, cell in enumerate(cells[: columns + 1]):
            try:
                numbers.append(_number(cell))
            except ValueError:
                shown = f"{cell.strip()[:_SHOWN]!r} is not a number" if cell.strip() else "is empty"
                if number == 1 and len(rows) > 1 and _is_header(cells):
                    shown += "; if row 1 is a header, send Content-Type: text/csv; header=present"
                raise InferenceError(f"CSV: row {number}, column {j + 1}: {shown}") from None
        if len(cells) != columns:
            raise InferenceError(
                f"CSV: row {number} has {len(cells)} numbers, expected {columns} in each row"
            )
        array[i] = numbers
    return array


def _is_header(cells: Sequence[str]) -> bool:
    """Return whether cells may be the names of columns, of which some may be empty."""
    names = [cell.strip(' "') for cell in cells]
    return any(names) and all(not name or name[0].isalpha() or name[0] == "_" for name in names)


def _number(cell: str) -> float:
    cell = cell.strip()
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        cell = cell[1:-1].strip()
    if "_" in cell or not cell.isascii() or len(cell) > 400:
        raise ValueError(cell)  # float() accepts 1_000, and digits of any script
    return float(cell)


# NPY (documentation of numpy.lib.format, versions 1.0 to 3.0)


def _decode_npy(body: bytes, item: Input) -> Any:
    dtype, fortran, shape, start = _npy_header(body)
    expected = f"the model expects {item.expected}"
    if not 1 <= len(shape) <= _MAX_DIMENSIONS:
        raise InferenceError(
            f"NPY: the array has shape {shape if len(shape) < _MAX_DIMENSIONS else '...'}, of "
            f"{len(shape)} dimensions; {expected}"
        )
    count = math.prod(shape)
    if count * dtype.itemsize != len(body) - start:
        raise InferenceError(
            f"NPY: the header declares {count * dtype.itemsize} bytes of data, got "
            f"{len(body) - start}"
        )
    if count == 0:
        raise InferenceError(f"NPY: the array of shape {shape} is empty; {expected}")
    array = np.frombuffer(body, dtype, count, start)
    return _cast(array.reshape(shape, order="F" if fortran else "C"), item)


def _npy_header(body: bytes) -> Tuple[Any, bool, Tuple[int, ...], int]:
    """Parse the header: type, Fortran order, shape, and the offset of the data."""
    # Not by numpy.load, which allocates what a header declares.
    if not body.startswith(_NPY_MAGIC) or len(body) < 12:
        raise InferenceError("the body is not in NPY format; write it with numpy.save")
    width = 2 if body[6] == 1 else 4
    length = int.from_bytes(body[8 : 8 + width], "little")
    if body[6] not in (1, 2, 3) or length > _NPY_LONGEST_HEADER:
        raise InferenceError(f"NPY: version {body[6]}, header of {length} bytes: not supported")
    start = 8 + width + length
    return (*_npy_fields(bytes(body[:start])), start)


@functools.lru_cache(maxsize=64)
def _npy_fields(header: bytes) -> Tuple[Any, bool, Tuple[int, ...]]:
    stream = io.BytesIO(header)
    try:
        first = _numpy_format.read_magic(stream) == (1, 0)
        # Versions 2.0 and 3.0 differ in names of fields only.
        of_1, of_2 = _numpy_format.read_array_header_1_0, _numpy_format.read_array_header_2_0
        shape, fortran, dtype = (of_1 if first else of_2)(stream)
    except Exception:  # the header is a Python expression, which fails in many ways
        text = "NPY: the header cannot be parsed; expected an array of numbers"
        raise InferenceError(text) from None
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        shown = dtype.str[:_SHOWN]
        raise InferenceError(f"NPY: the type {shown!r} is not supported; expected numbers")
    return dtype, fortran, shape
