"""The SageMaker Python SDK's local mode, by the example, in an environment of its own."""

import os
import re
import tarfile
from pathlib import Path

import pytest

from tests.container.engine import ROOT, Completed, run

pytestmark = pytest.mark.timeout(1500)

EXAMPLE = ROOT / "examples/sagemaker_sdk"


@pytest.fixture(scope="session")
def sdk(image: str) -> str:
    """Install the SDK once."""
    run(str(EXAMPLE / "run.sh"), "--help", timeout=1200)
    return str(EXAMPLE / "run.sh")


def fit(sdk: str, *arguments: str, check: bool = True) -> "Completed[str]":
    done = run(sdk, *arguments, timeout=300, check=check)
    assert run("docker", "network", "ls", "-q", "-f", "name=sagemaker-local").stdout == ""
    return done


@pytest.mark.parametrize("hosts", [1, 2])
def test_fit(sdk: str, tmp_path: Path, hosts: int) -> None:
    done = fit(sdk, "--hosts", str(hosts), "--output", str(tmp_path))
    accuracies = re.findall(r"validation-accuracy=([\d.]+)", done.stdout)
    assert len(accuracies) == 10 * hosts
    assert max(map(float, accuracies)) >= 0.9
    with tarfile.open(tmp_path / "model.tar.gz") as archive:
        assert sorted(archive.getnames()) == [
            "model-0000.params",
            "model-shapes.json",
            "model-symbol.json",
        ]
    kinds = r" ([\w-]+) {2,}(int|float|bool|list|dict|str|NoneType)\b"
    types = dict(re.findall(kinds, done.stdout))
    assert types == {
        "epochs": "int",
        "learning-rate": "float",
        "hybridize": "bool",
        "layers": "list",
        "optimizer": "dict",
        "batch-size": "int",
        "comment": "str",
        "resume-from": "NoneType",
    }


def test_failing_script_reaches_the_caller(sdk: str, tmp_path: Path) -> None:
    """``fit`` raises, and the log holds the one cause, for both hosts."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.py").write_text(
        "import os\n"
        "import mxnet as mx\n"
        "mx.kv.create('dist_sync')\n"
        "if os.environ['SM_CURRENT_HOST'].startswith('algo-2'):\n"
        "    raise ValueError('boom')\n"
        "mx.nd.waitall()\n"
    )
    done = fit(
        sdk,
        *("--hosts", "2", "--source-dir", str(source), "--output", str(tmp_path / "out")),
        check=False,
    )
    assert done.returncode == 1
    assert "RuntimeError: Failed to run" in done.stdout
    causes = re.findall(r"cause: (algo-2-\w+: worker failed: ValueError: boom.*)", done.stdout)
    assert len(causes) == 2, done.stdout
    assert os.listdir(tmp_path / "out")


def test_model_trainer(sdk: str, tmp_path: Path) -> None:
    """The way of SDK 3, by the same class in SDK 2: our entrypoint as a plain command."""
    python = str(ROOT / os.environ.get("SDK_VENV", ".venv-sdk") / "bin/python")
    script = str(EXAMPLE / "model_trainer.py")
    done = run(python, script, "--hosts", "2", "--output", str(tmp_path), timeout=300)
    assert max(map(float, re.findall(r"validation-accuracy=([\d.]+)", done.stdout))) >= 0.9
    assert "holds: model-0000.params model-shapes.json model-symbol.json" in done.stdout
