"""Horovod's requirements on a host: the library, and a name that other hosts can reach."""

import importlib.util
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.config.mpi_options import Horovod
from sagemaker_mxnet_training.host import horovod
from tests.support.fakes import job as make_job

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
    with pytest.raises(horovod.MissingHorovodError, match="--horovod"):
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
    with pytest.raises(horovod.HostNameError, match="the name of this machine, machine") as raised:
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
