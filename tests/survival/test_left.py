"""A script that ends early has not finished, with any exit status."""

import signal
from pathlib import Path

import pytest

from tests.support.jobs import job

from .conftest import Whole
from .runs import matrix, resumed_at, said, start

ENV = {"KVSTORE": "dist_sync", "OPTIMIZER": "adam", "DROPOUT": "0"}


@pytest.mark.parametrize("number", matrix([signal.SIGTERM, signal.SIGINT], [signal.SIGTERM]))
@pytest.mark.parametrize("hosts", [1, 2])
def test_signal_to_the_script_alone_is_survived(
    tmp_path: Path, whole: Whole, hosts: int, number: int
) -> None:
    once = whole("gluon", hosts, ENV)
    with start(tmp_path, "gluon", hosts, ENV) as cluster:
        cluster.wait_for("step 6 ")
        cluster[1].kill("worker", number)
        ends = cluster.ended(120)
    name = signal.Signals(number).name
    for end, other in zip(ends, once):
        assert (end.status, end.success) == (0, True)
        cause = f"algo-1: worker failed: exited early: {name} was sent to the script only"
        assert f"{cause} (exit status {128 + number}); restarting (attempt 2)" in end.output
        assert said("weights", end) == said("weights", other)
    step = resumed_at(ends[0])
    assert step is not None and step >= 6


HANDLER = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
say("ready", ".")
wait_for_ever()
"""


def test_handler_that_exits_with_0_is_no_success(tmp_path: Path) -> None:
    """Without a Checkpoint too: the job was not asked to stop, and the script has not finished."""
    with job(tmp_path, HANDLER) as cluster:
        cluster[1].wait_for(r"^ready \.")
        cluster[1].kill("worker", signal.SIGTERM)
        end = cluster[1].ended()
    assert (end.success, end.status) == (False, 143)
    assert "exited early: SIGTERM was sent to the script" in end.cause
