"""What is written reads back as the same numbers."""

import collections
import io
import json
import types

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagemaker_mxnet_serving.worker.encoding import encode, to_json
from sagemaker_mxnet_serving.worker.media_types import CSV, JSON, NPY

ARRAYS = st.sampled_from(["float16", "float32", "float64", "int32", "int64", "uint8"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
)


@settings(max_examples=300, deadline=None)
@given(ARRAYS)
def test_numbers_come_back(array: np.ndarray) -> None:
    written = json.loads(encode([array], JSON))
    found = np.array(written, dtype=object)
    finite = np.isfinite(array)
    assert all(value is None for value in found[~finite])  # JSON has no NaN and no infinity
    np.testing.assert_array_equal(found[finite].astype(array.dtype), array[finite])

    rows = np.loadtxt(io.BytesIO(encode([array], CSV)), delimiter=",", ndmin=2, dtype="float64")
    if array.dtype.itemsize < 8 or array.dtype.kind == "f":  # an int64 has more digits
        expected = array.reshape(len(array), -1)
        np.testing.assert_array_equal(rows.reshape(expected.shape).astype(array.dtype), expected)

    stored = np.load(io.BytesIO(encode([array], NPY)), allow_pickle=False)
    assert (stored.dtype, stored.tobytes()) == (array.dtype, array.tobytes())


def test_float32_is_written_with_the_digits_of_a_double() -> None:
    """As ``json.dumps(array.tolist())`` does: AWS's own tests compare these digits."""
    array = np.array([[4.9999918937683105, 0.1, 2.0]], "float32")
    digits = b"4.9999918937683105,0.10000000149011612,2.0"
    assert encode([array], JSON) == b"[[%s]]" % digits
    assert encode([array], CSV) == digits + b"\n"
    assert encode([array, array[0]], JSON) == b"[[[%s]],[%s]]" % (digits, digits)
    assert encode([array[0, 0]], JSON) == b"4.9999918937683105"
    assert to_json({"p": array[0], "q": [array[0, 1]]}) == b'{"p":[%s],"q":[%s]}' % (
        digits,
        b"0.10000000149011612",
    )
    assert encode([np.array([0.1], "float16")], JSON) == b"[0.0999755859375]"
    infinite = np.array([[0.1, np.nan]], "float32")
    assert encode([infinite], CSV) == b"0.10000000149011612,nan\n"
    assert encode([infinite], JSON) == b"[[0.10000000149011612,null]]"


def test_csv_has_nan_and_infinity() -> None:
    assert encode([np.array([[np.nan, np.inf], [1, -np.inf]])], CSV) == b"nan,inf\n1.0,-inf\n"


def test_several_outputs_are_a_list() -> None:
    assert json.loads(encode([np.array([[1]]), np.array([2, 3])], JSON)) == [[[1]], [2, 3]]


def test_values_of_many_types_as_json() -> None:
    value = {
        "label": np.str_("cat"),
        "score": np.float32(0.5),
        1: {np.int64(7)},
        "rows": np.array([[1, 2]]).T[::-1],
        "half": np.array(0.25, "float16"),
        "text": np.array(["a"]),
        "none": None,
    }
    assert json.loads(to_json(value)) == {
        "label": "cat",
        "score": 0.5,
        "1": [7],
        "rows": [[2], [1]],
        "half": 0.25,
        "text": ["a"],
        "none": None,
    }
    with pytest.raises(TypeError):
        to_json(object())


class Score(float):
    pass


class Count(int):
    pass


class Label(str):
    pass


Pair = collections.namedtuple("Pair", ["label", "score"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Pair("cat", 0.5), ["cat", 0.5]),
        ([Pair("cat", np.float32(0.5))], [["cat", 0.5]]),
        (2**70, 2**70),
        ({"id": -(2**70), "p": Pair(Label("a"), Score(0.5)), "n": Count(3)}, None),
        (Score(1.5), 1.5),
        (np.float64(1.5), 1.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(4.0), 4.0),
        ({np.int64(1): {"a": np.arange(2)}}, {"1": {"a": [0, 1]}}),
        ({"a": np.array(["x"]), "b": np.array([[1, None]], dtype=object)}, None),
        (collections.deque([1]), [1]),
        (collections.OrderedDict(a=1), {"a": 1}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        ({"a": 1}.keys(), ["a"]),
        ({"a": 1}.values(), [1]),
        (range(2), [0, 1]),
        ((i for i in range(2)), [0, 1]),
        (map(int, "12"), [1, 2]),
        (np.datetime64("2020-01-01"), "2020-01-01T00:00:00"),
        (np.array([(1, 2.5)], dtype=[("a", int), ("b", float)]), [[1, 2.5]]),
        ({"a": float("nan"), "b": np.float32("inf")}, {"a": None, "b": None}),
        ({"a": 2**64, "b": float("nan")}, {"a": 2**64, "b": None}),
    ],
)
def test_values_that_functions_return(value: object, expected: object) -> None:
    if expected is None:
        expected = json.loads(json.dumps(value, default=lambda each: each.tolist()))
    assert json.loads(to_json(value)) == expected


@pytest.mark.parametrize("value", [1j, b"x", {"a": b"x"}, {(1, 2): 3}, {"a": object()}])
def test_nan_and_infinity_in_json(value: object) -> None:
    with pytest.raises(TypeError):
        to_json(value)
