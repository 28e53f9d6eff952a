"""The tutorial: every command of the page is run, in order, from an empty directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import free_port

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")


@pytest.mark.timeout(600)  # a dozen programs that import MXNet
def test_tutorial_commands_work(tmp_path):
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    for language, text in blocks:
        name = FILE.match(text)
        if language == "python" and name:
            (tmp_path / name[1]).write_text(text)
    commands = "".join(text for language, text in blocks if language == "sh")
    port = free_port()
    script = "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
    script += commands.replace("localhost:8080", f"localhost:{port}")
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SAGEMAKER_BIND_TO_PORT": str(port),
    }
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for expected, times in [
        ("job SUCCEEDED after", 4),  # three runs, one of which is reported on
        ("step 200, epoch 5", 1),
        ("exit status 2\n", 1),
        ("expected 2; expected one list of numbers of shape (rows, 2)", 1),
        ('["inside","outside"]', 1),
        ("['inside', 'outside']", 1),
    ]:
        assert done.stdout.count(expected) >= times, (expected, done.stdout)
    assert (tmp_path / "circle.onnx").exists()
    assert (tmp_path / "runs/two/report.html").exists()


def test_tutorial_script_resumes_when_no_epoch_is_left(tmp_path):
    """A job that is stopped between its last checkpoint and its model still gets the model."""
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    (tmp_path / "train.py").write_text(
        next(text for _, text in blocks if text.startswith("# train.py\n"))
    )
    command = [sys.executable, "-m", "sagemaker_mxnet_training", "local", "--run-dir", "run"]
    for resume in ([], ["--resume"]):
        done = subprocess.run(
            [*command, *resume, "train.py", "--epochs", "1"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (
            "algo-1/model (model-0000.params, model-shapes.json, model-symbol.json)" in done.stdout
        )
    assert "step 40, epoch 1, batch 0" in done.stdout + done.stderr
