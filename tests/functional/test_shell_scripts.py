"""Shell scripts: wrong arguments, and tools that fail with exit status 0."""

import os
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, path: str = "") -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    streams = subprocess.PIPE
    return subprocess.run(
        words,
        cwd=ROOT,
        env=environ,
        stdout=streams,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["scripts/compose.sh", "--host=3"], "--host=3"),
        (["scripts/compose.sh", "3"], "3"),
        (["scripts/lock-image.sh", "--check"], "--check"),
        (["scripts/base-image.sh", "--forced"], "--forced"),
        (["scripts/base-image.sh", "one", "two"], "two"),
        (["scripts/audit.sh", "--services"], "--services"),
        (["scripts/install.sh", "--pythn"], "--pythn"),
        (["scripts/release.sh", "--dry"], "--dry"),
        (["examples/custom-image/run.sh", "--tag=mine"], "--tag=mine"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unknown_argument_is_an_error(words: List[str], told: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert f"unknown argument: {told}" in done.stdout


def program(directory: Path, name: str, text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)


@pytest.mark.parametrize(
    ("succeeded", "status", "told"),
    [
        ("algo-1 algo-2", 1, "no output/success of algo-3 in"),
        ("algo-1 algo-2 algo-3", 0, "trained on 3 hosts"),
    ],
)
def test_compose_judges_by_the_success_files(
    tmp_path: Path, succeeded: str, status: int, told: str
) -> None:
    """Compose 1 ends with status 0 after what it could not do, too."""
    program(tmp_path / "bin", "docker", '[ "$1" != compose ]')
    output = "$RUN_DIR/$host/output"
    made = f"for host in {succeeded}; do mkdir {output}; touch {output}/success; done"
    program(tmp_path / "bin", "docker-compose", f'case "$*" in *" up "*) {made} ;; esac')
    words = ("--hosts=3", f"--run-dir={tmp_path}/run")
    done = run("scripts/compose.sh", *words, path=str(tmp_path / "bin"))
    assert told in done.stdout
    assert done.returncode == status


def test_environment_with_a_copied_checkout_becomes_editable(tmp_path: Path) -> None:
    """``pip install .`` makes a copy, and the quickstart would go on with old code."""
    stamp = '$("$PYTHON" --version) test $(cat setup.py pyproject.toml | cksum)'
    make = f'. scripts/venv.sh; echo "{stamp}" > "$1/.stamp"; make_venv "$1" test'
    program(tmp_path / "venv/bin", "pip", f'echo "$@" >> {tmp_path}/asked')
    for place, asked in (("src", False), ("lib", True)):
        program(
            tmp_path / "venv/bin",
            "python",
            f"echo {ROOT}/{place}/sagemaker_mxnet_toolkit/__init__.py",
        )
        done = run(
            "env", f"PYTHON={sys.executable}", "bash", "-c", make, "bash", str(tmp_path / "venv")
        )
        assert done.returncode == 0, done.stdout
        assert (tmp_path / "asked").exists() == asked
        assert ("has a copy of this checkout" in done.stdout) == asked
    assert "-e ." in (tmp_path / "asked").read_text()
