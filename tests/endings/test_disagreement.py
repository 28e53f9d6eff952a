"""Hosts with different jobs: all end soon, and the cause names the difference."""

import json
import time
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional

import pytest

from tests.endings.conftest import Verdicts
from tests.support.jobs import job

SERVER = "sagemaker_parameter_server_enabled"

DIFFERENT: Dict[str, Mapping[str, str]] = {
    "hyperparameters": {"SM_HPS": json.dumps({"epochs": 3})},
    "use of the parameter server": {"SM_FRAMEWORK_PARAMS": json.dumps({SERVER: True})},
    "lists of hosts": {"SM_HOSTS": json.dumps(["algo-1", "algo-2", "algo-3"])},
    "hyperparameters and use of the parameter server": {
        "SM_HPS": json.dumps({"epochs": 3}),
        "SM_FRAMEWORK_PARAMS": json.dumps({SERVER: True}),
    },
}


def odd(number: int, variables: Mapping[str, str]) -> Callable[[int], Mapping[str, str]]:
    """Return what gives one host other variables than the rest."""
    return lambda host: variables if host == number else {}


@pytest.mark.parametrize("secret", [None, "the secret"], ids=["no-job-key", "job-key"])
@pytest.mark.parametrize("what", DIFFERENT)
def test_one_host_runs_another_job(
    tmp_path: Path, verdicts: Verdicts, what: str, secret: Optional[str]
) -> None:
    """It does not wait for join_timeout; the host that agrees is notified too."""
    hosts = 2 if what == "lists of hosts" else 3
    env = {"TRAINING_JOB_NAME": "a-job"}
    if secret:
        env["SAGEMAKER_MXNET_JOB_KEY"] = secret
    since = time.monotonic()
    per_host = odd(2, DIFFERENT[what])
    with job(tmp_path, "wait_for_ever()", hosts, env=env, per_host=per_host) as cluster:
        cause = (
            r"^algo-2: entrypoint failed: does not agree with algo-1 on the job: they have "
            f"different {what}"
        )
        ends = verdicts.failed(cluster, since, cause)
    assert "rejected connection from 127.0.0.1: algo-2 does not agree with algo-1" in ends[0].output


def test_host_with_another_job_key_is_kept_out(tmp_path: Path) -> None:
    """It cannot prove that it belongs to the job, so it does not end it before ``join_timeout``."""
    env = {"SAGEMAKER_MXNET_JOIN_TIMEOUT": "3", "SAGEMAKER_MXNET_JOB_KEY": "the secret"}
    per_host = odd(2, {"SAGEMAKER_MXNET_JOB_KEY": "another"})
    with job(tmp_path, "wait_for_ever()", 2, env=env, per_host=per_host) as cluster:
        first, second = cluster.ended()
    assert (
        "algo-2 did not join within 3 s (rejected connection from 127.0.0.1: claims to be"
        in first.cause
    )
    assert "failed to authenticate with this job's key" in first.cause
    assert "could not be joined within 3 s" in second.cause
    assert "the job keys differ" in second.cause


def test_the_first_host_is_the_odd_one(tmp_path: Path, verdicts: Verdicts) -> None:
    """Then every other host disagrees with it, and any of them may be the one that is named."""
    per_host = odd(1, DIFFERENT["hyperparameters"])
    with job(tmp_path, "wait_for_ever()", 2, per_host=per_host) as cluster:
        verdicts.failed(cluster, time.monotonic(), "algo-2: .* different hyperparameters")


def test_invalid_host_name_ends_the_job_immediately(tmp_path: Path) -> None:
    names = ["algo..1", "host-2"]
    env = {"SM_HOSTS": json.dumps(names), "SAGEMAKER_MXNET_HOST_ADDRESSES": "{}"}

    def per_host(number: int) -> Mapping[str, str]:
        return {"SM_CURRENT_HOST": names[number - 1]}

    with job(tmp_path, "wait_for_ever()", 2, env=env, per_host=per_host, absent=[1]) as cluster:
        end = cluster.hosts[0].ended()
    assert end.status == 1
    assert "algo..1" in end.cause, end.cause
    assert "internal error" not in end.output
