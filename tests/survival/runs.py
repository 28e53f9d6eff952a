"""Runs of jobs that are interrupted, and what an uninterrupted one computes."""

import os
import re
import signal
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from tests.support.jobs import Cluster, Ended, job

from .scripts import SCRIPTS

FULL = os.environ.get("SURVIVAL") == "full"
"""Whether to run the full matrix (12 minutes) or one case of each kind (2 minutes)."""

Env = Mapping[str, str]


def matrix(cases: Sequence[Any], always: Sequence[Any]) -> Sequence[Any]:
    """Return the cases that run: all of them, or those that always do."""
    return cases if FULL else always


def start(path: Path, kind: str, hosts: int, env: Env) -> Any:
    """Start a job: a context manager that gives its cluster."""
    servers = {}
    if "SPLIT" in env:  # keys of more elements than this are split over all servers
        servers = {"sagemaker_mxnet_servers_per_host": 2}
        env = {**env, "MXNET_KVSTORE_BIGARRAY_BOUND": env["SPLIT"]}
    return job(
        path,
        SCRIPTS[kind],
        hosts=hosts,
        parameter_server="dist" in env["KVSTORE"],
        env=env,
        hyperparameters=servers,
    )


def run(path: Path, kind: str, hosts: int, env: Env) -> List[Ended]:
    """Run a job to its end."""
    with start(path, kind, hosts, env) as cluster:
        ends = cluster.ended(120)
    assert [end.status for end in ends] == [0] * hosts, ends[0].output
    return ends


def kill(path: Path, kind: str, hosts: int, env: Env, step: int) -> List[Ended]:
    """Run a job and kill its last host, once a step is done everywhere."""
    with start(path, kind, hosts, env) as cluster:
        cluster.wait_for(rf"step {step} ")
        cluster[hosts].kill("entrypoint")
        ends = cluster.ended(120)
    assert all(end.status != 0 for end in ends)
    return ends


def stop(path: Path, kind: str, hosts: int, env: Env, step: int) -> List[Ended]:
    """Run a job and ask it to stop, once a step is done everywhere."""
    with start(path, kind, hosts, env) as cluster:
        cluster.wait_for(rf"step {step} ")
        ask_to_stop(cluster)
        ends = cluster.ended(60)  # less than stop_grace
    assert "stopping after step" in ends[0].output
    assert (ends[0].status, ends[0].success, ends[0].failure) == (0, False, None)
    return ends


def ask_to_stop(cluster: Cluster) -> None:
    """Send SIGTERM to the first host, as to the others soon after."""
    cluster[1].kill("entrypoint", signal.SIGTERM)


class OnFailure:
    """Starts hosts again that have failed, as Compose does with ``restart: on-failure``.

    Args:
        cluster: the job's.
        limit: how often each host is started again at the most.

    Attributes:
        restarts: how often each host was started again.
    """

    def __init__(self, cluster: Cluster, limit: int) -> None:
        self._cluster = cluster
        self._limit = limit
        self.restarts = [0] * len(cluster.hosts)

    def apply(self) -> bool:
        """Start again what has failed; return whether all hosts have succeeded."""
        for index, host in enumerate(self._cluster.hosts):
            if host.ended_at is not None and host.process.returncode != 0:
                assert self.restarts[index] < self._limit, host.output
                self.restarts[index] += 1
                self._cluster.start_again(index + 1)
        return all(host.process.returncode == 0 for host in self._cluster.hosts)


def losses(output: str) -> Dict[int, str]:
    """Return what was printed for each step."""
    return {int(number): loss for number, loss in re.findall(r"step (\d+) (\S+) \.", output)}


def resumed_at(end: Ended) -> Optional[int]:
    """Return the step from which a run went on, or ``None`` for a fresh start."""
    found = re.search(r"resuming from \S+ step (\d+),", end.output)
    return int(found.group(1)) if found else None


def compare(
    whole: Sequence[Ended],
    again: Sequence[Ended],
    at_least: int,
    cut: Sequence[Ended],
    statistics: bool = True,
) -> None:
    """Compare an interrupted run, and the one that went on, with an uninterrupted one."""
    for one, other in zip(whole, cut):
        before = losses(other.output)
        assert before == {n: loss for n, loss in losses(one.output).items() if n in before}
    step = resumed_at(again[0])
    assert step is not None and step >= at_least, again[0].output
    for one, other in zip(whole, again):
        expected = {n: loss for n, loss in losses(one.output).items() if n > step}
        assert losses(other.output) == expected
        assert said("weights", other) == said("weights", one)
    if statistics:
        assert said("statistics", again[0]) == said("statistics", whole[0])


def said(what: str, end: Ended) -> str:
    found = re.search(rf"{what} (\S+) \.", end.output)
    assert found, end.output
    return found.group(1)
