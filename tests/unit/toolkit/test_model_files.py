"""Detection of the files of a saved model."""

import os
from pathlib import Path
from typing import Sequence

import pytest

from sagemaker_mxnet_toolkit.model_files import ModelFilesError, find

SAVED = ("model-symbol.json", "model-0000.params", "model-shapes.json")


def write(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


@pytest.mark.parametrize(
    ("names", "params", "shapes"),
    [
        (SAVED, "model-0000.params", "model-shapes.json"),
        (SAVED[:2], "model-0000.params", None),
        (
            (*SAVED, "model-0007.params", "other-symbol.json", "other-0001.params"),
            SAVED[1],
            SAVED[2],
        ),
        (("resnet-symbol.json", "resnet-0000.params"), "resnet-0000.params", None),
        (
            ("a-b-symbol.json", "a-b-0002.params", "a-b-0010.params", "a-b-10000.params"),
            "a-b-10000.params",
            None,
        ),
        (
            (
                "net-symbol.json",
                "net-0003.params",
                "net-0003.states",
                "old-0001.params",
                "._net-0009.params",
            ),
            "net-0003.params",
            None,
        ),
        (
            tuple(f"my_model/{name}" for name in SAVED),
            f"my_model/{SAVED[1]}",
            f"my_model/{SAVED[2]}",
        ),
        (
            (
                "my_model/net-symbol.json",
                "my_model/net-0001.params",
                "code/b-symbol.json",
                "code/b-0001.params",
            ),
            "my_model/net-0001.params",
            None,
        ),
    ],
)
def test_saved_model_is_found(
    tmp_path: Path, names: Sequence[str], params: str, shapes: "str | None"
) -> None:
    write(tmp_path, names)
    found = find(str(tmp_path))
    assert os.path.relpath(found.params, tmp_path) == params
    assert os.path.isfile(found.symbol)
    assert found.shapes == (shapes and str(tmp_path / shapes))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "no saved model in .*found: nothing.*expected one pair of files NAME-symbol.json"),
        (("net.params",), "no saved model in .*found: net.params"),
        (("net-symbol.json", "x"), "no net-0000.params for net-symbol.json in .*found: net-symb"),
        (("net-0002.params",), "no net-symbol.json for net-0002.params in "),
        (
            ("a-symbol.json", "a-0001.params", "b-symbol.json", "b-0002.params"),
            "2 models: a-symbol.json with a-0001.params, b-symbol.json with b-0002.params; e",
        ),
        (
            ("x/a-symbol.json", "x/a-0001.params", "y/a-symbol.json", "y/a-0000.params"),
            "2 models: x/a-symbol.json with a-0001.params, y/a-symbol.json",
        ),
    ],
)
def test_directory_without_exactly_one_model(
    tmp_path: Path, names: Sequence[str], reason: str
) -> None:
    write(tmp_path, names)
    with pytest.raises(ModelFilesError, match=reason):
        find(str(tmp_path))


def test_missing_directory_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match="is not a directory"):
        find(str(tmp_path / "missing"))
