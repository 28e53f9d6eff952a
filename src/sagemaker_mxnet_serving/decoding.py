"""From the bytes of a request to NumPy arrays: JSON, CSV and NPY.

Whatever the bytes are, the outcome is arrays of the model's type and shape, or an
``InferenceError`` of status 400 or 415 that names the first offending row or column. Memory stays
proportional to the body: an NPY header that promises more than the body holds is refused.

JSON is read by msgspec, with the nesting and the type of the numbers given to it, so that it
refuses anything else itself and says where. CSV whose numbers are JSON's numbers too is read by
the same parser, five times as fast as ``numpy.fromstring`` reads it.
"""

import functools
import math
import re
from typing import Any, Iterator, List, Mapping, NoReturn, Optional, Sequence, Tuple

import msgspec
import numpy as np

from sagemaker_mxnet_serving.media_types import CSV, JSON, NPY, SUPPORTED, MediaType
from sagemaker_mxnet_serving.messages import InferenceError
from sagemaker_mxnet_serving.signature import Input

_BOM = b"\xef\xbb\xbf"
_MAX_DIMENSIONS = 32  # NumPy 1's limit
_SHOWN = 40  # characters of a caller's cell that a message repeats

# Characters of CSV cells that are JSON numbers; above all no bracket, which would make rows.
_JSON_NUMBERS = b"0123456789+-.eE, \t\n"

# Codecs such as zlib or punycode are no character sets, or cost quadratic time.
_CHARACTER_SETS = frozenset(
    {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "latin1", "windows-1252"}
    | {"utf-16", "utf-16le", "utf-16be"}
)

_NPY_MAGIC = b"\x93NUMPY"
_NPY_LONGEST_HEADER = 10_000
_NPY_ITEM = (
    rb"\s*(?:'descr'\s*:\s*'(?P<descr{0}>[^'\\]*)'"
    rb"|'fortran_order'\s*:\s*(?P<fortran{0}>True|False)"
    rb"|'shape'\s*:\s*\((?P<shape{0}>[\d\s,L]*)\))\s*"
)
_NPY_HEADER = re.compile(
    rb"\s*\{" + rb",".join(_NPY_ITEM.replace(b"{0}", b"%d" % i) for i in range(3)) + rb",?\s*\}\s*"
)
_NPY_TYPES = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


def decode(body: bytes, media_type: MediaType, inputs: Sequence[Input]) -> List[Any]:
    """Read a body: one array for each input, all with the same number of rows.

    Args:
        body: the body of the request.
        media_type: its content type.
        inputs: what the model takes.

    Raises:
        InferenceError: status 415 for a content type that cannot be read, 400 for a body that is
            not what its content type or the model asks for.
    """
    name = media_type.name
    if name not in SUPPORTED or (len(inputs) > 1 and name != JSON):
        raise _unsupported(name, inputs)
    if name == NPY:
        arrays = [_decode_npy(body, inputs[0])]
    else:
        body = utf8(body, media_type)
        if not body.strip():
            raise InferenceError(f"the body is empty; {_expectation(name, inputs)}")
        arrays = _decode_json(body, inputs) if name == JSON else [_decode_csv(body, inputs[0])]
    _check_rows(arrays, inputs)
    return arrays


def utf8(body: bytes, media_type: MediaType) -> bytes:
    """Return a text body in UTF-8, without a byte order mark.

    Raises:
        InferenceError: for a character set that is not read, or a body that is not in it.
    """
    charset = media_type.parameters.get("charset", "utf-8").lower()
    if charset not in _CHARACTER_SETS:
        raise InferenceError(f"charset {charset[:_SHOWN]!r} is not supported; send UTF-8", 415)
    if charset not in ("utf-8", "utf8", "us-ascii", "ascii"):
        try:
            body = body.decode(charset).lstrip("\ufeff").encode("utf-8")
        except UnicodeError:
            raise InferenceError(f"the body is not {charset}, as Content-Type says") from None
    return body[len(_BOM) :] if body.startswith(_BOM) else body


def _unsupported(name: str, inputs: Sequence[Input]) -> InferenceError:
    given = f"Content-Type {name[:_SHOWN]!r}" if name else "there is no Content-Type"
    if len(inputs) > 1:
        text = f"{given}: a model with several inputs takes {_expectation(JSON, inputs)}"
    else:
        text = f"{given}: expected {', '.join(SUPPORTED[:-1])} or {SUPPORTED[-1]}"
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
    counts = {each.name: len(array) for each, array in zip(inputs, arrays)}
    if 0 in counts.values():
        raise InferenceError("the body holds no rows; expected at least one")
    for each in inputs:
        if each.rows not in (None, counts[each.name]):
            raise InferenceError(f"{each.name} has {counts[each.name]} rows, expected {each.rows}")
    if len({counts[each.name] for each in inputs if each.rows is None}) > 1:
        found = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise InferenceError(f"the inputs have different numbers of rows ({found})")


def _cast(array: Any, item: Input) -> Any:
    """Turn an array into the model's type; a number that it cannot hold is an error."""
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
            f"{array[index]!s} at {_path(index)} is no number of the model's type, {result.dtype}"
        )
    return result


def _path(index: Sequence[int]) -> str:
    return "".join(f"[{i}]" for i in index)


# JSON


def _decode_json(body: bytes, inputs: Sequence[Input]) -> List[Any]:
    if len(inputs) == 1 and not body.lstrip(b" \t\r\n").startswith(b"{"):
        return [_decode_list(body, inputs[0])]
    names = [each.name for each in inputs]
    try:
        lists: Mapping[str, Any] = _object_decoder().decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(error, _expectation(JSON, inputs)) from None
    if set(lists) != set(names):
        given = ", ".join(map(repr, sorted(lists)))[:200]
        expected = ", ".join(names)
        raise InferenceError(f"JSON: expected an object with {expected}, and found: {given}")
    arrays = []
    for each in inputs:
        try:
            arrays.append(_decode_list(bytes(lists[each.name]), each))
        except InferenceError as error:
            raise InferenceError(f"{each.name}: {error}") from None
    return arrays


def _decode_list(body: bytes, item: Input) -> Any:
    rank = _depth(body) if item.row is None else 1 + len(item.row)
    expected = _expectation(JSON, [item])
    if not 1 <= rank <= _MAX_DIMENSIONS:
        raise InferenceError(f"JSON: {rank} levels of lists; {expected}")
    integers = np.dtype(item.dtype).kind in "iu"
    try:
        nested = _list_decoder(rank, int if integers else float).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(error, expected) from None
    try:
        array = np.array(nested, dtype=np.int64 if integers else np.float64)
    except OverflowError:
        raise InferenceError("JSON: a number is beyond 64 bits") from None
    except (ValueError, TypeError):  # lists of different lengths
        array = None
    if (
        array is None
        or array.ndim != rank
        or (item.row is not None and array.shape[1:] != item.row)
    ):
        _name_the_ragged(nested, item, rank, expected)
    return _cast(array, item)


def _depth(body: bytes) -> int:
    """Return how many lists a body opens at its beginning."""
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
def _object_decoder() -> Any:
    return msgspec.json.Decoder(Mapping[str, msgspec.Raw])


def _not_json(error: Exception, expected: str) -> InferenceError:
    text = str(error) if isinstance(error, msgspec.DecodeError) else "it is not UTF-8"
    text = text.replace("`", "").replace(" - at $", " at ").rstrip()
    return InferenceError(f"JSON: {text[:1].lower()}{text[1:]}; {expected}")


def _name_the_ragged(nested: Any, item: Input, rank: int, expected: str) -> NoReturn:
    """Say where nested lists first leave their shape: the model's, or that of their first row."""
    row = item.row
    if row is None:
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


def _decode_csv(body: bytes, item: Input) -> Any:
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    body = body.rstrip(b"\n")
    array = _json_numbers(body)
    columns = _columns(item)
    if array is None or (columns is not None and array.shape[1] != columns):
        array = _cells(body, columns)
    if item.row is not None:
        array = array.reshape((len(array), *item.row))
    return _cast(array, item)


def _json_numbers(body: bytes) -> Optional[Any]:
    """Read lines of JSON numbers; None where there is anything else, or lines differ in length."""
    if body.translate(None, _JSON_NUMBERS):
        return None
    try:
        rows = _list_decoder(2, float).decode(b"[[" + body.replace(b"\n", b"],[") + b"]]")
        return np.array(rows, dtype=np.float64)
    except (ValueError, msgspec.DecodeError):  # which is no ValueError in msgspec 0.18
        return None


def _cells(body: bytes, columns: Optional[int]) -> Any:
    """Read lines cell by cell, and name the first that is wrong."""
    lines = body.decode("utf-8", "replace").split("\n")
    if columns is None:
        columns = lines[0].count(",") + 1
    # Lines of one number must not make rows of many before they are refused.
    fitting = next((i for i, each in enumerate(lines) if _count(each) != columns), len(lines))
    array = np.empty((fitting, columns), dtype=np.float64)
    for i, line in enumerate(lines[: fitting + 1]):
        cells = line.split(",") if line.strip() else []
        numbers = []
        for j, cell in enumerate(cells[: columns + 1]):
            try:
                numbers.append(_number(cell))
            except ValueError:
                shown = f"{cell.strip()[:_SHOWN]!r} is not a number" if cell.strip() else "is empty"
                raise InferenceError(f"CSV: row {i + 1}, column {j + 1}: {shown}") from None
        if len(cells) != columns:
            raise InferenceError(
                f"CSV: row {i + 1} has {len(cells)} numbers, expected {columns} in each row"
            )
        array[i] = numbers
    return array


def _count(line: str) -> int:
    """Return how many cells a line has."""
    return line.count(",") + 1 if line.strip() else 0


def _number(cell: str) -> float:
    cell = cell.strip()
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        cell = cell[1:-1].strip()
    if "_" in cell or not cell.isascii() or len(cell) > 400:
        raise ValueError(cell)  # float() would read 1_000 and digits of any script
    return float(cell)


# NPY (numpy.lib.format's document, versions 1.0 to 3.0)


def _decode_npy(body: bytes, item: Input) -> Any:
    dtype, fortran, shape, start = _npy_header(body)
    expected = f"the model takes {item.expected}"
    if item.row is not None and (not shape or shape[1:] != item.row):
        raise InferenceError(f"NPY: the array has shape {shape}; {expected}")
    if not 1 <= len(shape) <= _MAX_DIMENSIONS:
        raise InferenceError(f"NPY: an array of {len(shape)} dimensions; {expected}")
    count = math.prod(shape)
    if count * dtype.itemsize != len(body) - start:
        raise InferenceError(
            f"NPY: the header tells of {count * dtype.itemsize} bytes, {len(body) - start} follow"
        )
    if count == 0:
        raise InferenceError(f"NPY: the array of shape {shape} is empty; {expected}")
    array = np.frombuffer(body, dtype, count, start)
    return _cast(array.reshape(shape, order="F" if fortran else "C"), item)


def _npy_header(body: bytes) -> Tuple[Any, bool, Tuple[int, ...], int]:
    """Read the header: type, whether columns come first, shape, and where the numbers begin."""
    # numpy.load evaluates the header as Python, and allocates what it promises.
    if not body.startswith(_NPY_MAGIC) or len(body) < 12:
        raise InferenceError("the body is not NPY: it does not begin as numpy.save writes it")
    width = 2 if body[6] == 1 else 4
    start = 8 + width
    length = int.from_bytes(body[8:start], "little")
    if body[6] not in (1, 2, 3) or length > _NPY_LONGEST_HEADER:
        raise InferenceError(f"NPY: version {body[6]} with a header of {length} bytes is not read")
    return (*_npy_fields(body[start : start + length]), start + length)


@functools.lru_cache(maxsize=64)
def _npy_fields(header: bytes) -> Tuple[Any, bool, Tuple[int, ...]]:
    match = _NPY_HEADER.fullmatch(header)
    fields = {} if match is None else {k: v for k, v in match.groupdict().items() if v is not None}
    found = {
        re.sub(r"\d", "", key): value.decode("ascii", "replace") for key, value in fields.items()
    }
    if set(found) != {"descr", "fortran", "shape"}:
        raise InferenceError("NPY: the header cannot be read; expected an array of plain numbers")
    if not _NPY_TYPES.fullmatch(found["descr"]):
        shown = found["descr"][:_SHOWN]
        raise InferenceError(f"NPY: type {shown!r} is not read; expected numbers, no objects")
    sizes = [text.strip().rstrip("L") for text in found["shape"].split(",") if text.strip()]
    if not all(text.isdecimal() and len(text) <= 18 for text in sizes):
        raise InferenceError("NPY: the shape in the header cannot be read")
    return np.dtype(found["descr"]), found["fortran"] == "True", tuple(map(int, sizes))
