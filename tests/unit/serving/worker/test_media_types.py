"""Headers that name content types."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_serving.inference import InferenceError
from sagemaker_mxnet_serving.worker.media_types import (
    CSV,
    JSON,
    NPY,
    SUPPORTED,
    choose,
    parse_media_type,
    preferred,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("application/json", JSON),
        ("Application/JSON; charset=utf-8", JSON),
        (" text/csv ;header=absent", CSV),
        ("text-csv", CSV),
        ("TEXT-CSV", CSV),
        ("application/x-npy", NPY),
        ("", ""),
        (";", ""),
    ],
)
def test_content_type_in_any_case_with_parameters(text: str, name: str) -> None:
    assert parse_media_type(text).name == name


def test_parameters_lose_their_quotes() -> None:
    assert parse_media_type('text/csv; Charset="UTF-8"').parameters == {"charset": "UTF-8"}


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("text/csv, application/json", CSV),
        ("text/csv;q=0.5, application/json", JSON),
        ("text/*", CSV),
        ("application/*", JSON),
        ("application/*, application/json;q=0", NPY),
        ("image/png, application/x-npy;q=0.1", NPY),
        ("TEXT/CSV", CSV),
        ("text-csv", CSV),
    ],
)
def test_choice_by_accept(accept: str, chosen: str) -> None:
    assert choose(accept, JSON) == chosen


@pytest.mark.parametrize(
    "accept", ["image/png", "application/json;q=0", "application/json;q=many", "*/*;q=0"]
)
def test_accept_without_a_supported_type(accept: str) -> None:
    with pytest.raises(InferenceError, match="Accept '.*' is not supported; expected") as caught:
        choose(accept, JSON)
    assert caught.value.status == 406


def test_default_accept_without_accept_header() -> None:
    assert choose("*/*", NPY) == NPY
    assert choose("text/csv", NPY) == CSV


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [("", JSON), ("*/*", JSON), ("image/png", "image/png"), ("a/b;q=0.2, c/d", "c/d")],
)
def test_function_may_return_any_content_type(accept: str, wanted: str) -> None:
    assert preferred(accept, JSON) == wanted


@given(st.text(max_size=200))
def test_any_header_is_read(text: str) -> None:
    with contextlib.suppress(InferenceError):
        assert choose(text, JSON) in SUPPORTED
    assert isinstance(parse_media_type(text).name, str)
    assert isinstance(preferred(text, JSON), str)
