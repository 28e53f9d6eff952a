"""The plan: which processes a host gets, with which arguments and environment."""

import importlib
import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from sagemaker_mxnet_toolkit.code.preparation import EntryPointKind
from sagemaker_mxnet_toolkit.failure import Role
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_training.cluster.events import Rendezvous, Start
from sagemaker_mxnet_training.config.configuration import resolve
from sagemaker_mxnet_training.config.job import Job
from sagemaker_mxnet_training.host import plan
from tests.support.fakes import checked

MEETING = Rendezvous("10.0.0.1", 8000, "10.0.0.7")
SHARED, ALONE = Start(1, "", MEETING), Start(1)


def make(tmp_path: Path, host: str = "algo-1", **variables: str) -> Job:
    (tmp_path / "code").mkdir(exist_ok=True)
    (tmp_path / "code" / "train.py").touch()
    environ = {
        "SAGEMAKER_BASE_DIR": str(tmp_path),
        "SM_USER_ENTRY_POINT": "train.py",
        "SM_HOSTS": '["algo-2", "algo-1"]',
        "SM_CURRENT_HOST": host,
        "SM_HPS": '{"epochs": 3, "_ps_verbose": 2}',
        **variables,
    }
    return checked(resolve(environ))


@pytest.mark.parametrize(
    ("host", "names"),
    [("algo-1", ["scheduler", "server", "worker"]), ("algo-2", ["server", "worker"])],
)
def test_only_the_first_host_has_a_scheduler(tmp_path: Path, host: str, names: list) -> None:
    specs = plan.roles(make(tmp_path, host), EntryPointKind.PYTHON_SCRIPT, SHARED)
    assert [spec.name for spec in specs] == names
    assert [spec.role.value for spec in specs] == names


def test_without_a_meeting_there_is_a_worker_alone(tmp_path: Path) -> None:
    job = make(tmp_path)
    (spec,) = plan.roles(job, EntryPointKind.PYTHON_SCRIPT, ALONE)
    assert spec.role is Role.WORKER
    assert not [name for name in spec.environment if name.startswith(("DMLC_", "PS_"))]


def test_every_role_knows_its_place(tmp_path: Path) -> None:
    """The variables by which ps-lite finds its way, all of them given."""
    job = make(tmp_path, PORT="80")
    for spec in plan.roles(job, EntryPointKind.PYTHON_SCRIPT, SHARED):
        kvstore = {
            name: text
            for name, text in spec.environment.items()
            if name.startswith(("DMLC_", "PS_")) or name == "PORT"
        }
        assert kvstore == {
            "DMLC_ROLE": spec.name,
            "DMLC_NUM_WORKER": "2",
            "DMLC_NUM_SERVER": "2",
            "DMLC_PS_ROOT_URI": "10.0.0.1",
            "DMLC_PS_ROOT_PORT": "8000",
            "DMLC_NODE_HOST": "0xa000007",
            "PS_VERBOSE": "2",
        }
        assert spec.environment["SM_CURRENT_HOST"] == "algo-1"
        assert spec.environment["SAGEMAKER_BASE_DIR"] == str(tmp_path)


@pytest.mark.parametrize("count", [2, 3, 12])
def test_node_addresses_sort_as_the_hosts_do(tmp_path: Path, count: int) -> None:
    """ps-lite gives rank 0 to the largest text; the addresses themselves say nothing about it."""
    hosts = [f"algo-{number}" for number in range(1, count + 1)]
    texts = {}
    for number, host in enumerate(hosts):
        job = make(tmp_path, host, SM_HOSTS=json.dumps(hosts))
        address = f"10.0.{number * 97 % 256}.{number}"
        start = Start(1, "", replace(MEETING, own_address=address))
        *_, worker = plan.roles(job, EntryPointKind.PYTHON_SCRIPT, start)
        texts[host] = worker.environment["DMLC_NODE_HOST"]
        assert socket.inet_ntoa(socket.inet_aton(texts[host])) == address
    assert sorted(texts, key=lambda host: texts[host], reverse=True) == sorted(hosts)


def test_more_servers_on_each_host(tmp_path: Path) -> None:
    """The number comes from the first host, since ps-lite counts all of them."""
    job = make(tmp_path, SAGEMAKER_MXNET_SERVERS_PER_HOST="5")
    specs = plan.roles(
        job, EntryPointKind.PYTHON_SCRIPT, Start(1, "", replace(MEETING, servers_per_host=3))
    )
    names = ["scheduler", "server", "server-2", "server-3", "worker"]
    assert [spec.name for spec in specs] == names
    assert {spec.environment["DMLC_NUM_SERVER"] for spec in specs} == {"6"}
    assert {spec.environment["DMLC_NUM_WORKER"] for spec in specs} == {"2"}


RESOURCES = {
    "current_host": "algo-2",
    "hosts": ["algo-1", "algo-2", "algo-3"],
    "instance_groups": [
        {"instance_group_name": "data", "instance_type": "ml.c5.xlarge", "hosts": ["algo-1"]},
        {
            "instance_group_name": "train",
            "instance_type": "ml.p3.2xlarge",
            "hosts": ["algo-3", "algo-2"],
        },
    ],
}


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("algo-1", ["scheduler", "worker"]),
        ("algo-2", ["server", "worker"]),
        ("algo-3", ["server", "worker"]),
    ],
)
def test_kvstore_covers_the_distribution_groups(tmp_path: Path, host: str, names: list) -> None:
    """The others run the script without it; the scheduler stays with the first host."""
    job = make(
        tmp_path,
        host,
        SM_RESOURCE_CONFIG=json.dumps(RESOURCES),
        SM_HOSTS=json.dumps(RESOURCES["hosts"]),
        SM_FRAMEWORK_PARAMS=json.dumps(
            {
                "sagemaker_parameter_server_enabled": True,
                "sagemaker_distribution_instance_groups": ["train"],
            }
        ),
    )
    assert job.distributed_hosts == ("algo-2", "algo-3")
    specs = plan.roles(job, EntryPointKind.PYTHON_SCRIPT, SHARED)
    assert [spec.name for spec in specs] == names
    counted = {spec.name: spec.environment.get("DMLC_NUM_WORKER") for spec in specs}
    alone = {"worker": None} if host == "algo-1" else {}
    assert counted == {**dict.fromkeys(names, "2"), **alone}
    told = {spec.environment.get("SAGEMAKER_MXNET_NO_CHECKPOINTS", "") for spec in specs}
    assert all("first host, algo-1, which is not in" in text for text in told)


def test_only_the_worker_sees_gpus(tmp_path: Path) -> None:
    job = make(tmp_path, CUDA_VISIBLE_DEVICES="0,1")
    seen = {
        spec.name: spec.environment["CUDA_VISIBLE_DEVICES"]
        for spec in plan.roles(job, EntryPointKind.PYTHON_SCRIPT, SHARED)
    }
    assert seen == {"scheduler": "", "server": "", "worker": "0,1"}


@pytest.mark.parametrize(
    ("kind", "entry_point", "argv"),
    [
        (EntryPointKind.PYTHON_SCRIPT, "pkg/train.py", ["script", "pkg/train.py"]),
        (EntryPointKind.PYTHON_PACKAGE, "pkg/train.py", ["module", "pkg.train"]),
        (EntryPointKind.PYTHON_PACKAGE, "train", ["module", "train"]),
    ],
)
def test_python_workers(tmp_path: Path, kind: EntryPointKind, entry_point: str, argv: list) -> None:
    (tmp_path / "code" / "pkg").mkdir(parents=True)
    (tmp_path / "code" / "pkg" / "train.py").touch()
    (tmp_path / "code" / "train").touch()
    job = make(tmp_path, SM_USER_ENTRY_POINT=entry_point, SM_HPS='{"n": "a b"}')
    (spec,) = plan.roles(job, kind, ALONE)
    bootstrap = program.argv("sagemaker_mxnet_training.roles.bootstrap")
    assert spec.argv == (*bootstrap, *argv, "-n", "a b")
    assert spec.directory == job.code_dir


def test_shell_worker_keeps_arguments_out_of_the_shells_program(tmp_path: Path) -> None:
    job = make(tmp_path, SM_HPS='{"word": "$(rm -r /)"}')
    (spec,) = plan.roles(job, EntryPointKind.COMMAND, ALONE)
    assert spec.argv[:2] == ("/bin/sh", "-c")
    assert spec.argv[2] == 'exec "$0" "$@"'
    assert spec.argv[3:] == ("./train.py", "--word", "$(rm -r /)")


@pytest.mark.parametrize(("given", "added"), [(None, ""), ("", ""), ("/a:/b", ":/a:/b")])
def test_the_workers_children_find_the_users_modules(
    tmp_path: Path, given: str, added: str
) -> None:
    job = make(tmp_path, **({} if given is None else {"PYTHONPATH": given}))
    (spec,) = plan.roles(job, EntryPointKind.PYTHON_SCRIPT, ALONE)
    assert spec.environment["PYTHONPATH"] == job.code_dir + added


def test_relative_entries_of_pythonpath_become_absolute(tmp_path: Path) -> None:
    """An empty entry means the process's own working directory."""
    job = make(tmp_path, PYTHONPATH="src::/b")
    wanted = f"{os.path.abspath('src')}::/b"
    assert plan.fetch(job).environment["PYTHONPATH"] == wanted
    assert (
        plan.worker(job, EntryPointKind.COMMAND, plan.fetch(job).environment)
        .environment["PYTHONPATH"]
        .endswith(wanted)
    )


def test_preparation_runs_programs_of_this_distribution(tmp_path: Path) -> None:
    """By the path of one file, so that it does not matter from where."""
    job = make(tmp_path, SM_FRAMEWORK_PARAMS='{"sagemaker_s3_output": "s3://bucket/job"}')
    for spec, role in (
        (plan.fetch(job), Role.FETCH),
        (plan.install(job), Role.INSTALL),
        (plan.sync(job), Role.SYNC),
    ):
        assert spec.role is role
        assert spec.argv[:3] == program.argv("")[:3]
        assert os.path.isabs(spec.argv[2])
        assert os.path.isfile(spec.argv[2])
        assert callable(importlib.import_module(spec.argv[3]).main)
        assert "DMLC_ROLE" not in spec.environment
    assert plan.sync(job).stdin_open, "it ends when its stdin is closed"
    assert not plan.fetch(job).stdin_open


@pytest.mark.parametrize("region", [None, "eu-west-1"])
def test_what_talks_to_s3_uses_the_region_of_the_job(tmp_path: Path, region: str) -> None:
    """It may come from a hyperparameter, which no library of AWS knows."""
    framework = {"sagemaker_s3_output": "s3://bucket/job", "sagemaker_region": region}
    job = make(tmp_path, SM_FRAMEWORK_PARAMS=json.dumps(framework))
    job = replace(job, region=region)
    for spec in (plan.fetch(job), plan.sync(job)):
        words = list(spec.argv)
        named = words[words.index("--region") + 1] if "--region" in words else None
        assert named == region


def test_the_kvstore_waits_before_it_imports_anything(tmp_path: Path) -> None:
    for spec in plan.roles(make(tmp_path), EntryPointKind.PYTHON_SCRIPT, SHARED):
        assert spec.stdin_open is (program.WAIT in spec.argv) is (spec.role is not Role.WORKER)


def test_what_is_between_entrypoints_stays_there(tmp_path: Path) -> None:
    secret = {"SAGEMAKER_MXNET_JOB_KEY": "swordfish-1", "SAGEMAKER_MXNET_CONTROL_FD": "0"}
    job = make(tmp_path, **secret)
    specs = [plan.fetch(job), *plan.roles(job, EntryPointKind.PYTHON_SCRIPT, SHARED)]
    for spec in specs:
        assert not set(secret) & set(spec.environment)
        assert "swordfish-1" not in repr(spec)


def test_threads_follow_the_quota_of_the_host(tmp_path: Path) -> None:
    """MXNet alone would start half as many threads as the machine has CPUs."""
    job = replace(make(tmp_path), num_cpus=4, visible_cpus=64)
    for meeting in (None, MEETING):
        for spec in plan.roles(job, EntryPointKind.PYTHON_SCRIPT, Start(1, "", meeting)):
            assert spec.environment["OMP_NUM_THREADS"] == "4"
            assert spec.environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_threads_are_not_limited_on_a_host_with_all_cpus(tmp_path: Path) -> None:
    job = replace(make(tmp_path), num_cpus=8, visible_cpus=8)
    (alone,) = plan.roles(job, EntryPointKind.PYTHON_SCRIPT, ALONE)
    assert not [name for name in alone.environment if name.startswith("OMP_")]
    for spec in plan.roles(job, EntryPointKind.PYTHON_SCRIPT, SHARED):
        assert "OMP_NUM_THREADS" not in spec.environment
        assert spec.environment["OMP_WAIT_POLICY"] == "PASSIVE", "worker and server share CPUs"


def test_what_the_user_has_tuned_stays(tmp_path: Path) -> None:
    given = {
        "OMP_NUM_THREADS": "7",
        "OMP_WAIT_POLICY": "ACTIVE",
        "MALLOC_ARENA_MAX": "4",
        "MALLOC_MMAP_MAX_": "9",
        "MALLOC_TRIM_THRESHOLD_": "4096",
        "GLIBC_TUNABLES": "glibc.malloc.arena_max=2",
    }
    job = replace(make(tmp_path, **given), num_cpus=1, visible_cpus=64)
    for spec in plan.roles(job, EntryPointKind.PYTHON_SCRIPT, SHARED):
        assert {name: spec.environment[name] for name in given} == given


@pytest.mark.parametrize(("cpus", "gpus", "wanted"), [(2, 4, "2"), (8, 4, None), (2, 1, None)])
def test_only_the_worker_adds_up_gradients_of_gpus(
    tmp_path: Path, cpus: int, gpus: int, wanted: str
) -> None:
    job = replace(make(tmp_path), num_cpus=cpus, visible_cpus=8, num_gpus=gpus)
    specs = plan.roles(job, EntryPointKind.PYTHON_SCRIPT, SHARED)
    seen = [spec.environment.get("MXNET_KVSTORE_REDUCTION_NTHREADS") for spec in specs]
    assert seen == [None, None, wanted]


def test_servers_keep_their_buffers_and_workers_do_not(tmp_path: Path) -> None:
    """A script returns memory to the kernel as usual, and the scheduler uses very little."""
    tuned = ("MALLOC_", "GLIBC_")
    alone = plan.roles(make(tmp_path), EntryPointKind.PYTHON_SCRIPT, ALONE)
    seen = [
        [name for name in sorted(spec.environment) if name.startswith(tuned)]
        for spec in (*plan.roles(make(tmp_path), EntryPointKind.PYTHON_SCRIPT, SHARED), *alone)
    ]
    worker = ["GLIBC_TUNABLES"]
    servers = [*worker, "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"]
    assert seen == [[], servers, worker, worker]


def test_every_role_is_told_the_attempt_and_what_it_goes_on_from(tmp_path: Path) -> None:
    start = Start(3, "checkpoint-000001-step-7.zip", MEETING)
    for spec in plan.roles(make(tmp_path), EntryPointKind.PYTHON_SCRIPT, start):
        assert spec.environment["SAGEMAKER_MXNET_RESTART_COUNT"] == "2"
        assert spec.environment["SAGEMAKER_MXNET_RESUME"] == "checkpoint-000001-step-7.zip"
    for spec in plan.roles(make(tmp_path), EntryPointKind.PYTHON_SCRIPT, SHARED):
        assert spec.environment["SAGEMAKER_MXNET_RESTART_COUNT"] == "0"
        assert "SAGEMAKER_MXNET_RESUME" not in spec.environment
