"""Which file a script goes on from, where the supervisors have named one."""

from pathlib import Path

import pytest

from sagemaker_mxnet_training.checkpoints.errors import CheckpointError
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
