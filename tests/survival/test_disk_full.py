"""A checkpoint that cannot be written is a warning, and a failure if it is the last one."""

import os
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from sagemaker_mxnet_training.checkpoints import catalog
from tests.endings.conftest import needs_root

from .runs import ask_to_stop, losses, start

ENV = {"KVSTORE": "dist_sync", "OPTIMIZER": "adam", "EVERY": "2", "PAUSE": "0.05"}

WARNING = r"the checkpoint of step \d+ is not written: .*No space left on device"


@pytest.fixture
def ballast(tmp_path: Path) -> Iterator[Path]:
    """Fill the disk of the first host's checkpoints; give the file that fills it."""
    disk = tmp_path / "algo-1" / "checkpoints"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        file = disk / "ballast"
        with pytest.raises(OSError), open(file, "wb", buffering=0) as full:
            while True:
                full.write(bytes(4096))
        yield file
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def checkpoints(ballast: Path) -> int:
    return len(catalog.listing(str(ballast.parent)))


@needs_root
def test_training_goes_on_until_there_is_space(tmp_path: Path, ballast: Path) -> None:
    with start(tmp_path, "gluon", 1, ENV) as cluster:
        cluster[1].wait_for(WARNING)
        assert os.listdir(ballast.parent) == [ballast.name]
        ballast.unlink()
        end = cluster[1].ended()
    assert (end.status, end.success) == (0, True)
    assert list(losses(end.output)) == list(range(1, 49))
    assert checkpoints(ballast) == 2


@needs_root
def test_the_last_one_is_a_failure(tmp_path: Path, ballast: Path) -> None:
    with start(tmp_path, "gluon", 1, {**ENV, "EPOCHS": "1"}) as cluster:
        end = cluster[1].ended()
    assert "the last checkpoint is not written: " in end.cause
    assert "No space left on device" in end.cause
    assert list(losses(end.output)) == list(range(1, 17))
    assert checkpoints(ballast) == 0


@needs_root
@pytest.mark.parametrize("hosts", [1, 2])
def test_that_of_a_stop_is_a_failure(tmp_path: Path, ballast: Path, hosts: int) -> None:
    with start(tmp_path, "gluon", hosts, {**ENV, "PAUSE": "0.2"}) as cluster:
        cluster.wait_for("step 5 ")
        ask_to_stop(cluster)
        ends = cluster.ended()
    assert "stopping after step" in ends[0].output
    for end in ends:
        assert "algo-1: worker failed: " in end.cause
        assert "the last checkpoint is not written: " in end.cause
        assert end.status == 1
