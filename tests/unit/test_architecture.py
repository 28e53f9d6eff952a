"""The packages of the distribution, and which of them may import which."""

import ast
from pathlib import Path
from typing import Iterator, List

import pytest

SOURCES = Path(__file__).parents[2] / "src"

MAIN = SOURCES / "sagemaker_mxnet_training" / "__main__.py"
"""``python -m sagemaker_mxnet_training``: a program, which nothing imports."""

# A package imports itself, and what stands here.
ALLOWED = {
    "sagemaker_mxnet_cli": {
        "sagemaker_mxnet_toolkit",
        "sagemaker_mxnet_training",
        "sagemaker_mxnet_serving",
    },
    "sagemaker_mxnet_toolkit": set(),
    "sagemaker_mxnet_training": {"sagemaker_mxnet_toolkit"},
    "sagemaker_mxnet_serving": {"sagemaker_mxnet_toolkit"},
    "sagemaker_mxnet_container": {"sagemaker_mxnet_training"},
    "sagemaker_mxnet_serving_container": {"sagemaker_mxnet_serving"},
}


def imported(path: Path) -> Iterator[str]:
    """Yield the full names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_package_has_a_rule() -> None:
    assert {path.parent.name for path in SOURCES.glob("*/__init__.py")} == set(ALLOWED)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_they_stand_on(package: str) -> None:
    wrong = sorted(
        (str(path.relative_to(SOURCES)), name.partition(".")[0])
        for path in (SOURCES / package).rglob("*.py")
        if path != MAIN
        for name in imported(path)
        if name.startswith("sagemaker_mxnet_")
        and name.partition(".")[0] not in ALLOWED[package] | {package}
    )
    assert wrong == []


def test_python_m_starts_the_command_line() -> None:
    assert list(imported(MAIN)) == ["sagemaker_mxnet_cli.main"]


def test_checkpoints_import_nothing_above_them() -> None:
    """Scripts and kvstore servers use them; hosts and roles stand above."""
    package = "sagemaker_mxnet_training"
    found = {
        name
        for path in (SOURCES / package / "checkpoints").rglob("*.py")
        for name in imported(path)
        if name.startswith(package) and not name.startswith(f"{package}.checkpoints")
    }
    assert found == set()


SERVING = SOURCES / "sagemaker_mxnet_serving"

# Of the modules beside the two rooms, only programs see into both.
SERVING_PROGRAMS = {"serve.py"}


@pytest.mark.parametrize(
    ("room", "others"), [("front", {"worker"}), ("worker", {"front"}), ("", {"front", "worker"})]
)
def test_rooms_of_serving_do_not_import_each_other(room: str, others: "set[str]") -> None:
    paths = (SERVING / room).rglob("*.py") if room else SERVING.glob("*.py")
    wrong = {
        (str(path.relative_to(SERVING)), name)
        for path in paths
        for name in imported(path)
        if path.name not in SERVING_PROGRAMS
        and any(f"{name}.".startswith(f"{SERVING.name}.{other}.") for other in others)
    }
    assert wrong == set()


CLASS_LINES, FUNCTION_LINES = 250, 60
"""Lines that a class and a function may have, docstrings and comments included."""

EXEMPT = "# long:"
"""Begins a comment, on the line of the definition or the one before it, that gives a reason."""


def oversized(text: str) -> Iterator[str]:
    """Yield the classes and functions in a source text that are too long without a reason."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        assert node.end_lineno is not None
        limit = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
        near = lines[max(0, node.lineno - 2) : node.lineno]
        exempt = any(line.partition(EXEMPT)[2].strip() for line in near)
        if node.end_lineno - node.lineno + 1 > limit and not exempt:
            yield node.name


def test_classes_and_functions_are_short() -> None:
    found = {
        f"{path.relative_to(SOURCES)}: {name}"
        for path in SOURCES.rglob("*.py")
        for name in oversized(path.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("definition", "found"),
    [
        ("def f():\n", ["f"]),
        ("class C:\n", []),
        ("# long: one table\ndef f():\n", []),
        ("def f():  # long: one table\n", []),
        ("# long:\ndef f():\n", ["f"]),
    ],
)
def test_a_long_function_needs_a_reason(definition: str, found: List[str]) -> None:
    assert list(oversized(definition + "    x = 1\n" * FUNCTION_LINES)) == found
