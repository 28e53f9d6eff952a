"""The checkpoint from which a job resumes."""

import shutil
from pathlib import Path
from typing import List

import pytest

from sagemaker_mxnet_training.checkpoints import catalog
from tests.support.jobs import Ended

from .conftest import Whole
from .runs import compare, kill, losses, matrix, resumed_at, run, start

ENV = {"KVSTORE": "device", "OPTIMIZER": "sgd", "EPOCHS": "1", "PAUSE": "0"}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the directory of a job that has ended and left two checkpoints."""
    path = tmp_path_factory.mktemp("ended")
    run(path, "gluon", 1, ENV)
    return path


@pytest.fixture
def path(tmp_path: Path, ended: Path) -> Path:
    """Give a copy of that directory."""
    return Path(shutil.copytree(ended, tmp_path / "run"))


def listed(path: Path) -> List[catalog.Entry]:
    return catalog.listing(str(path / "algo-1" / "checkpoints"))


def again(path: Path, resume: str) -> Ended:
    return run(path, "gluon", 1, {**ENV, "SAGEMAKER_MXNET_RESUME": resume})[0]


def test_none_starts_afresh(path: Path) -> None:
    end = again(path, "none")
    assert resumed_at(end) is None
    assert min(losses(end.output)) == 1


def test_the_named_one_is_taken(path: Path) -> None:
    older, newest = listed(path)
    assert older.step < newest.step
    assert resumed_at(again(path, older.name)) == older.step


def test_damage_of_the_named_one_ends_the_job(path: Path) -> None:
    newest = listed(path)[-1].name
    (path / "algo-1" / "checkpoints" / newest).write_bytes(b"")
    env = {**ENV, "SAGEMAKER_MXNET_RESUME": newest, "SAGEMAKER_MXNET_MAX_RESTARTS": "0"}
    with start(path, "gluon", 1, env) as cluster:
        end = cluster[1].ended()
    assert "CheckpointError" in end.cause and newest in end.cause


def test_checkpoint_of_other_servers_is_rejected(path: Path) -> None:
    with start(path, "gluon", 1, {**ENV, "KVSTORE": "dist_sync"}) as cluster:
        end = cluster[1].ended()
    assert "contains the optimizer of 0 servers" in end.cause


@pytest.mark.parametrize("hosts", matrix([1, 2], [2]))
def test_a_damaged_one_is_named_and_the_one_before_it_taken(
    tmp_path: Path, whole: Whole, hosts: int
) -> None:
    env = {"KVSTORE": "dist_sync", "OPTIMIZER": "adam"}
    cut = kill(tmp_path, "module", hosts, env, 18)
    older, newest = listed(tmp_path)
    damaged = tmp_path / "algo-1" / "checkpoints" / newest.name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    ends = run(tmp_path, "module", hosts, env)
    assert f"skipping damaged {newest.name}: " in ends[0].output
    compare(whole("module", hosts, env), ends, 4, cut)
    assert resumed_at(ends[0]) == older.step
