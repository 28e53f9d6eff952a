"""The choice of a checkpoint by the supervisor of the first host."""

import hashlib
import io
import os
import selectors
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, List

import pytest

from sagemaker_mxnet_toolkit.settings.variables import RESUME
from sagemaker_mxnet_training.checkpoints import checkpoint_file, job_environment, resume
from sagemaker_mxnet_training.host.checkpoint_choice import CheckpointChoice
from tests.support.fakes import FakeLog, job


class Choice:
    """Checkpoints of steps 1, 2 and 3 in a directory, and what is chosen of them."""

    def __init__(self, directory: Path, variables: Any) -> None:
        self.directory = directory
        self.log = FakeLog()
        self.selector = selectors.DefaultSelector()
        described = replace(job("algo-1"), checkpoint_dir=str(directory), environ=variables)
        self.choice = CheckpointChoice(described, self.log, self.selector)
        self.chosen: List[str] = []
        for step in (1, 2, 3):
            self.write(step)

    def write(self, step: int) -> str:
        buffer = io.BytesIO()
        checkpoint_file.write(buffer, [("about.json", [b"{}"])])
        name = f"checkpoint-{step:06d}-step-{step}.zip"
        (self.directory / name).write_bytes(buffer.getvalue())
        return name

    def choose(self) -> str:
        self.choice.choose(self.chosen.append)
        for key, mask in self.selector.select(0 if self.chosen else 10):
            key.data(mask)
        return self.chosen.pop()


Make = Callable[..., Choice]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda **variables: Choice(tmp_path, variables)


def test_the_newest_whole_one(make: Make) -> None:
    choice = make()
    (choice.directory / "checkpoint-000003-step-3.zip").write_bytes(b"")
    assert choice.choose() == "checkpoint-000002-step-2.zip"
    assert any("skipping damaged checkpoint-000003-step-3.zip" in line for line in choice.log.lines)
    assert not any("starting afresh" in line for line in choice.log.lines)


def test_none_is_whole(make: Make) -> None:
    choice = make()
    for path in choice.directory.iterdir():
        path.write_bytes(b"")
    assert choice.choose() == ""
    assert choice.log.lines[-1] == "there is no other checkpoint; starting afresh"


def test_checkpoint_is_hashed_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the supervisor that chooses it; the script of the same host takes its word."""
    hashed: List[int] = []

    class Counting:
        def __init__(self) -> None:
            self._digest = hashlib.sha256()

        def update(self, content: bytes) -> None:
            hashed.append(len(content))
            self._digest.update(content)

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    choice = make()
    monkeypatch.setattr(checkpoint_file, "hashlib", SimpleNamespace(sha256=Counting))
    name = choice.choose()
    environ = {RESUME: name, "SM_CHECKPOINT_DIR": str(choice.directory)}
    for variables, expected in ((choice.choice.variables, [2]), ({}, [2, 2])):
        source = resume.find(job_environment.read({**environ, **variables}), lambda: None)
        assert source is not None
        assert source.read("about.json") == b"{}"
        assert hashed == expected


@pytest.mark.parametrize("told", ["none", "checkpoint-000001-step-1.zip"])
def test_requested_checkpoint_is_used_until_the_job_writes_one(make: Make, told: str) -> None:
    choice = make(SAGEMAKER_MXNET_RESUME=told)
    assert choice.choose() == told
    choice.choice.on_event({"event": "checkpointing", "directory": str(choice.directory)})
    assert choice.choose() == told
    for step in (4, 5):
        choice.choice.on_event({"event": "checkpoint", "file": choice.write(step)})
    assert choice.choose() == "checkpoint-000005-step-5.zip"
    for name in ("checkpoint-000005-step-5.zip", "checkpoint-000004-step-4.zip"):
        (choice.directory / name).write_bytes(b"")
    assert choice.choose() == told, "not the newest of an earlier job"


def test_the_directory_of_the_script(make: Make, tmp_path: Path) -> None:
    choice = make()
    other = tmp_path / "other"
    choice.choice.on_event({"event": "checkpointing", "directory": str(other)})
    assert choice.choose() == ""
    other.mkdir()
    os.link(tmp_path / "checkpoint-000002-step-2.zip", other / "checkpoint-000002-step-2.zip")
    assert choice.choose() == "checkpoint-000002-step-2.zip"
