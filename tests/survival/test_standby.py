"""Processes that wait for another attempt become its roles, and compute what others compute."""

from pathlib import Path

import pytest

from .conftest import Whole
from .runs import losses, matrix, said, start

ENV = {
    "KVSTORE": "dist_sync",
    "OPTIMIZER": "drifting",  # defined in the script, so that servers must find it there
    "SAGEMAKER_MXNET_STANDBY": "on",
}


@pytest.mark.parametrize("role", matrix(["worker", "server", "scheduler"], ["server"]))
@pytest.mark.parametrize("hosts", matrix([1, 2], [2]))
def test_they_become_the_roles_of_the_next_attempt(
    tmp_path: Path, whole: Whole, hosts: int, role: str
) -> None:
    once = whole("gluon", hosts, {**ENV, "SAGEMAKER_MXNET_STANDBY": "off"})
    with start(tmp_path, "gluon", hosts, ENV) as cluster:
        cluster.wait_for(r"processes for another attempt wait")
        cluster.wait_for(r"step 13 ")
        cluster[1].kill(role)
        ends = cluster.ended(120)
    assert [end.status for end in ends] == [0] * hosts, ends[0].output
    assert "server: started" in ends[0].output
    assert ", which has imported MXNet)" in ends[0].output
    for one, other in zip(once, ends):
        assert losses(other.output) == losses(one.output)
        assert said("weights", other) == said("weights", one)
