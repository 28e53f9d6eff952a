"""Horovod's ranks, and the variables of each worker."""

from typing import List

import pytest

from sagemaker_mxnet_training.config.mpi_options import RANK_VARIABLES
from sagemaker_mxnet_training.host.ranks import Rank, ranks, variables

HOSTS = ("algo-1", "algo-2", "algo-3")


def test_rank_of_the_only_worker() -> None:
    assert ranks(("algo-1",), "algo-1", 1) == (Rank(0, 1, 0, 1, 0, 1),)


def test_ranks_of_one_host() -> None:
    assert ranks(HOSTS, "algo-2", 2) == (Rank(2, 6, 0, 2, 1, 3), Rank(3, 6, 1, 2, 1, 3))


@pytest.mark.parametrize(("count", "per_host"), [(1, 2), (2, 1), (2, 2), (3, 5)])
def test_ranks_are_numbered_host_after_host(count: int, per_host: int) -> None:
    everybody: List[Rank] = []
    for host in HOSTS[:count]:
        everybody += ranks(HOSTS[:count], host, per_host)
    assert [rank.rank for rank in everybody] == list(range(count * per_host))
    assert {rank.size for rank in everybody} == {count * per_host}
    for local in range(per_host):
        cross = [rank.cross_rank for rank in everybody if rank.local_rank == local]
        assert cross == list(range(count))


def test_variables_of_a_worker() -> None:
    (_, last) = ranks(HOSTS, "algo-2", 2)
    assert variables(last, "algo-2") == {
        "HOROVOD_RANK": "3",
        "HOROVOD_SIZE": "6",
        "HOROVOD_LOCAL_RANK": "1",
        "HOROVOD_LOCAL_SIZE": "2",
        "HOROVOD_CROSS_RANK": "1",
        "HOROVOD_CROSS_SIZE": "3",
        "HOROVOD_HOSTNAME": "algo-2",
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_SIZE": "6",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    }


def test_users_cannot_set_these_variables() -> None:
    (rank,) = ranks(("algo-1",), "algo-1", 1)
    assert set(variables(rank, "algo-1", "10.0.0.1", 8000)) == set(RANK_VARIABLES)
