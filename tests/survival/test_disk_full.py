"""A checkpoint that cannot be written is a warning, and a failure if it is the first or last."""

import re
import subprocess
from pathlib import Path
from typing import Iterator, List

import pytest

from sagemaker_mxnet_training.checkpoints import catalog
from tests.endings.conftest import needs_root

from .runs import ask_to_stop, losses, start

ENV = {"KVSTORE": "dist_sync", "OPTIMIZER": "adam", "EVERY": "2", "PAUSE": "0.05"}

WARNING = r"the checkpoint of step \d+ cannot be written: .*No space left on device"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give the directory of the first host's checkpoints, on a small disk."""
    disk = tmp_path / "algo-1" / "checkpoints"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk; return the file that does."""
    file = disk / "ballast"
    with pytest.raises(OSError), open(file, "wb", buffering=0) as full:
        while True:
            full.write(bytes(4096))
    return file


def steps(disk: Path) -> List[int]:
    return [entry.step for entry in catalog.listing(str(disk))]


@needs_root
def test_training_continues_until_there_is_space(tmp_path: Path, disk: Path) -> None:
    with start(tmp_path, "gluon", 1, ENV) as cluster:
        cluster[1].wait_for("step 5 ")
        ballast = fill(disk)
        cluster[1].wait_for(WARNING)
        ballast.unlink()
        end = cluster[1].ended()
    assert (end.status, end.success) == (0, True)
    assert list(losses(end.output)) == list(range(1, 49))
    assert steps(disk) == [46, 48]


@needs_root
def test_disk_full_from_the_start_fails_immediately(tmp_path: Path, disk: Path) -> None:
    fill(disk)
    with start(tmp_path, "gluon", 1, {**ENV, "EPOCHS": "1"}) as cluster:
        end = cluster[1].ended()
    assert "checkpoints cannot be written to " in end.cause
    assert "No space left on device" in end.cause
    assert (losses(end.output), steps(disk)) == ({}, [])
    assert "restarting (attempt 2)" not in end.output
    assert "next:  free disk space for checkpoints on algo-1" in end.output


@needs_root
def test_the_last_one_is_a_failure_and_nothing_is_repeated(tmp_path: Path, disk: Path) -> None:
    with start(tmp_path, "gluon", 1, {**ENV, "EPOCHS": "1"}) as cluster:
        cluster[1].wait_for("step 5 ")
        fill(disk)
        end = cluster[1].ended()
    assert "the last checkpoint cannot be written: " in end.cause
    assert "No space left on device" in end.cause
    assert len(re.findall(r"step 16 \S+ \.$", end.output, re.MULTILINE)) == 1
    assert "restarting (attempt 2)" not in end.output


@needs_root
@pytest.mark.parametrize("hosts", [1, 2])
def test_that_of_a_stop_is_a_failure(tmp_path: Path, disk: Path, hosts: int) -> None:
    with start(tmp_path, "gluon", hosts, {**ENV, "PAUSE": "0.2"}) as cluster:
        cluster.wait_for("step 5 ")
        fill(disk)
        ask_to_stop(cluster)
        ends = cluster.ended()
    assert "stopping after step" in ends[0].output
    for end in ends:
        assert "algo-1: worker failed: " in end.cause
        assert "the last checkpoint cannot be written: " in end.cause
        assert end.status == 1
