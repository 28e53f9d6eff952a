"""Horovod on a host: ranks and variables, the library, and a name that other hosts can reach."""

import importlib.util
import json
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.config.mpi_options import RANK_VARIABLES, Horovod
from sagemaker_mxnet_training.host import horovod
from sagemaker_mxnet_training.host.horovod import Rank, rank_variables, ranks
from tests.support.fakes import job as make_job

HOSTS = ("algo-1", "algo-2", "algo-3")
ADDRESSES = {"algo-1": "10.0.0.1", "algo-2": "10.0.0.2"}


@pytest.fixture(name="names")
def _names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Dict[str, str]]:
    """The names that resolve; this machine is called ``machine``, and Horovod is installed."""
    names: Dict[str, str] = {}
    library = tmp_path / "horovod" / "mxnet" / "mpi_lib.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (tmp_path / "horovod" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    # A module with tests of the real one may have imported it.
    monkeypatch.delitem(sys.modules, "horovod", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "machine")
    monkeypatch.setattr(horovod, "_resolved", names.get)
    monkeypatch.setattr(horovod, "PRELOADED", str(tmp_path / "resourceconfig.json"))
    yield names


def job(addresses: Dict[str, str], hosts: int = 2, **others: Any) -> Job:
    given = make_job("algo-1", hosts, host_addresses=addresses)
    return replace(given, horovod=Horovod(2), **others)


def test_library_is_found(names: Dict[str, str], tmp_path: Path) -> None:
    assert horovod.library() == str(tmp_path / "horovod" / "mxnet" / "mpi_lib.so")


def test_horovod_without_mxnet_is_missing(names: Dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "horovod" / "mxnet" / "mpi_lib.so").unlink()
    with pytest.raises(horovod.HorovodError, match="--horovod"):
        horovod.prepare(job({}))


def test_name_that_resolves_needs_nothing(names: Dict[str, str]) -> None:
    names["machine"] = "10.0.0.1"
    assert horovod.prepare(job({})) == {}


def test_loopback_address_is_enough_where_all_hosts_are_here(names: Dict[str, str]) -> None:
    names["machine"] = "127.0.1.1"
    assert horovod.prepare(job({}, hosts=1)) == {}
    assert horovod.prepare(job(dict.fromkeys(ADDRESSES, "127.0.0.1"))) == {}


def test_only_worker_needs_no_name(names: Dict[str, str]) -> None:
    assert horovod.prepare(replace(job({}, hosts=1), horovod=Horovod(1))) == {}


@pytest.mark.parametrize("address", ["127.0.1.1", ""])
def test_name_that_nobody_else_can_use(names: Dict[str, str], address: str) -> None:
    if address:
        names["machine"] = address
    with pytest.raises(horovod.HorovodError, match="the name of this machine, machine") as raised:
        horovod.prepare(job(ADDRESSES))
    assert (address or "does not resolve") in str(raised.value)
    assert "/etc/hosts" in str(raised.value)


def test_name_of_sagemaker_takes_its_place(names: Dict[str, str], tmp_path: Path) -> None:
    """With the library that comes with sagemaker-training, as AWS's toolkit does."""
    (tmp_path / "resourceconfig.json").write_text(json.dumps({"current_host": "algo-1"}))
    names.update({"machine": "127.0.1.1", "algo-1": "10.0.0.1"})
    shim = importlib.util.find_spec("gethostname")
    assert shim is not None
    assert horovod.prepare(job({})) == {"LD_PRELOAD": shim.origin}
    environ = {"LD_PRELOAD": "/lib/other.so"}
    assert horovod.prepare(job({}, environ=environ)) == {
        "LD_PRELOAD": f"{shim.origin}:/lib/other.so"
    }


def test_nccl_uses_the_interface_of_the_job(names: Dict[str, str]) -> None:
    names["machine"] = "10.0.0.1"
    assert horovod.prepare(job({}, num_gpus=2, network_interface="lo")) == {
        "NCCL_SOCKET_IFNAME": "lo"
    }
    assert horovod.prepare(job({}, num_gpus=2, network_interface="absent")) == {}
    given = {"NCCL_SOCKET_IFNAME": "eth1"}
    assert horovod.prepare(job({}, num_gpus=2, network_interface="lo", environ=given)) == {}


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
    assert rank_variables(last, "algo-2") == {
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


def test_users_cannot_set_the_variables_of_a_rank() -> None:
    (rank,) = ranks(("algo-1",), "algo-1", 1)
    assert set(rank_variables(rank, "algo-1", "10.0.0.1", 8000)) == set(RANK_VARIABLES)
