"""The SageMaker Python SDKs, each in an environment of its own in this checkout, made once.

``python -m tests.support.sdks`` makes all of them, which takes a minute or more.
"""

import os
import sys

from tests.support.containers import ROOT, run

EXAMPLE = ROOT / "examples/sagemaker_sdk"


def sdk2() -> str:
    """Install SDK 2, as its example does; return the example's program."""
    program = str(EXAMPLE / "run.sh")
    run(program, "--help", timeout=1200)
    return program


def python_of_sdk2() -> str:
    """Return the interpreter of SDK 2, once it is installed."""
    return str(ROOT / os.environ.get("SDK_VENV", ".venv-sdk") / "bin/python")


def python_of_sdk3() -> str:
    """Install SDK 3; return its interpreter. It is named sagemaker, as SDK 2 is."""
    requirements = str(EXAMPLE / "requirements3.txt")
    return _python(os.environ.get("SDK3_VENV", ".venv-sdk3"), [["-r", requirements]])


def python_of_sdk1() -> str:
    """Install SDK 1; return its interpreter."""
    # Its source distributions are older than isolated builds; protobuf 4 rejects its messages.
    packages = ["sagemaker==1.72.0", "protobuf<3.21", "pyyaml", "requests"]
    return _python(
        os.environ.get("SDK1_VENV", ".venv-sdk1"),
        [["setuptools<70", "wheel"], ["--no-build-isolation", *packages]],
    )


def _python(name: str, installations: "list[list[str]]") -> str:
    venv = ROOT / name
    python = str(venv / "bin/python")
    if not (venv / "ready").exists():
        run(sys.executable, "-m", "venv", "--clear", str(venv))
        for words in installations:
            run(python, "-m", "pip", "install", "--quiet", *words, timeout=1200)
        (venv / "ready").touch()
    return python


if __name__ == "__main__":
    for install in (sdk2, python_of_sdk3, python_of_sdk1):
        install()
