"""Hosts that were given different jobs: all end soon, and the cause says what differs."""

import json
import time
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional

import pytest

from tests.cluster import job
from tests.endings.conftest import Verdicts

SERVER = "sagemaker_parameter_server_enabled"

DIFFERENT: Dict[str, Mapping[str, str]] = {
    "hyperparameters": {"SM_HPS": json.dumps({"epochs": 3})},
    "use of the parameter server": {"SM_FRAMEWORK_PARAMS": json.dumps({SERVER: True})},
    "lists of hosts": {"SM_HOSTS": json.dumps(["algo-1", "algo-2", "algo-3"])},
    "values of job_key": {"SAGEMAKER_MXNET_JOB_KEY": "another"},
    "values of more than one": {
        "SM_HPS": json.dumps({"epochs": 3}),
        "SM_FRAMEWORK_PARAMS": json.dumps({SERVER: True}),
    },
}


def odd(number: int, variables: Mapping[str, str]) -> Callable[[int], Mapping[str, str]]:
    """Return what gives one host other variables than the rest."""
    return lambda host: variables if host == number else {}


@pytest.mark.parametrize("secret", [None, "the secret"], ids=["no-job-key", "job-key"])
@pytest.mark.parametrize("what", DIFFERENT)
def test_one_host_was_given_another_job(
    tmp_path: Path, verdicts: Verdicts, what: str, secret: Optional[str]
) -> None:
    """Without its 15 minutes of join_timeout; the host that agrees hears of it too."""
    hosts = 2 if what == "lists of hosts" else 3
    env = {"TRAINING_JOB_NAME": "a-job"}
    if secret:
        env["SAGEMAKER_MXNET_JOB_KEY"] = secret
    since = time.monotonic()
    per_host = odd(2, DIFFERENT[what])
    with job(tmp_path, "wait_for_ever()", hosts, env=env, per_host=per_host) as cluster:
        cause = (
            r"^algo-2: entrypoint failed: does not agree with algo-1 on the job: they were given "
            f"different {what}"
        )
        ends = verdicts.failed(cluster, since, cause)
    assert "turned 127.0.0.1 away: calls itself algo-2 but was given another job" in ends[0].output


def test_the_first_host_is_the_odd_one(tmp_path: Path, verdicts: Verdicts) -> None:
    """Then every other host disagrees with it, and any of them may be the one that is named."""
    per_host = odd(1, DIFFERENT["hyperparameters"])
    with job(tmp_path, "wait_for_ever()", 2, per_host=per_host) as cluster:
        verdicts.failed(cluster, time.monotonic(), "algo-2: .* different hyperparameters")


def test_a_name_that_is_no_host_name_ends_the_job_at_once(tmp_path: Path) -> None:
    names = ["algo..1", "host-2"]
    env = {"SM_HOSTS": json.dumps(names), "SAGEMAKER_MXNET_HOST_ADDRESSES": "{}"}

    def per_host(number: int) -> Mapping[str, str]:
        return {"SM_CURRENT_HOST": names[number - 1]}

    with job(tmp_path, "wait_for_ever()", 2, env=env, per_host=per_host, absent=[1]) as cluster:
        end = cluster.hosts[0].ended()
    assert end.status == 1
    assert "algo..1" in end.cause, end.cause
    assert "internal error" not in end.output
