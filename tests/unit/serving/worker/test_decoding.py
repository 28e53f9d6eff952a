"""Whatever the bytes are: the right arrays, or an error of status 4xx that says what is wrong."""

import io
import json
import tracemalloc

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagemaker_mxnet_serving.inference import InferenceError
from sagemaker_mxnet_serving.worker import decoding
from sagemaker_mxnet_serving.worker.decoding import Input, decode
from sagemaker_mxnet_serving.worker.media_types import CSV, JSON, NPY, SUPPORTED, parse_media_type

THREE = Input("data", np.dtype("float32"), (3,))
IMAGE = Input("data", np.dtype("float32"), (2, 2, 3))
PHOTO = Input("data", np.dtype("float32"), (3, 224, 224))
SCALAR = Input("data", np.dtype("float32"), ())
HALF = Input("data", np.dtype("float16"), (3,))
INTEGER = Input("data", np.dtype("int32"), (3,))
UNKNOWN = Input("data", np.dtype("float32"))
INPUTS = [THREE, IMAGE, SCALAR, HALF, INTEGER, UNKNOWN]


def read(body: bytes, content_type: str, item: Input = THREE) -> np.ndarray:
    # What a worker has, since a script may write to it.
    (array,) = decode(bytearray(body), parse_media_type(content_type), [item])
    assert array.dtype == item.dtype
    return array


def rejected(body: bytes, content_type: str, item: Input = THREE, status: int = 400) -> str:
    with pytest.raises(InferenceError) as caught:
        read(body, content_type, item)
    assert caught.value.status == status
    return str(caught.value)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def described(shape: str) -> str:
    return f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}"


def header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    raw = text.encode()
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + len(raw).to_bytes(width, "little") + raw + data


# JSON


@pytest.mark.parametrize(
    "body",
    [
        b"[[1, 2, 3], [4, 5.5, 6]]",
        b"\xef\xbb\xbf[[1, 2, 3], [4, 5.5, 6]]",
        b" \r\n[[1e0, 2, 3]\n, [4, 5.5, 6]] \n",
        b'{"data": [[1, 2, 3], [4, 5.5, 6]]}',
    ],
)
def test_json_is_read(body: bytes) -> None:
    assert read(body, JSON).tolist() == [[1, 2, 3], [4, 5.5, 6]]


def test_json_with_nan_strings_and_booleans() -> None:
    found = read(b'[[true, "2.5", false], [NaN, Infinity, -Infinity], [" 1e3 ", "nan", 7]]', JSON)
    expected = [[1, 2.5, 0], [np.nan, np.inf, -np.inf], [1000, np.nan, 7]]
    np.testing.assert_array_equal(found, expected)
    assert read(b'{"data": [[true, "2", NaN]]}', JSON)[0, 1] == 2
    assert read(b'[[true, "2", 3.0]]', JSON, INTEGER).tolist() == [[1, 2, 3]]
    long = Input("data", np.dtype("int64"), (2,))
    assert read(b'[["9007199254740993", true]]', JSON, long).tolist() == [[2**53 + 1, 1]]
    assert "nan at [0][2]" in rejected(b"[[1, 2, NaN]]", JSON, INTEGER)


def test_rows_have_the_shape_that_the_model_accepts() -> None:
    def asked(body: bytes, content_type: str, accepted: object, item: Input = IMAGE) -> object:
        (array,) = decode(
            body, parse_media_type(content_type), [item], lambda shapes: list(shapes) == accepted
        )
        return array.shape

    for content_type, make in ((JSON, lambda a: json.dumps(a.tolist()).encode()), (NPY, npy)):
        wide = make(np.zeros((2, 2, 3, 3)))
        assert asked(wide, content_type, [(2, 2, 3, 3)]) == (2, 2, 3, 3)
        assert asked(make(np.zeros((2, 12))), content_type, [(2, 12)]) == (2, 12)
        assert asked(make(np.zeros((2, 12))), content_type, None) == (2, 2, 2, 3)
        assert asked(make(np.zeros((2, 2, 2, 3))), content_type, None) == (2, 2, 2, 3)
        with pytest.raises(InferenceError, match="expected|expects"):
            asked(wide, content_type, None)
    assert asked(b"1,2\n3,4", CSV, [(2, 2)], THREE) == (2, 2)


def test_json_in_another_charset() -> None:
    body = "[[1, 2, 3]]".encode("utf-16")
    assert read(body, "application/json; charset=UTF-16").tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"[]", "shape (rows, 3)"),
        (b"[[]]", "[0] has 0 entries, expected 3"),
        (b"[[1, 2, 3], [4, 5]]", "[1] has 2 entries, expected 3"),
        (b"[[1, 2], [3, 4]]", "[0] has 2 entries, expected 3"),
        (b"[1, 2, 3]", "shape (3,); the model expects shape (rows, 3)"),
        (b"[[[1, 2]]]", "shape (1, 1, 2)"),
        (b'[[1, "two", 3]]', 'a number, got "two" at [0][1]'),
        (b'[[1, "", 3]]', 'got "" at [0][1]'),
        (b'[[1, "1_0", 3]]', 'got "1_0" at [0][1]'),
        (b"[[1, null, 3]]", "null at [0][1]"),
        (b'[["1", [2], 3]]', "got [2] at [0][1]"),
        (b'[["1", 2, 3], 4]', "a list, got 4 at [1]"),
        (b'[["1", 2, 3], ["4", 5]]', "[1] has 2 entries, expected 3"),
        (b"[[1, nan, 3]]", "JSON is malformed"),
        (b"[[1, 1e400, 3]]", "out of range at [0][1]"),
        (b"[[1, 1e300, 3]]", "1e+300 at [0][1]"),
        (b"[[1, 2, 3]", "truncated"),
        (b"[[1, 2, 3]] [[1, 2, 3]]", "trailing"),
        (b"[" * 100_000, "100000 levels"),
        (b"\xff\xfe", "malformed"),
        (b'"text"', "this is not a list"),
        (b"1", "this is not a list"),
        (b"{}", "expected an object with data, got an empty object"),
        (b'{"other": [[1, 2, 3]]}', "got 'other'"),
    ],
)
def test_json_that_does_not_fit_the_model(body: bytes, words: str) -> None:
    assert words in rejected(body, JSON)


def test_numbers_that_do_not_fit_the_type_are_rejected() -> None:
    assert "[0][2]" in rejected(b"[[1, 2, 70000]]", JSON, HALF)
    assert "[0][0]" in rejected(b"[[3000000000, 2, 3]]", JSON, INTEGER)
    assert "at [0][0]" in rejected(b"[[0.5, 2, 3]]", JSON, INTEGER)
    assert rejected(b"[[1%s, 2, 3]]" % (b"0" * 30), JSON, INTEGER)


def test_unknown_shape_accepts_any_depth() -> None:
    assert read(b"[1, 2]", JSON, UNKNOWN).shape == (2,)
    assert read(b"[[[1], [2]]]", JSON, UNKNOWN).shape == (1, 2, 1)
    assert "[1] has 1 entries, expected 2" in rejected(b"[[1, 2], [1]]", JSON, UNKNOWN)
    assert "got [2] at [1]" in rejected(b"[1, [2]]", JSON, UNKNOWN)
    assert "levels" in rejected(b"[" * 40, JSON, UNKNOWN)


def test_several_inputs_as_an_object() -> None:
    two = [Input("a", np.dtype("float32"), (2,)), Input("b", np.dtype("int32"), ())]
    a, b = decode(b'{"b": [7], "a": [[1, 2]]}', parse_media_type(JSON), two)
    assert (a.tolist(), b.tolist()) == ([[1, 2]], [7])
    a, b = decode(b'[[["1", NaN]], [7]]', parse_media_type(JSON), two)
    assert (a[0, 0], b.tolist()) == (1, [7])
    for body, words in (
        (b'{"a": [[1, 2]]}', "expected an object with a, b"),
        (b'{"a": [[1, 2]], "b": [1, 2]}', "different numbers of rows (a: 1, b: 2)"),
        (b'{"a": [[1]], "b": [1]}', "JSON: the list at [0]"),
        (b'{"a": [[1, null]], "b": [1]}', "a: JSON: expected a number, got null at [0][1]"),
        (b"[[[1, 2]]]", '"a": shape (rows, 2)'),
    ):
        with pytest.raises(InferenceError) as caught:
            decode(body, parse_media_type(JSON), two)
        assert words in str(caught.value)
    with pytest.raises(InferenceError) as caught:
        decode(b"1,2", parse_media_type(CSV), two)
    assert caught.value.status == 415


# CSV


def test_csv_is_read_by_the_fast_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 18 of the peer: an image in CSV takes seconds to read."""
    monkeypatch.setattr(decoding, "_cells", pytest.fail)
    image = np.random.RandomState(0).rand(2, 3, 32, 32).astype("float32")
    body = "\n".join(",".join(map(str, row.ravel())) for row in image).encode()
    for text in (body, body.replace(b"\n", b"\r\n") + b"\r\n", body.replace(b",", b", ")):
        found = read(text, CSV, Input("data", np.dtype("float32"), (3, 32, 32)))
        assert found.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "body",
    [
        b"1,2,3\n4,5.5,6",
        b"1,2,3\n4,5.5,6\n",
        b"1,2,3\r\n4,5.5,6\r\n",
        b"1,2,3\r4,5.5,6\r",
        b"\xef\xbb\xbf1,2,3\n4,5.5,6\n\n",
        b"1,2,3\n \t\n\n4,5.5,6\n  \n",
        b" 1, 2 ,3\n4,5.5,6",
        b"+1,02,3.\n4.0,55e-1,6",
        b'"1","2",3\n4,5.5,"6"',
    ],
)
def test_csv_is_read(body: bytes) -> None:
    """Defect 6 of the peer: integers beside floats are a 500, and text is NaN."""
    for content_type in (CSV, "text-csv", "Text/CSV; charset=utf-8"):
        assert read(body, content_type).tolist() == [[1, 2, 3], [4, 5.5, 6]]


def test_csv_header_is_skipped() -> None:
    for content_type in ("text/csv; header=present", "text/csv;charset=utf-8;Header=Present"):
        assert read(b"a,b,c\n1,2,3\n", content_type).tolist() == [[1, 2, 3]]
        assert "row 3, column 1" in rejected(b"a,b,c\n1,2,3\nx,2,3", content_type)
        assert "no rows" in rejected(b"a,b,c\n", content_type)
    assert read(b"1,2,3", "text/csv; header=absent").tolist() == [[1, 2, 3]]


def test_rows_of_csv_take_the_shape_of_the_model() -> None:
    line = ",".join(map(str, range(12)))
    array = read(f"{line}\n{line}\n".encode(), CSV, IMAGE)
    assert array.shape == (2, 2, 2, 3)
    assert array[1].ravel().tolist() == list(range(12))
    assert read(b"1\n2\n3", CSV, SCALAR).tolist() == [1, 2, 3]
    assert read(b"1,2\n3,4", CSV, UNKNOWN).tolist() == [[1, 2], [3, 4]]


def test_csv_numbers_that_are_not_json() -> None:
    found = read(b"nan,inf,-Infinity", CSV)
    assert np.isnan(found[0, 0])
    assert found[0, 1:].tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"1,2,3\n4,5", "row 2 has 2 numbers, expected 3"),
        (b"1,2,3,4,5,6", "row 1 has 6 numbers, expected 3"),
        (b"1,2\n3", "row 1 has 2 numbers"),
        (b"1,2,3\n \n4,5", "row 3 has 2 numbers"),
        (b"1,2,3\n4,five,6", "row 2, column 2: 'five' is not a number"),
        (b"a,b,c\n1,2,3", "row 1, column 1: 'a' is not a number"),
        (b"1,,3", "row 1, column 2: is empty"),
        (b"1,2,", "row 1, column 3: is empty"),
        (b"1;2;3", "'1;2;3' is not a number"),
        (b"1,2],[3,4", "not a number"),
        (b"1,2,3],[1,2,3", "not a number"),
        (b"1_0,2,3", "'1_0' is not a number"),
        ("1,2,\u0663".encode(), "column 3"),
        (b"1,2,1e300", "1e+300 at [0][2]"),
        (b"\xff,2,3", "column 1"),
        (b'"1,2,3"', "column 1"),
    ],
)
def test_csv_that_does_not_fit_the_model(body: bytes, words: str) -> None:
    assert words in rejected(body, CSV)


HEADER_REMEDY = "; if row 1 is a header, send Content-Type: text/csv; header=present"


@pytest.mark.parametrize("names", ["a,b,c", '"Unnamed: 0", "x 1",_y', ",b,c", "a,b"])
def test_remedy_for_a_csv_header(names: str) -> None:
    assert rejected(f"{names}\n1,2,3".encode(), CSV).endswith(HEADER_REMEDY)


@pytest.mark.parametrize(
    "body", ["a,b,c", "a,2,3\n1,2,3", ",,\n1,2,3", "1;2;3\n4;5;6", "1,2,3\na,b,c"]
)
def test_no_remedy_without_a_csv_header(body: str) -> None:
    assert "header" not in rejected(body.encode(), CSV)


# NPY


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i8", ">i2", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_number_is_read(dtype: str, order: str) -> None:
    array = np.array([[1, 0, 1], [0, 1, 1]], dtype=dtype, order=order)
    assert read(npy(array), NPY).tolist() == [[1, 0, 1], [0, 1, 1]]


def test_npy_keeps_nan_and_infinity() -> None:
    found = read(npy(np.array([[np.nan, np.inf, -np.inf]], "float32")), NPY)
    assert np.isnan(found[0, 0])
    assert found[0, 1:].tolist() == [np.inf, -np.inf]


def test_npy_headers_of_other_writers() -> None:
    data = np.arange(3, dtype="<f4").tobytes()
    for version in (1, 2, 3):
        text = "{'shape':(1,3),'fortran_order':False,'descr':'<f4'}"
        assert read(header(text, data, version), NPY).tolist() == [[0, 1, 2]]


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("the pickle ran",))


def test_pickle_is_rejected() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([[Evil(), 1, 2]], dtype=object), allow_pickle=True)
    assert "'|O' is not supported" in rejected(stream.getvalue(), NPY)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not in NPY format"),
        (b"\x93NUMPY", "not in NPY format"),
        (b"PK\x03\x04" + bytes(20), "not in NPY format"),
        (npy(np.zeros((1, 3), "float32"))[:-1], "bytes"),
        (npy(np.zeros((1, 3), "float32")) + b"x", "bytes"),
        (npy(np.zeros((2, 4), "float32")), "(2, 4)"),
        (npy(np.zeros((0, 3), "float32")), "empty"),
        (npy(np.float32(1)), "shape ()"),
        (npy(np.zeros((1, 3), "complex64")), "'<c8' is not supported"),
        (npy(np.array([["a", "b", "c"]])), "'<U1' is not supported"),
        (npy(np.zeros((1, 3), "M8[s]")), "is not supported"),
        (npy(np.zeros(3, [("x", "f4")])), "is not supported"),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (9" + "9" * 30 + ", 3), }"),
            "bytes",
        ),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }"),
            "bytes",
        ),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 60 + "3)}"),
            "shape",
        ),
        (header("{'descr': '<f4', 'fortran_order': False}"), "header"),
        (header("[" * 5000), "header"),
        (header("__import__('os').system('true')"), "header"),
        (header("{}", version=9), "version 9"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(16), "header of 4294967295 bytes"),
        (npy(np.array([[1, 2, 1e300]])), "1e+300 at [0][2]"),
    ],
)
def test_npy_that_does_not_fit_the_model(body: bytes, words: str) -> None:
    assert words in rejected(body, NPY)


# Any bytes


def test_other_content_types_are_rejected() -> None:
    for content_type in ("", "image/png", "application/x-npz", "application/python-pickle"):
        assert "expected application/json" in rejected(b"1,2,3", content_type, status=415)
    for charset in ("utf-7", "zlib", "punycode", "idna", "nowhere"):
        rejected(b"1,2,3", f"text/csv; charset={charset}", status=415)
    assert "not valid utf-16" in rejected(b"1", "text/csv; charset=utf-16")


def attempt(body: bytes, content_type: str, item: Input) -> None:
    try:
        array = read(body, content_type, item)
    except InferenceError as error:
        assert error.status in (400, 415)
        assert str(error).isprintable()
        assert len(str(error)) < 1000
    else:
        assert len(array) > 0
        assert item.row is None or array.shape[1:] == item.row


CONTENT_TYPES = st.one_of(
    st.sampled_from([*SUPPORTED, "text-csv", "text/csv; charset=utf-16"]), st.text(max_size=30)
)
TOKENS = (
    *(b"[", b"]", b"{", b"}", b",", b" ", b"\n", b"\r\n", b'"', b"_", b"e", b".", b"\x00"),
    *(b"1", b"-2.5e3", b"nan", b"null", b"true", b'"data":'),
    *(b"\x93NUMPY", b"\x01\x00", b"\xef\xbb\xbf"),
)
PIECES = st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join)


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=300), PIECES), CONTENT_TYPES, st.sampled_from(INPUTS))
def test_any_bytes_are_decoded_or_rejected(body: bytes, content_type: str, item: Input) -> None:
    attempt(body, content_type, item)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([THREE, IMAGE, HALF, INTEGER, UNKNOWN]),
    st.integers(0, 200),
    st.binary(max_size=3),
)
def test_damaged_npy_is_decoded_or_rejected(item: Input, at: int, damage: bytes) -> None:
    body = npy(np.zeros((2, *(item.row or (2,))), "float32"))
    attempt(body[:at] + damage + body[at + len(damage) :], NPY, item)


ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["data", "x"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(ANY_JSON, st.sampled_from(INPUTS))
def test_any_json_is_decoded_or_rejected(value: object, item: Input) -> None:
    attempt(json.dumps(value).encode(), JSON, item)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays("float64", hnp.array_shapes(min_dims=2, max_dims=4, max_side=4)))
def test_each_content_type_gives_the_same_numbers(array: np.ndarray) -> None:
    item = Input("data", np.dtype("float64"), array.shape[1:])
    csv = "\n".join(",".join(map(repr, row.ravel().tolist())) for row in array).encode()
    expected = array.tobytes()
    assert read(npy(array), NPY, item).tobytes() == expected
    # Equal, where NaN is NaN: CSV has one NaN, NPY all its bit patterns.
    np.testing.assert_array_equal(read(csv, CSV, item), array)
    if np.isfinite(array).all():
        assert read(json.dumps(array.tolist()).encode(), JSON, item).tobytes() == expected


def test_memory_is_proportional_to_the_body() -> None:
    hostile = [
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 3), }"), NPY),
        (b"[" * 50_000, JSON),
        (b"[" + b"[]," * 20_000 + b"[]]", JSON),
        (b"1" * 50_000, JSON),
        (b"," * 50_000, CSV),
        (b"1\n" * 50_000, CSV),
        (b"1,2,x\n" * 10_000, CSV),
        (b"1" * 50_000, CSV),
    ]
    for body, content_type in hostile:
        tracemalloc.start()
        try:
            for item in (THREE, INTEGER, UNKNOWN, PHOTO):
                attempt(body, content_type, item)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 100 * len(body) + (1 << 20), content_type
