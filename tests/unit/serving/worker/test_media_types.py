"""Headers that name content types."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ("image/png", None),
        ("application/json;q=0", None),
        ("application/json;q=many", None),
        ("*/*;q=0", None),
    ],
)
def test_choice_by_accept(accept: str, chosen: object) -> None:
    assert choose(accept, JSON) == chosen


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
    assert choose(text, JSON) in (None, *SUPPORTED)
    assert isinstance(parse_media_type(text).name, str)
    assert isinstance(preferred(text, JSON), str)
