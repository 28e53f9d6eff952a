"""The file from which a script resumes, if the supervisors have chosen one."""

import queue
import sys
from pathlib import Path
from typing import Any, Optional

import pytest

from sagemaker_mxnet_training.checkpoints import resume, storage
from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointError
from sagemaker_mxnet_training.checkpoints.job_environment import read
from sagemaker_mxnet_training.checkpoints.resume import find

NAMED = {"SAGEMAKER_MXNET_RESUME": "checkpoint-000001-step-7.zip"}


def test_a_named_file_has_to_be_there(tmp_path: Path) -> None:
    job = read({**NAMED, "SM_CHECKPOINT_DIR": str(tmp_path)})
    with pytest.raises(
        CheckpointError, match=r"checkpoint-000001-step-7\.zip in .* cannot be used"
    ):
        find(job, lambda: None)


def test_in_a_directory_of_its_own_a_script_chooses_itself(tmp_path: Path) -> None:
    """The supervisors have chosen from another: an earlier job of another script left it there."""
    job = read({**NAMED, "SM_CHECKPOINT_DIR": str(tmp_path / "other")}, str(tmp_path))
    assert find(job, lambda: None) is None


class FakeHorovod:
    """One of two ranks: what rank 0 broadcasts arrives at rank 1."""

    def __init__(self, rank: Optional[int], sent: "queue.Queue[Any]") -> None:
        self._rank = rank
        self._sent = sent

    def rank(self) -> int:
        if self._rank is None:
            raise ValueError("Horovod has not been initialized; use hvd.init().")
        return self._rank

    def broadcast_(self, array: Any, root_rank: int, name: str) -> None:
        if self._rank == root_rank:
            self._sent.put(array.asnumpy())
        else:
            array[:] = self._sent.get(timeout=60)


@pytest.mark.parametrize("written", [True, False])
def test_rank_0_of_horovod_broadcasts_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    pytest.importorskip("mxnet")
    monkeypatch.setattr(resume, "_PIECE", 7)
    members = [("about.json", [b"{}"]), ("weights.params", [b"w" * 50]), ("empty", [b""])]
    if written:
        storage.commit(str(tmp_path), 3, members)
    sent: queue.Queue[Any] = queue.Queue()
    for rank in (0, 1):
        monkeypatch.setitem(sys.modules, "horovod.mxnet", FakeHorovod(rank, sent))
        variables = {"HOROVOD_SIZE": "2", "HOROVOD_RANK": str(rank)}
        directory = tmp_path if rank == 0 else tmp_path / "other"
        reader = find(read(variables, str(directory)), lambda: None)
        assert (reader is not None) == written
        if reader is not None:
            with reader:
                assert reader.name == "checkpoint-000001-step-3.zip"
                assert reader.read("weights.params") == b"w" * 50
                assert reader.read("empty") == b""
    assert sent.empty()


@pytest.mark.parametrize("imported", [True, False])
def test_horovod_has_to_be_initialized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imported: bool
) -> None:
    module = FakeHorovod(None, queue.Queue()) if imported else None
    monkeypatch.setitem(sys.modules, "horovod.mxnet", module)
    job = read({"HOROVOD_SIZE": "2", "HOROVOD_RANK": "0"}, str(tmp_path))
    with pytest.raises(CheckpointError, match=r"call hvd\.init\(\)"):
        find(job, lambda: None)
