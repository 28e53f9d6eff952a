"""A job that is killed and started again ends as one that was never interrupted.

``SURVIVAL=full`` in the environment runs the whole matrix; without it one case of each kind runs,
which takes three minutes on two cores.
"""

import os
import re
import signal
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import pytest

from sagemaker_mxnet_training.checkpoints import catalog
from tests.cluster import Ended, job

from .scripts import SCRIPTS

STEP = r"step (\d+) (\S+) \."


def start(path: Path, kind: str, hosts: int, env: Mapping[str, str]) -> Any:
    distributed = "dist" in env["KVSTORE"]
    servers = {"sagemaker_mxnet_servers_per_host": 2} if "SPLIT" in env else {}
    if "SPLIT" in env:  # keys of more elements than this are split over all servers
        env = {**env, "MXNET_KVSTORE_BIGARRAY_BOUND": env["SPLIT"]}
    return job(
        path,
        SCRIPTS[kind],
        hosts=hosts,
        parameter_server=distributed,
        env=env,
        hyperparameters=servers,
    )


def losses(output: str) -> Dict[int, str]:
    return {int(number): loss for number, loss in re.findall(STEP, output)}


def said(what: str, output: str) -> str:
    found = re.search(rf"{what} (\S+) \.", output)
    assert found, output
    return found.group(1)


def run(path: Path, kind: str, hosts: int, env: Mapping[str, str]) -> List[Ended]:
    with start(path, kind, hosts, env) as cluster:
        ends = cluster.ended(120)
    assert [end.status for end in ends] == [0] * hosts, ends[0].output
    return ends


def run_until(
    path: Path, kind: str, hosts: int, env: Mapping[str, str], step: int, role: str = "worker"
) -> List[Ended]:
    """Run a job and kill a process on its last host, once a step is done everywhere."""
    with start(path, kind, hosts, env) as cluster:
        cluster.wait_for(rf"step {step} ")
        cluster[hosts if role == "worker" else 1].kill(role)
        ends = cluster.ended(120)
    assert all(end.status != 0 for end in ends)
    return ends


def resumed_at(cluster_or_end: Any) -> Optional[int]:
    found = re.search(r"training goes on from \S+ step (\d+),", cluster_or_end.output)
    return int(found.group(1)) if found else None


def compare(
    whole: List[Ended], again: List[Ended], at_least: int, cut: Sequence[Ended] = ()
) -> None:
    """Compare what a run that went on computed with what an uninterrupted run did."""
    for one, other in zip(whole, cut):
        before = losses(other.output)
        assert before == {n: loss for n, loss in losses(one.output).items() if n in before}
    step = resumed_at(again[0])
    assert step is not None and step >= at_least, again[0].output
    for one, other in zip(whole, again):
        expected = {n: loss for n, loss in losses(one.output).items() if n > step}
        assert losses(other.output) == expected
        assert said("weights", other.output) == said("weights", one.output)
    # A Gluon trainer's first step takes the statistics of BatchNorm from rank 0. Which host that is
    # varies, and hosts see other data; a checkpoint holds the statistics of the first host.
    if rank(whole[0]) == rank((cut or whole)[0]):
        assert said("statistics", again[0].output) == said("statistics", whole[0].output)


def rank(end: Ended) -> Optional[str]:
    """Return the rank that a host had in the first step, or ``None`` where it does not matter."""
    found = re.search(r"rank (\d+) \.", end.output)
    return found.group(1) if found else None


FULL = os.environ.get("SURVIVAL") == "full"


def matrix(cases: Sequence[Any], always: Sequence[Any]) -> Sequence[Any]:
    """Return the cases that run: all of them, or those that always do."""
    return cases if FULL else always


CASES = [
    (kind, kvstore, hosts, optimizer)
    for kind in ("gluon", "module")
    for kvstore, hosts in (("device", 1), ("dist_sync", 1), ("dist_sync", 2))
    for optimizer in ("sgd", "adam", "drifting")
]


ALWAYS = [
    ("gluon", "device", 1, "sgd"),
    ("gluon", "dist_sync", 2, "drifting"),
    ("module", "dist_sync", 2, "adam"),
]


@pytest.mark.parametrize("kind, kvstore, hosts, optimizer", matrix(CASES, ALWAYS))
def test_killed_in_the_middle_of_an_epoch(
    tmp_path: Path, kind: str, kvstore: str, hosts: int, optimizer: str
) -> None:
    env = {"KVSTORE": kvstore, "OPTIMIZER": optimizer}
    whole = run(tmp_path / "whole", kind, hosts, env)
    total = len(losses(whole[0].output))
    cut = run_until(tmp_path / "cut", kind, hosts, env, total // 2 + 1)
    again = run(tmp_path / "cut", kind, hosts, env)
    compare(whole, again, 4, cut)


STATES = {
    "multi-precision": {"OPTIMIZER": "half"},
    "scheduler": {"OPTIMIZER": "scheduled"},
    "optimizer on workers": {"OPTIMIZER": "adam", "ON_KVSTORE": "0"},
    "keys split over servers": {"OPTIMIZER": "adam", "SPLIT": "50"},
}


@pytest.mark.parametrize("where", matrix(list(STATES), ["keys split over servers"]))
def test_wherever_the_optimizer_has_its_state(tmp_path: Path, where: str) -> None:
    env = {"KVSTORE": "dist_sync", **STATES[where]}
    whole = run(tmp_path / "whole", "gluon", 2, env)
    cut = run_until(tmp_path / "cut", "gluon", 2, env, 13)
    compare(whole, run(tmp_path / "cut", "gluon", 2, env), 4, cut)


@pytest.mark.parametrize("role", matrix(["server", "scheduler"], ["server"]))
def test_killed_while_checkpoints_are_written(tmp_path: Path, role: str) -> None:
    env = {"KVSTORE": "dist_sync", "OPTIMIZER": "nag", "EVERY": "1", "PAUSE": "0.005"}
    whole = run(tmp_path / "whole", "gluon", 1, env)
    run_until(tmp_path / "cut", "gluon", 1, env, 13, role)
    compare(whole, run(tmp_path / "cut", "gluon", 1, env), 1)


@pytest.mark.parametrize("kind", matrix(["gluon", "module"], ["gluon"]))
def test_a_stop_writes_a_checkpoint_and_the_next_job_goes_on(tmp_path: Path, kind: str) -> None:
    env = {"KVSTORE": "device", "OPTIMIZER": "adam", "EVERY": "1000", "DROPOUT": "0"}
    whole = run(tmp_path / "whole", kind, 1, env)
    with start(tmp_path / "cut", kind, 1, env) as cluster:
        cluster[1].wait_for("step 13 ")
        cluster[1].kill("entrypoint", signal.SIGTERM)
        stopped = cluster.ended()
    assert "stopping after step" in stopped[0].output
    compare(whole, run(tmp_path / "cut", kind, 1, env), 13, stopped)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path: Path) -> None:
    env = {"KVSTORE": "dist_sync", "OPTIMIZER": "sgd"}
    whole = run(tmp_path / "whole", "gluon", 2, env)
    cut = run_until(tmp_path / "cut", "gluon", 2, env, 18)
    directory = tmp_path / "cut" / "algo-1" / "checkpoints"
    older, newest = catalog.listing(str(directory))
    content = bytearray((directory / newest.name).read_bytes())
    content[len(content) // 2] ^= 1
    (directory / newest.name).write_bytes(content)
    again = run(tmp_path / "cut", "gluon", 2, env)
    assert f"{newest.name} is damaged and not used" in again[0].output
    compare(whole, again, 4, cut)
    assert resumed_at(again[0]) == older.step


@pytest.mark.skipif(not FULL, reason="a part of the full matrix")
def test_more_epochs_go_on_where_fewer_ended(tmp_path: Path) -> None:
    env = {"KVSTORE": "dist_sync", "OPTIMIZER": "adam"}
    whole = run(tmp_path / "whole", "module", 1, {**env, "EPOCHS": "2"})
    run(tmp_path / "cut", "module", 1, {**env, "EPOCHS": "1"})
    compare(whole, run(tmp_path / "cut", "module", 1, {**env, "EPOCHS": "2"}), 16)


@pytest.mark.skipif(not FULL, reason="a part of the full matrix")
def test_dist_async_goes_on(tmp_path: Path) -> None:
    env = {"KVSTORE": "dist_async", "OPTIMIZER": "adam"}
    run_until(tmp_path, "gluon", 2, env, 13)
    again = run(tmp_path, "gluon", 2, env)
    step = resumed_at(again[0])
    assert step is not None
    assert all(min(losses(end.output)) == step + 1 for end in again)


def test_none_starts_afresh(tmp_path: Path) -> None:
    env = {"KVSTORE": "device", "OPTIMIZER": "sgd", "EPOCHS": "1"}
    run(tmp_path, "gluon", 1, env)
    again = run(tmp_path, "gluon", 1, {**env, "SAGEMAKER_MXNET_RESUME": "none"})
    assert resumed_at(again[0]) is None
    assert min(losses(again[0].output)) == 1


def test_the_named_one_is_taken_or_its_damage_ends_the_job(tmp_path: Path) -> None:
    env = {"KVSTORE": "device", "OPTIMIZER": "sgd", "EPOCHS": "1"}
    run(tmp_path, "gluon", 1, env)
    directory = tmp_path / "algo-1" / "checkpoints"
    older, newest = catalog.listing(str(directory))
    again = run(tmp_path, "gluon", 1, {**env, "SAGEMAKER_MXNET_RESUME": older.name})
    assert resumed_at(again[0]) == older.step
    (directory / newest.name).write_bytes(b"")
    with start(tmp_path, "gluon", 1, {**env, "SAGEMAKER_MXNET_RESUME": newest.name}) as cluster:
        end = cluster[1].ended()
    assert "CheckpointError" in end.cause and newest.name in end.cause


def test_other_servers_are_refused(tmp_path: Path) -> None:
    env = {"OPTIMIZER": "sgd", "EPOCHS": "1"}
    run(tmp_path, "gluon", 1, {**env, "KVSTORE": "dist_sync"})
    with start(tmp_path, "gluon", 1, {**env, "KVSTORE": "device"}) as cluster:
        end = cluster[1].ended()
    assert "holds the optimizer of 1 servers" in end.cause
