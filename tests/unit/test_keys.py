"""The keys of a job: alike on hosts that were given the same, and telling on others."""

from dataclasses import replace
from typing import Any, Dict, List

import pytest

from sagemaker_mxnet_training.cluster.keys import (
    HOSTS,
    HYPERPARAMETERS,
    PARAMETER_SERVER,
    SECRET,
    SEVERAL,
    JobKeys,
)
from sagemaker_mxnet_training.config.job import Settings
from tests.coordination import job


def shared(one: JobKeys, other: JobKeys) -> List[str]:
    """Return what both have the same key without, in the order in which it is tried."""
    return [part for part in one.without if one.without[part] == other.without.get(part)]


CHANGES: Dict[str, Dict[str, Any]] = {
    HYPERPARAMETERS: {"hyperparameters": {"epochs": 3}},
    PARAMETER_SERVER: {"parameter_server": True},
    HOSTS: {"hosts": ("algo-1", "algo-2", "algo-3")},
    SECRET: {"settings": Settings(job_key="another")},
}


def test_hosts_of_one_job_have_the_same_keys() -> None:
    assert JobKeys.of(job("algo-1")) == JobKeys.of(job("algo-2", peer_timeout=3.0))


@pytest.mark.parametrize("part", CHANGES)
@pytest.mark.parametrize("secret", [None, "the secret"])
def test_the_first_key_that_fits_tells_the_one_part_that_differs(part: str, secret: Any) -> None:
    here = job("algo-1", job_key=secret)
    one, other = JobKeys.of(here), JobKeys.of(replace(here, **CHANGES[part]))
    assert one.full != other.full
    assert shared(one, other)[0] == part


def test_hosts_that_differ_in_more_share_the_last_key_only() -> None:
    here = job("algo-1")
    there = replace(here, hyperparameters={"epochs": 3}, parameter_server=True)
    assert shared(JobKeys.of(here), JobKeys.of(there)) == [SEVERAL]


def test_another_job_shares_nothing() -> None:
    here = job("algo-1", job_key="one for all jobs")
    other = JobKeys.of(replace(here, job_name="another"))
    arn = JobKeys.of(replace(here, environ={"TRAINING_JOB_ARN": "arn:other"}))
    assert shared(JobKeys.of(here), other) == shared(JobKeys.of(here), arn) == []


def test_jobs_without_a_name_share_nothing_only_because_they_have_none() -> None:
    here = replace(job("algo-1"), job_name="")
    there = replace(here, hyperparameters={"epochs": 3}, parameter_server=True)
    assert shared(JobKeys.of(here), JobKeys.of(there)) == []


def test_no_two_keys_are_the_same() -> None:
    for keys in (JobKeys.of(job("algo-1")), JobKeys.of(job("algo-1", job_key="secret"))):
        assert len({keys.full, *keys.without.values()}) == 1 + len(keys.without)


def test_a_key_without_the_secret_does_not_help_to_guess_hyperparameters() -> None:
    """Who listens can test guesses at what a key is made of; a secret in it prevents that."""
    here = job("algo-1", job_key="secret")
    there = replace(here, hyperparameters={"password": "hunter2"})
    assert JobKeys.of(here).without[SECRET] == JobKeys.of(there).without[SECRET]


def test_only_keys_with_a_secret_prove_membership() -> None:
    open_job, closed_job = JobKeys.of(job("algo-1")), JobKeys.of(job("algo-1", job_key="secret"))
    assert not any(open_job.proves_membership(part) for part in open_job.without)
    proofs = {part for part in closed_job.without if closed_job.proves_membership(part)}
    assert proofs == {HYPERPARAMETERS, PARAMETER_SERVER, HOSTS}
