"""Finding the user's script, importing it, and what its functions are called with."""

import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

from sagemaker_mxnet_serving.errors import ModelError
from sagemaker_mxnet_serving.script import Script, find_script, load_script


@pytest.fixture(autouse=True)
def imports_are_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def script(folder: Path, text: str, name: str = "inference.py") -> Script:
    (folder / name).write_text(text)
    return load_script(str(folder), name, str(folder / "model"))


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("", "inference.py"),
        ("train.py", "train.py"),
        ("/home/user/project/train.py", "train.py"),
        ("sub/serve.py", "sub/serve.py"),
        ("../train.py", "train.py"),
        ("/elsewhere/sub/serve.py", None),
        ("absent.py", None),
    ],
)
def test_where_the_script_is(tmp_path: Path, program: str, found: Any) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("inference.py", "train.py", "sub/serve.py"):
        (tmp_path / name).write_text("")
    if found is None:
        with pytest.raises(ModelError, match=r"SAGEMAKER_PROGRAM.*expected a file"):
            find_script(str(tmp_path), program)
    else:
        assert find_script(str(tmp_path), program) == str(tmp_path / found)


def test_no_script_is_needed(tmp_path: Path) -> None:
    assert load_script(str(tmp_path / "code"), "", str(tmp_path)) == Script()


@pytest.mark.parametrize("lib", ["lib", "model/code/lib"])
def test_modules_beside_the_script_and_in_lib_are_importable(tmp_path: Path, lib: str) -> None:
    sys.modules.pop("dependency_of_a_test", None)
    sys.modules.pop("neighbour_of_a_test", None)
    (tmp_path / lib / "dependency_of_a_test").mkdir(parents=True)
    (tmp_path / lib / "dependency_of_a_test" / "__init__.py").write_text("VALUE = 2")
    (tmp_path / "neighbour_of_a_test.py").write_text("VALUE = 1")
    text = (
        "from neighbour_of_a_test import VALUE as one\n"
        "def model_fn(model_dir):\n"
        "    from dependency_of_a_test import VALUE as two\n"
        "    return one, two\n"
    )
    function = script(tmp_path, text)["model_fn"]
    assert function is not None
    assert function("") == (1, 2)
    assert not list(tmp_path.rglob("*.pyc"))


def test_a_script_may_have_the_name_of_a_module(tmp_path: Path) -> None:
    import json

    assert script(tmp_path, "def model_fn(model_dir): return 1", "json.py")["model_fn"]
    assert sys.modules["json"] is json
    assert script(tmp_path, "def model_fn(model_dir): return 1", "my-script.py")["model_fn"]


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("body, content_type", ("b", "c")),
        ("body, content_type, context", ("b", "c", "CONTEXT")),
        ("body, content_type, context=None", ("b", "c", "CONTEXT")),
        ("body, content_type, request", ("b", "c", "CONTEXT")),
        ("body, content_type, *, context", ("b", "c", "CONTEXT")),
        ("body, content_type, model", ("b", "c", "MODEL")),
        ("body, content_type, model=None", ("b", "c", "MODEL")),
        ("body, content_type, model, context", ("b", "c", "MODEL", "CONTEXT")),
        ("body, content_type, context, model", ("b", "c", "CONTEXT", "MODEL")),
        ("body, content_type, flag=3", ("b", "c", 3)),
        ("body, content_type, flag=3, context=None", ("b", "c", 3, "CONTEXT")),
        ("*everything", (("b", "c"),)),
        ("body, content_type, **more", ("b", "c", {})),
    ],
)
def test_a_function_gets_what_it_asks_for(tmp_path: Path, signature: str, expected: Any) -> None:
    names = [part.strip().lstrip("*").partition("=")[0] for part in signature.split(",")]
    returned = ", ".join(name for name in names if name)
    text = f"def input_fn({signature}):\n    return ({returned},)\n"
    function = script(tmp_path, text)["input_fn"]
    assert function is not None
    assert function("b", "c", context="CONTEXT", model="MODEL") == expected


@pytest.mark.parametrize(
    "text",
    [
        "def predict_fn(data): pass",
        "def predict_fn(data, model, one, two): pass",
        "predict_fn = 5",
        "def model_fn(): pass",
    ],
)
def test_a_function_that_cannot_be_called_is_refused_at_start(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match=r"expected (predict_fn\(data, model\)|model_fn\(model_d)"):
        script(tmp_path, text)


def test_both_kinds_of_functions_are_refused_at_start(tmp_path: Path) -> None:
    """Defect 8 of the peer: it is told at each request."""
    text = (
        "def transform_fn(model, body, content_type, accept): pass\n"
        "def input_fn(body, content_type): pass\n"
    )
    with pytest.raises(ModelError, match=r"defines transform_fn and input_fn: expected either"):
        script(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("raise ValueError('because')", "ValueError"),
        ("import argparse; p = argparse.ArgumentParser(); p.error('flag')", "SystemExit"),
    ],
)
def test_a_script_that_cannot_be_imported(tmp_path: Path, text: str, kind: str) -> None:
    with pytest.raises(ModelError) as caught:
        script(tmp_path, text)
    assert f"raised {kind}" in str(caught.value)
    assert str(tmp_path / "inference.py") in str(caught.value)
    assert "sagemaker_mxnet_serving" not in str(caught.value)
    assert "inference" not in sys.modules
