"""Where a model's script and its code are, in the layouts that people pack."""

from pathlib import Path
from typing import Optional, Sequence

import pytest

from sagemaker_mxnet_serving.model_directory import CodeLocation, locate


def write(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


CODE = ("code/inference.py", "code/pkg/__init__.py", "code/pkg/serve.py", "code/train.py")
DEEP = ("code/a/serve.py", "code/a/twice.py", "code/b/twice.py", "code/lib/x/serve.py")


@pytest.mark.parametrize(
    ("files", "program", "script"),
    [
        (CODE, "", "code/inference.py"),
        (CODE, "inference.py", "code/inference.py"),
        (CODE, "inference", "code/inference.py"),
        (CODE, "code/inference.py", "code/inference.py"),
        (CODE, "code.inference", "code/inference.py"),
        (CODE, "pkg/serve.py", "code/pkg/serve.py"),
        (CODE, "pkg.serve", "code/pkg/serve.py"),
        (CODE, "pkg", "code/pkg/__init__.py"),
        (CODE, "./train.py", "code/train.py"),
        (CODE, "../train.py", "code/train.py"),
        (CODE, "/home/user/project/train.py", "code/train.py"),
        (CODE, "file:///home/user/project/train.py", "code/train.py"),
        (CODE, "C:\\Users\\user\\train.py", "code/train.py"),
        (CODE, "absent.py", None),
        (CODE, "absent", None),
        (DEEP, "serve.py", "code/a/serve.py"),
        (DEEP, "serve", "code/a/serve.py"),
        (DEEP, "/home/user/project/serve.py", "code/a/serve.py"),
        (DEEP, "b/twice.py", "code/b/twice.py"),
        (DEEP, "twice.py", None),
        (DEEP, "other/serve.py", None),
        (DEEP, "", None),
    ],
)
def test_script_in_code(
    tmp_path: Path, files: Sequence[str], program: str, script: Optional[str]
) -> None:
    write(tmp_path, files)
    found = script and str(tmp_path / script)
    assert locate(str(tmp_path), "", program) == CodeLocation(
        str(tmp_path), str(tmp_path / "code"), found
    )


@pytest.mark.parametrize("program", ["", "inference.py", "inference", "/src/inference.py"])
def test_script_at_the_top(tmp_path: Path, program: str) -> None:
    write(tmp_path, ["inference.py", "model-symbol.json"])
    found = locate(str(tmp_path), "", program)
    assert found == CodeLocation(str(tmp_path), str(tmp_path), str(tmp_path / "inference.py"))
    write(tmp_path, ["code/inference.py"])
    assert locate(str(tmp_path), "", program).script == str(tmp_path / "code" / "inference.py")


def test_archive_one_directory_deeper(tmp_path: Path) -> None:
    """The SDK's local mode leaves the archive beside what it held."""
    write(tmp_path, ["model.tar.gz", "._my_model", "my_model/code/sub/serve.py"])
    inner = tmp_path / "my_model"
    found = locate(str(tmp_path), "", "serve.py")
    assert found == CodeLocation(str(inner), str(inner / "code"), str(inner / "code/sub/serve.py"))
    write(tmp_path, ["my_model/inference.py"])
    assert locate(str(tmp_path)) == CodeLocation(
        str(inner), str(inner), str(inner / "inference.py")
    )
    write(tmp_path, ["model-symbol.json"])
    assert locate(str(tmp_path)).script is None, "not all of it is in my_model"


def test_code_apart_from_the_model(tmp_path: Path) -> None:
    write(tmp_path, ["source/sub/serve.py", "model/code/inference.py"])
    model, source = str(tmp_path / "model"), str(tmp_path / "source")
    apart = CodeLocation(model, source, str(tmp_path / "source/sub/serve.py"))
    assert locate(model, source, "serve.py") == apart
    assert locate(model, source, "sub.serve") == apart
    assert locate(model, source).script == str(tmp_path / "model/code/inference.py")
    assert locate(model, source, "absent.py") == CodeLocation(model, source)


def test_absolute_path_anywhere(tmp_path: Path) -> None:
    """A custom image may have its script wherever it likes."""
    write(tmp_path, ["app/serve.py", "model/model-symbol.json"])
    found = locate(str(tmp_path / "model"), "", str(tmp_path / "app/serve.py"))
    assert (found.code_dir, found.script) == (str(tmp_path / "app"), str(tmp_path / "app/serve.py"))


def test_no_directory(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert locate(str(missing)) == CodeLocation(str(missing), str(missing / "code"))
