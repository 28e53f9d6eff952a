"""Intermediate output arrives on a real S3 API, all of it, and the copying ends when told."""

import os
import subprocess
import textwrap
import time

import pytest

from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_training.roles import sync
from tests import s3_api

BOUND = 60.0


@pytest.fixture(scope="module")
def s3():
    """The endpoint of a real S3 API with an empty bucket, and a client of it."""
    with s3_api.serve("results") as server:
        yield server


def start(tmp_path, output, *arguments, **variables):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environ.update(s3_api.CREDENTIALS, AWS_REGION="us-east-1", **variables)
    environ.update(SAGEMAKER_BASE_DIR=str(tmp_path), TRAINING_JOB_NAME="job-1")
    return subprocess.Popen(
        program.argv(sync.__name__, "--output", output, *arguments),
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(condition, what):
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {BOUND} s"
        time.sleep(0.05)


@pytest.mark.parametrize("variable", ["S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_files_arrive_while_the_job_runs_and_the_last_ones_before_the_end(s3, tmp_path, variable):
    endpoint, client = s3
    prefix = variable.lower()
    directory = tmp_path / "output" / "intermediate"

    def stored(name):
        key = f"{prefix}/job-1/output/intermediate/{name}"
        listed = client.list_objects_v2(Bucket="results", Prefix=key).get("Contents", [])
        if not listed:
            return None
        return client.get_object(Bucket="results", Key=key)["Body"].read()

    process = start(tmp_path, f"s3://results/{prefix}", **{variable: endpoint})
    try:
        assert process.stderr.readline().startswith("[sagemaker-mxnet-training] copying ")
        (directory / "early.txt").write_text("early")
        wait(lambda: stored("early.txt") == b"early", "the copy of a file")
        assert process.poll() is None
        (directory / "late.txt").write_text("late")
        process.stdin.close()
        assert process.wait(BOUND) == 0
        assert stored("late.txt") == b"late"
    finally:
        process.kill()
        process.stderr.close()
        process.stdout.close()
        process.wait()


def test_a_directory_that_the_platform_copies_is_left_alone(tmp_path):
    (tmp_path / "output" / "intermediate").mkdir(parents=True)
    process = start(tmp_path, "s3://results/x")
    output, errors = process.communicate(timeout=BOUND)
    assert (process.returncode, output) == (0, "")
    assert "nothing to copy to s3://results/x" in errors


def test_a_url_that_is_none_is_an_error_with_the_setting(tmp_path):
    process = start(tmp_path, "ftp://results/x")
    _, errors = process.communicate(timeout=BOUND)
    assert process.returncode == 1
    assert errors.startswith("intermediate output cannot be copied to ftp://results/x")
    assert "sagemaker_s3_output" in errors and "Traceback" not in errors


def test_the_region_of_the_job_takes_precedence_over_that_of_the_environment(tmp_path):
    """Two regions have two endpoints; the copier is asked for the one that it would call."""
    code = """
        import os
        from sagemaker_training import intermediate_output

        def start_sync(output, region, endpoint):
            print("region", region, flush=True)

        intermediate_output.start_sync = start_sync
        """
    (tmp_path / "usercustomize.py").write_text(textwrap.dedent(code))
    variables = {"AWS_REGION": "us-east-1", "PYTHONPATH": str(tmp_path)}
    process = start(tmp_path, "s3://results/x", "--region", "eu-west-1", **variables)
    output, errors = process.communicate(timeout=BOUND)
    assert process.returncode == 0, errors
    assert "region eu-west-1" in output
