"""Intermediate output is uploaded completely to a real S3 API, and the upload can be stopped."""

import http.server
import os
import subprocess
import threading
import time

import pytest

from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_training.roles import sync
from tests.support import jobs, s3_api

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
def test_files_are_uploaded_during_and_at_the_end_of_the_job(s3, tmp_path, variable):
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
        assert process.stderr.readline().startswith("[sagemaker-mxnet-training] uploading ")
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


def test_intermediate_files_of_a_short_script_arrive(s3, tmp_path):
    """The directory exists, and is watched, before the script begins."""
    endpoint, client = s3
    body = """
    with open(os.environ["SM_OUTPUT_INTERMEDIATE_DIR"] + "/first.txt", "w") as file:
        file.write("first")
    """
    with jobs.job(
        tmp_path,
        body,
        env={**s3_api.CREDENTIALS, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL_S3": endpoint},
        hyperparameters={"sagemaker_s3_output": "s3://results/short"},
    ) as job:
        (end,) = job.ended()
    assert end.status == 0, end.output
    keys = [each["Key"] for each in client.list_objects_v2(Bucket="results")["Contents"]]
    assert "short/output/intermediate/first.txt" in keys


def test_a_directory_that_the_platform_copies_is_left_alone(tmp_path):
    (tmp_path / "output" / "intermediate").mkdir(parents=True)
    process = start(tmp_path, "s3://results/x")
    output, errors = process.communicate(timeout=BOUND)
    assert (process.returncode, output) == (0, "")
    assert "not uploading to s3://results/x" in errors


def test_a_url_that_is_none_is_an_error_with_the_setting(tmp_path):
    process = start(tmp_path, "ftp://results/x")
    _, errors = process.communicate(timeout=BOUND)
    assert process.returncode == 1
    assert errors.startswith("intermediate output cannot be uploaded to ftp://results/x")
    assert "sagemaker_s3_output" in errors and "Traceback" not in errors


@pytest.fixture
def signatures():
    """The URL of a server that takes every file, and the signatures of the requests to it."""
    found = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            found.append(self.headers["Authorization"])
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", found
    server.shutdown()
    thread.join()
    server.server_close()


def test_job_region_takes_precedence_over_the_environment(tmp_path, signatures):
    """A hyperparameter may say it. Requests are signed for one region, and refused in others."""
    url, found = signatures
    process = start(tmp_path, "s3://results/x", "--region", "eu-west-1", S3_ENDPOINT_URL=url)
    try:
        assert process.stderr.readline().startswith("[sagemaker-mxnet-training] uploading ")
        (tmp_path / "output/intermediate/a.txt").write_text("a")
        wait(lambda: found, "a request")
        assert "/eu-west-1/s3/" in found[0]
        process.communicate(timeout=BOUND)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
