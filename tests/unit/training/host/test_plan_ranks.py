"""The plan of a job that trains with Horovod."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagemaker_mxnet_toolkit.code.preparation import EntryPointKind
from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_training.cluster.events import Rendezvous, Start
from sagemaker_mxnet_training.config.configuration import resolve
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import plan
from tests.support.fakes import checked

PEERS = {"algo-2": "10.0.0.2"}
START = Start(1, "", Rendezvous("10.0.0.1", 8000, "10.0.0.1", listener=7, peers=PEERS))
SCRIPT = EntryPointKind.PYTHON_SCRIPT


def make(tmp_path: Path, host: str = "algo-1", processes: int = 2, **variables: Any) -> Job:
    (tmp_path / "code").mkdir(exist_ok=True)
    (tmp_path / "code" / "train.py").touch()
    framework = {
        "sagemaker_mpi_enabled": True,
        "sagemaker_mpi_num_of_processes_per_host": processes,
        **variables.pop("framework", {}),
    }
    environ = {
        "SAGEMAKER_BASE_DIR": str(tmp_path),
        "SM_USER_ENTRY_POINT": "train.py",
        "SM_HOSTS": '["algo-2", "algo-1"]',
        "SM_CURRENT_HOST": host,
        "SM_FRAMEWORK_PARAMS": json.dumps(framework),
        **variables,
    }
    return checked(resolve(environ))


@pytest.mark.parametrize(
    ("host", "names"),
    [("algo-1", ["rendezvous", "rank-0", "rank-1"]), ("algo-2", ["rank-2", "rank-3"])],
)
def test_only_the_first_host_has_the_rendezvous(tmp_path: Path, host: str, names: Any) -> None:
    specs = plan.roles(make(tmp_path, host), SCRIPT, START)
    assert [spec.name for spec in specs] == names
    assert [spec.rank for spec in specs if spec.role is Role.WORKER] == [
        int(name[-1]) for name in names if name.startswith("rank-")
    ]


def test_rendezvous_serves_the_hosts_of_the_job(tmp_path: Path) -> None:
    (store, *_) = plan.roles(make(tmp_path), SCRIPT, START)
    assert store.argv[-4:] == ("--fd", "7", "--allow", "10.0.0.1,10.0.0.2,127.0.0.1")
    assert store.inherited == (7,)


def test_worker_knows_its_place(tmp_path: Path) -> None:
    (*_, last) = plan.roles(make(tmp_path, "algo-2"), SCRIPT, START)
    expected = {
        "HOROVOD_RANK": "3",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": "8000",
        "HOROVOD_CONTROLLER": "gloo",
    }
    assert {name: last.environment[name] for name in expected} == expected
    assert not [name for name in last.environment if name.startswith("DMLC_")]


def test_the_only_worker_is_a_worker_like_any_other(tmp_path: Path) -> None:
    job = make(tmp_path, processes=1, SM_HOSTS='["algo-1"]')
    (spec,) = plan.roles(job, SCRIPT, Start(1))
    assert (spec.name, spec.rank) == ("worker", None)
    assert spec.environment["HOROVOD_SIZE"] == "1"
    assert "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in spec.environment


@pytest.mark.parametrize(("processes", "threads"), [(1, None), (2, "4"), (4, "2"), (16, "1")])
def test_cpus_are_divided_among_workers(tmp_path: Path, processes: int, threads: Any) -> None:
    job = replace(make(tmp_path, "algo-2", processes), num_cpus=16, visible_cpus=16)
    for spec in plan.roles(job, SCRIPT, START):
        assert spec.environment.get("OMP_NUM_THREADS") == threads
        assert spec.environment["SM_NUM_CPUS"] == "16"


def test_options_of_mpirun_reach_workers(tmp_path: Path) -> None:
    line = "-x HOROVOD_FUSION_THRESHOLD=1 -x HOROVOD_GLOO_TIMEOUT_SECONDS=60"
    job = make(tmp_path, framework={"sagemaker_mpi_custom_mpi_options": line})
    for spec in plan.roles(job, SCRIPT, START)[1:]:
        assert spec.environment["HOROVOD_FUSION_THRESHOLD"] == "1"
        assert spec.environment["HOROVOD_GLOO_TIMEOUT_SECONDS"] == "60"


def test_output_of_each_worker_goes_where_local_reads_it(tmp_path: Path) -> None:
    job = make(tmp_path, "algo-2", SAGEMAKER_MXNET_RANK_OUTPUT="5,6,7,8")
    first, second = plan.roles(job, SCRIPT, START)
    assert (first.output, second.output) == ((5, 6), (7, 8))
    assert "SAGEMAKER_MXNET_RANK_OUTPUT" not in first.environment


def test_hosts_of_other_instance_groups_train_alone(tmp_path: Path) -> None:
    resources = {
        "current_host": "algo-1",
        "hosts": ["algo-1", "algo-2", "algo-3"],
        "instance_groups": [
            {"instance_group_name": "data", "instance_type": "a", "hosts": ["algo-1"]},
            {"instance_group_name": "train", "instance_type": "a", "hosts": ["algo-2", "algo-3"]},
        ],
    }
    variables = {
        "SM_RESOURCE_CONFIG": json.dumps(resources),
        "SM_HOSTS": json.dumps(resources["hosts"]),
        "framework": {"sagemaker_distribution_instance_groups": ["train"]},
    }
    specs = plan.roles(make(tmp_path, "algo-1", **variables), SCRIPT, START)
    assert [spec.name for spec in specs] == ["rendezvous", "worker"]
    assert "HOROVOD_RANK" not in specs[1].environment
    specs = plan.roles(make(tmp_path, "algo-3", **variables), SCRIPT, START)
    assert [spec.name for spec in specs] == ["rank-2", "rank-3"]
