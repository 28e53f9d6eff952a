"""A job that is killed and started again ends as one that was never interrupted."""

import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import pytest

from tests.cluster import Ended, job

from .scripts import SCRIPTS

STEP = r"step (\d+) (\S+) \."


def start(path: Path, kind: str, hosts: int, env: Mapping[str, str]) -> Any:
    distributed = "dist" in env["KVSTORE"]
    return job(path, SCRIPTS[kind], hosts=hosts, parameter_server=distributed, env=env)


def losses(output: str) -> Dict[int, str]:
    return {int(number): loss for number, loss in re.findall(STEP, output)}


def weights(output: str) -> str:
    found = re.search(r"weights (\S+) \.", output)
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
        assert weights(other.output) == weights(one.output)


CASES = [
    (kind, kvstore, hosts, optimizer)
    for kind in ("gluon", "module")
    for kvstore, hosts in (("device", 1), ("dist_sync", 1), ("dist_sync", 2))
    for optimizer in ("sgd", "adam", "drifting")
]


@pytest.mark.parametrize("kind, kvstore, hosts, optimizer", CASES)
def test_killed_in_the_middle_of_an_epoch(
    tmp_path: Path, kind: str, kvstore: str, hosts: int, optimizer: str
) -> None:
    env = {"KVSTORE": kvstore, "OPTIMIZER": optimizer}
    whole = run(tmp_path / "whole", kind, hosts, env)
    total = len(losses(whole[0].output))
    cut = run_until(tmp_path / "cut", kind, hosts, env, total // 2 + 1)
    again = run(tmp_path / "cut", kind, hosts, env)
    compare(whole, again, 4, cut)
