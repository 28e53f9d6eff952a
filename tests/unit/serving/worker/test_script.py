"""Finding the user's script, importing it, and what its functions are called with."""

import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

from sagemaker_mxnet_serving.inference import ModelError
from sagemaker_mxnet_serving.model_directory import locate
from sagemaker_mxnet_serving.worker.script import Script, load_script


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
    return load(folder / "model", folder, name)


def load(model_dir: Path, code_dir: Path, program: str = "") -> Script:
    return load_script(locate(str(model_dir), str(code_dir), program), program)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "absent.py",
            r"'absent.py' of SAGEMAKER_PROGRAM was not found \(.*code has a, b; ",
        ),
        ("absent", "set it to a file in one of these directories, or to the name of a module"),
        ("absent.module", "the script 'absent.module' of"),
        ("os.absent", "the script 'os.absent' of"),
        ("twice.py", "matches 2 scripts below .*: a/twice.py, b/twice.py; set it"),
    ],
)
def test_missing_script(tmp_path: Path, program: str, reason: str) -> None:
    for folder in "ab":
        (tmp_path / "code" / folder).mkdir(parents=True)
        (tmp_path / "code" / folder / "twice.py").write_text("")
    with pytest.raises(ModelError, match=reason):
        load(tmp_path / "model", tmp_path / "code", program)


PACKAGE = {
    "pkg/__init__.py": "",
    "pkg/of_package.py": "VALUE = 1",
    "beside_package.py": "VALUE = 2",
}


@pytest.mark.parametrize(
    ("program", "file", "imports"),
    [
        ("pkg.serve", "pkg/serve.py", "from .of_package import VALUE as one\n"),
        ("pkg.serve", "pkg/serve.py", "from pkg.of_package import VALUE as one\n"),
        ("pkg/serve.py", "pkg/serve.py", "from of_package import VALUE as one\n"),
        ("pkg/serve.py", "pkg/serve.py", "from .of_package import VALUE as one\n"),
        ("serve.py", "pkg/serve.py", "from of_package import VALUE as one\n"),
        ("pkg", "pkg/__init__.py", "from .of_package import VALUE as one\n"),
        ("serve", "serve.py", "from pkg.of_package import VALUE as one\n"),
    ],
)
def test_imports_of_a_script_in_a_package(
    tmp_path: Path, program: str, file: str, imports: str
) -> None:
    script = f"{imports}from beside_package import VALUE as two\ndef model_fn(d): return one, two\n"
    for name, text in {**PACKAGE, file: script}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = load(tmp_path / "model", tmp_path, program)
    assert found.path == str(tmp_path / file)
    function = found["model_fn"]
    assert function is not None
    assert function("") == (1, 2)


def test_misspelled_function_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a word the default answers in its place."""
    (tmp_path / "code").mkdir()
    script = tmp_path / "code/inference.py"
    script.write_text("def predict_fun(): pass\ndef output_func(): pass\ndef output_fn(x, y): pass")
    load(tmp_path, tmp_path / "code")
    said = "defines predict_fun, which is never called; did you mean predict_fn?"
    assert capsys.readouterr().err == f"{script} {said}\n"


def test_script_may_be_an_installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "installed_of_a_test.py").write_text("def model_fn(model_dir): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = load(tmp_path / "model", tmp_path / "code", "installed_of_a_test")
    assert found.path == str(tmp_path / "site" / "installed_of_a_test.py")
    assert found["model_fn"]


def test_no_script_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(tmp_path, tmp_path / "code") == Script()
    assert capsys.readouterr().err == ""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "serve.py").write_text("")
    assert load(tmp_path, tmp_path / "code") == Script()
    assert "has serve.py, but no inference.py" in capsys.readouterr().err


@pytest.mark.parametrize("lib", ["lib", "model/code/lib"])
def test_modules_beside_the_script_and_in_lib(tmp_path: Path, lib: str) -> None:
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


def test_script_with_the_name_of_a_module(tmp_path: Path) -> None:
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
def test_additional_parameters_of_functions(tmp_path: Path, signature: str, expected: Any) -> None:
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
def test_function_with_wrong_parameters_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match=r"expected (predict_fn\(data, model\)|model_fn\(model_d)"):
        script(tmp_path, text)


def test_both_kinds_of_functions_are_an_error(tmp_path: Path) -> None:
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
