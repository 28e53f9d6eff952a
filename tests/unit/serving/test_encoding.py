"""What is written reads back as the same numbers."""

import io
import json

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagemaker_mxnet_serving.encoding import encode, to_json
from sagemaker_mxnet_serving.media_types import CSV, JSON, NPY

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


def test_a_float32_is_written_with_its_own_digits() -> None:
    array = np.array([[0.1, 2.0]], "float32")
    assert encode([array], JSON) == b"[[0.1,2.0]]"
    assert encode([array], CSV) == b"0.1,2.0\n"


def test_csv_keeps_what_json_has_no_number_for() -> None:
    assert encode([np.array([[np.nan, np.inf], [1, -np.inf]])], CSV) == b"nan,inf\n1.0,-inf\n"


def test_several_outputs_are_a_list() -> None:
    assert json.loads(encode([np.array([[1]]), np.array([2, 3])], JSON)) == [[[1]], [2, 3]]


def test_values_of_any_kind_become_json() -> None:
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
