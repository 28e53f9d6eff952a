"""Jobs whose processes and hosts are killed at random, for ``SURVIVAL_MINUTES``.

A host that is lost fails the job. All hosts are started again then, as Compose does with a restart
policy, and the next job resumes from the checkpoints.

``SURVIVAL_SEED`` repeats the choices of a run, though not the moments at which they are made.
"""

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Optional, Set, Tuple

import pytest

from sagemaker_mxnet_training.checkpoints import catalog
from tests.support.jobs import Cluster, Host, job

from .conftest import Whole
from .runs import OnFailure, losses
from .scripts import SCRIPTS

MINUTES = float(os.environ.get("SURVIVAL_MINUTES", "0"))
BETWEEN = 20.0
"""Seconds between two kills, on average."""

ENV = {"KVSTORE": "dist_sync", "OPTIMIZER": "adam", "EPOCHS": "60", "EVERY": "8"}
ALLOWED = {"SAGEMAKER_MXNET_MAX_RESTARTS": "1000"}
ROLES = ("worker", "server", "scheduler", "entrypoint")
Victim = Tuple[int, str]


class Killer:
    """Kills processes at random while a job runs.

    The same failure twice without a checkpoint in between ends a job, as it should: nobody is
    killed again before there is one.

    Args:
        cluster: the job's.
        chance: whom, and when.
    """

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self.cluster = cluster
        self.chance = chance
        self.killed = 0
        self._policy = OnFailure(cluster, 1000)
        self._spared: Set[Victim] = set()
        self._starts = 0
        self._newest: Optional[str] = None
        self._seen = 0.0

    def run(self) -> None:
        """Continue until a job has succeeded."""
        due = self._next()
        while not self._policy.apply():
            self._look()
            if time.monotonic() >= due:
                due = self._next()
                self._kill()
            time.sleep(0.05)

    def _next(self) -> float:
        return time.monotonic() + self.chance.expovariate(1 / BETWEEN)

    def _look(self) -> None:
        """Spare nobody any more, once a checkpoint of a new attempt has been there for a second."""
        if len(self._pids(self.cluster[1], "worker")) <= self._starts:
            return
        names = [each.name for each in catalog.listing(str(self.cluster[1].base / "checkpoints"))]
        newest = names[-1] if names else ""
        if self._newest is None:
            self._newest, self._seen = newest, 0.0
        elif newest != self._newest and not self._seen:
            self._seen = time.monotonic()
        elif self._seen and time.monotonic() >= self._seen + 1.0:
            self._spared.clear()

    def _kill(self) -> None:
        ending = any("\nstate {" in host.output for host in self.cluster.hosts)
        victims = [
            (number, role)
            for number in (1, 2)
            for role in ROLES
            if (number, role) not in self._spared
            and (number == 1 or role != "scheduler")
            and not (role == "entrypoint" and ending)
        ]
        if not victims:
            return
        number, role = victim = self.chance.choice(victims)
        host = self.cluster[number]
        if role == "entrypoint":
            self.cluster.lose(number)
        else:
            pids = self._pids(host, role)
            try:
                os.kill(pids[-1], signal.SIGKILL)
            except (IndexError, ProcessLookupError):
                return
        self._starts, self._newest = len(self._pids(self.cluster[1], "worker")), None
        self._spared.add(victim)
        self.killed += 1

    def _pids(self, host: Host, role: str) -> Tuple[int, ...]:
        found = re.findall(rf"{host.name} {role}: started \(process (\d+)", host.output)
        return tuple(map(int, found))


@pytest.mark.skipif(not MINUTES, reason="runs for as long as SURVIVAL_MINUTES says")
@pytest.mark.timeout(60 * MINUTES + 1200)
def test_loop(tmp_path: Path, whole: Whole) -> None:
    seed = int(os.environ.get("SURVIVAL_SEED", time.time()))
    chance = random.Random(seed)
    expected = whole("gluon", 2, {**ENV, "PAUSE": "0"})
    until, jobs, kills = time.monotonic() + 60 * MINUTES, 0, 0
    while time.monotonic() < until:
        env = {**ENV, **ALLOWED, "PAUSE": "0.1"}
        path = tmp_path / str(jobs)
        with job(path, SCRIPTS["gluon"], 2, parameter_server=True, env=env) as cluster:
            killer = Killer(cluster, chance)
            killer.run()
            ends = cluster.ended(120)
        jobs, kills = jobs + 1, kills + killer.killed
        print(f"seed {seed}: {jobs} jobs, {kills} kills", flush=True)
        for one, other in zip(expected, ends):
            assert (other.status, other.success, other.failure) == (0, True, None), other.output
            assert losses(other.output) == losses(one.output)
            weights = re.findall(r"^weights (\S+) \.$", one.output, re.MULTILINE)
            assert re.findall(r"^weights (\S+) \.$", other.output, re.MULTILINE)[-1:] == weights
