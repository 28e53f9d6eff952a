"""The environment variables of the checkpoint helper."""

import pytest

from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointError
from sagemaker_mxnet_training.checkpoints.job_environment import read

JOB = {"SM_HOSTS": '["b", "a"]', "SM_CURRENT_HOST": "b", "SAGEMAKER_BASE_DIR": "/base"}


def test_a_job() -> None:
    job = read({**JOB, "DMLC_NODE_HOST": "0x00a000002", "DMLC_NUM_SERVER": "4"})
    assert (job.directory, job.workers, job.rank) == ("/base/checkpoints", 2, 1)
    assert not job.is_first and not job.horovod
    assert (job.resume, job.address, job.servers) == (None, "10.0.0.2", 4)


def test_rank_of_horovod_is_the_workers() -> None:
    first = {**JOB, "SM_CURRENT_HOST": "a", "HOROVOD_RANK": "1", "HOROVOD_SIZE": "4"}
    job = read(first)
    assert (job.workers, job.rank, job.is_first, job.horovod) == (4, 1, False, True)
    alone = read({**first, "HOROVOD_RANK": "0", "HOROVOD_SIZE": "1"})
    assert (alone.workers, alone.rank, alone.horovod) == (2, 0, False)


def test_outside_a_job_this_host_is_the_first() -> None:
    job = read({})
    assert (job.directory, job.workers, job.is_first) == ("/opt/ml/checkpoints", 1, True)


def test_a_directory_is_the_argument_or_the_variable() -> None:
    environ = {**JOB, "SM_CHECKPOINT_DIR": "/variable"}
    assert (read(environ).directory, read(environ).elsewhere) == ("/variable", False)
    given = read(environ, "/argument")
    assert (given.directory, given.elsewhere) == ("/argument", True)
    assert not read(environ, "/variable/").elsewhere


def test_job_without_one_explains_why() -> None:
    with pytest.raises(CheckpointError, match="algo-1 cannot write"):
        read({**JOB, "SAGEMAKER_MXNET_NO_CHECKPOINTS": "algo-1 cannot write"})


@pytest.mark.parametrize("hosts", ["", "[1", '["c"]', "7"])
def test_hosts_without_this_one_are_rejected(hosts: str) -> None:
    if hosts:
        with pytest.raises(ValueError, match="SM_HOSTS: expected a JSON list"):
            read({**JOB, "SM_HOSTS": hosts})
    else:
        assert read({**JOB, "SM_HOSTS": hosts}).workers == 1


@pytest.mark.parametrize("resume", ["../other.zip", "/etc/passwd"])
def test_a_path_is_no_file_name(resume: str) -> None:
    with pytest.raises(ValueError, match="SAGEMAKER_MXNET_RESUME: expected a file name"):
        read({**JOB, "SAGEMAKER_MXNET_RESUME": resume})
