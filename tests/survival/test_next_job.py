"""A host is lost and all hosts are started again, as Compose does with ``restart: on-failure:3``.

The job fails on all hosts, and the next one resumes from its checkpoints.
"""

import re
from pathlib import Path

import pytest

from tests.support.jobs import Cluster, eventually, job

from .runs import OnFailure
from .scripts import COUNTED

# The third host comes when the test lets it.
LATE = """
import os, time
while os.environ["SM_CURRENT_HOST"] == "algo-3" and not os.path.exists(os.environ["GATE"]):
    time.sleep(0.05)
from sagemaker_mxnet_cli import command_line
command_line.main(["train"])
"""
STEPS = 100


@pytest.mark.parametrize("number", [1, 2])
def test_next_job_resumes_after_a_lost_host(tmp_path: Path, number: int) -> None:
    """A host is killed before all have joined, and again when the script has trained."""
    gate = tmp_path / "gate"
    env = {"GATE": str(gate), "STEPS": str(STEPS), "SAGEMAKER_MXNET_JOIN_TIMEOUT": "60"}
    with job(tmp_path, COUNTED, 3, env=env, parameter_server=True, command=["-c", LATE]) as cluster:
        policy = OnFailure(cluster, 3)
        cluster[1].wait_for("algo-2 joined")
        cluster.lose(number)
        eventually(
            lambda: policy.apply() or all(count == 1 for count in policy.restarts[:2]),
            "the failure of both hosts",
        )
        gate.touch()
        trained(cluster, policy)
        cluster.lose(number)
        eventually(policy.apply, "success")
        assert policy.restarts == [2, 2, 1], "nobody took the old leader's answer for a new one's"
        for end in cluster.ended():
            assert (end.success, end.failure) == (True, None), end.output
            weights = re.findall(r"^weights ([\d.-]+) ([\d.-]+)$", end.output, re.MULTILINE)
            counted = sum(number % 7 for number in range(STEPS))
            expected = (1 - 0.003 * STEPS, 1 - 0.003 * counted)
            assert [float(text) for text in weights[-1]] == pytest.approx(expected, abs=1e-3)
        # The first host starts at 0 once only: the other time it resumes.
        assert cluster[1].output.count("\nstep 0 ") == 1


def trained(cluster: Cluster, policy: OnFailure) -> None:
    """Wait until all hosts have trained for some steps after a checkpoint."""
    for host in cluster.hosts:
        eventually(
            lambda host=host: policy.apply() or "\nstep 30 " in host.output,  # type: ignore[misc]
            f"training on {host.name}",
        )
