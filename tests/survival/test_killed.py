"""A job that is killed and started again ends as one that was never interrupted."""

from pathlib import Path

import pytest

from .conftest import Whole
from .runs import FULL, compare, kill, losses, matrix, resumed_at, run

CASES = [
    (kind, kvstore, hosts, optimizer)
    for kind in ("gluon", "module")
    for kvstore, hosts in (("device", 1), ("dist_sync", 1), ("dist_sync", 2))
    for optimizer in ("sgd", "adam", "drifting")
]


@pytest.mark.parametrize(
    "kind, kvstore, hosts, optimizer", matrix(CASES, [("module", "dist_sync", 2, "adam")])
)
def test_in_the_middle_of_an_epoch(
    tmp_path: Path, whole: Whole, kind: str, kvstore: str, hosts: int, optimizer: str
) -> None:
    env = {"KVSTORE": kvstore, "OPTIMIZER": optimizer}
    once = whole(kind, hosts, env)
    total = len(losses(once[0].output))
    cut = kill(tmp_path, kind, hosts, env, total // 2 + 1)
    compare(once, run(tmp_path, kind, hosts, env), 4, cut)


STATES = {
    "multi-precision": {"OPTIMIZER": "half"},
    "scheduler": {"OPTIMIZER": "scheduled"},
    "warm-up": {"OPTIMIZER": "warming"},
    "optimizer on workers": {"OPTIMIZER": "adam", "ON_KVSTORE": "0"},
    "several servers on a host": {"OPTIMIZER": "drifting", "SPLIT": "50"},
}


@pytest.mark.parametrize("where", matrix(list(STATES), ["several servers on a host"]))
def test_wherever_the_optimizer_has_its_state(tmp_path: Path, whole: Whole, where: str) -> None:
    env = {"KVSTORE": "dist_sync", **STATES[where]}
    cut = kill(tmp_path, "gluon", 2, env, 13)
    compare(whole("gluon", 2, env), run(tmp_path, "gluon", 2, env), 4, cut)


LOCAL = {name: state for name, state in STATES.items() if "servers" not in name}


@pytest.mark.skipif(not FULL, reason="a part of the full matrix")
@pytest.mark.parametrize("where", list(LOCAL))
def test_in_one_process(tmp_path: Path, whole: Whole, where: str) -> None:
    env = {"KVSTORE": "device", "DEVICES": "2", **LOCAL[where]}
    cut = kill(tmp_path, "gluon", 1, env, 13)
    compare(whole("gluon", 1, env), run(tmp_path, "gluon", 1, env), 4, cut)


@pytest.mark.parametrize("step", matrix([13, 21, 29], [13]))
def test_while_checkpoints_are_written(tmp_path: Path, whole: Whole, step: int) -> None:
    env = {"KVSTORE": "dist_sync", "OPTIMIZER": "nag", "EVERY": "1", "PAUSE": "0.005"}
    cut = kill(tmp_path, "gluon", 1, env, step)
    compare(whole("gluon", 1, env), run(tmp_path, "gluon", 1, env), 1, cut)


@pytest.mark.skipif(not FULL, reason="a part of the full matrix")
def test_asynchronous_training_resumes(tmp_path: Path) -> None:
    env = {"KVSTORE": "dist_async", "OPTIMIZER": "adam"}
    kill(tmp_path, "gluon", 2, env, 13)
    again = run(tmp_path, "gluon", 2, env)
    step = resumed_at(again[0])
    assert step is not None
    assert all(min(losses(end.output)) == step + 1 for end in again)
