"""The fetch as the program that the supervisor starts, and from a real S3 API."""

import gzip
import io
import json
import os
import socket
import subprocess
import tarfile

import pytest

from sagemaker_mxnet_toolkit.code import fetch
from sagemaker_mxnet_toolkit.processes import program
from sagemaker_mxnet_toolkit.settings.variables import REPORT_FD
from tests.support import s3_api

BOUND = 60.0


def archive(path):
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("train.py")
        info.size = 8
        tar.addfile(info, io.BytesIO(b"print(1)"))
    return str(path)


def command(source, tmp_path):
    arguments = ("--source", source, "--code-dir", str(tmp_path / "code"), "--setting", "CODE")
    return program.argv(fetch.__name__, *arguments)


def run(source, tmp_path, **variables):
    """Run the program; return its status, its report (or None) and its output."""
    reader, writer = os.pipe()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environ.update(variables)
    environ["SAGEMAKER_BASE_DIR"] = str(tmp_path)
    environ[REPORT_FD] = str(writer)
    try:
        done = subprocess.run(
            command(source, tmp_path),
            check=False,
            env=environ,
            pass_fds=(writer,),
            capture_output=True,
            text=True,
            timeout=BOUND,
        )
    finally:
        os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()
    assert len(lines) <= 1
    return done.returncode, json.loads(lines[0]) if lines else None, done.stdout + done.stderr


def test_a_local_archive_is_fetched_without_anything_of_aws(tmp_path):
    """With network isolation nothing may try to reach AWS: boto3 is not even imported."""
    poison = tmp_path / "poison"
    poison.mkdir()
    for name in ("boto3", "botocore", "sagemaker_training"):
        (poison / f"{name}.py").write_text("raise SystemExit('imported')")
    path = os.pathsep.join([str(poison), os.environ.get("PYTHONPATH", "")])
    source = archive(tmp_path / "sourcedir.tar.gz")
    assert run(source, tmp_path, PYTHONPATH=path) == (0, None, "")
    assert (tmp_path / "code/train.py").read_text() == "print(1)"


def test_failure_is_reported_once_without_traceback(tmp_path):
    source = str(tmp_path / "sourcedir.tar.gz")
    with open(source, "wb") as file:
        file.write(gzip.compress(b"no archive" * 100))
    status, report, output = run(source, tmp_path)
    assert status == 1
    assert report["event"] == "failed"
    assert report["reason"].startswith(f"the source archive {source} is corrupt or truncated")
    assert report["detail"] == ""
    assert "Traceback" not in output
    assert os.listdir(tmp_path / "code") == []


def test_failure_is_printed_without_a_listener(tmp_path):
    done = subprocess.run(
        command("/gone", tmp_path),
        check=False,
        capture_output=True,
        text=True,
        timeout=BOUND,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("the code at /gone does not exist; expected a directory")


def test_a_code_directory_that_cannot_be_made_is_an_error(tmp_path):
    """A file is in its place: no permission of anybody, root included, helps against that."""
    (tmp_path / "code").write_text("a file")
    status, report, _ = run(archive(tmp_path / "sourcedir.tar.gz"), tmp_path)
    assert status == 1
    assert "File exists" in report["reason"] and str(tmp_path / "code") in report["reason"]
    assert "writable code directory" in report["reason"]


def test_a_disk_that_is_full_leaves_no_half_code(tmp_path):
    """A limit on the size of files stands for the full disk; the error is another, the path not."""
    source = tmp_path / "sourcedir.tar.gz"
    with tarfile.open(source, "w:gz") as tar:
        info = tarfile.TarInfo("big.bin")
        info.size = 1 << 20
        tar.addfile(info, io.BytesIO(b"\0" * info.size))
    limited = 'trap "" XFSZ; ulimit -f 64; exec "$0" "$@"'
    done = subprocess.run(
        ["/bin/sh", "-c", limited, *command(str(source), tmp_path)],
        # The limit is for the program, not for what measures its coverage.
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
        check=False,
        capture_output=True,
        text=True,
        timeout=BOUND,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr and "enough space" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path / "code") == []


@pytest.fixture(scope="module")
def s3():
    """The endpoint of a real S3 API with an archive, and credentials for it."""
    with s3_api.serve("code") as (endpoint, client):
        body = io.BytesIO()
        with tarfile.open(fileobj=body, mode="w:gz") as tar:
            info = tarfile.TarInfo("train.py")
            info.size = 8
            tar.addfile(info, io.BytesIO(b"print(3)"))
        whole = body.getvalue()
        client.put_object(Bucket="code", Key="job/source/sourcedir.tar.gz", Body=whole)
        client.put_object(Bucket="code", Key="half.tar.gz", Body=whole[:60])
        yield endpoint, s3_api.CREDENTIALS


@pytest.mark.parametrize("variable", ["S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_s3_archive_is_downloaded_from_the_configured_endpoint(s3, tmp_path, variable):
    endpoint, keys = s3
    source = "s3://code/job/source/sourcedir.tar.gz"
    status, report, output = run(source, tmp_path, **keys, **{variable: endpoint})
    assert (status, report) == (0, None), output
    assert (tmp_path / "code/train.py").read_text() == "print(3)"


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("s3://code/gone.tar.gz", "Not Found"),
        ("s3://nobodys/sourcedir.tar.gz", "Not Found"),
        ("s3://code", "expected an object"),
        ("s3://code/half.tar.gz", "corrupt or truncated"),
    ],
)
def test_what_is_not_on_s3_is_one_error_that_names_it(s3, tmp_path, uri, why):
    endpoint, keys = s3
    status, report, output = run(uri, tmp_path, **keys, S3_ENDPOINT_URL=endpoint)
    assert status == 1
    assert uri in report["reason"] and why in report["reason"]
    assert "Traceback" not in output
    assert os.listdir(tmp_path / "code") == []


def test_unreachable_s3_endpoint_fails_without_hanging(tmp_path, unused_endpoint):
    status, report, _ = run(
        "s3://code/sourcedir.tar.gz",
        tmp_path,
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="a-secret-of-ours",
        AWS_MAX_ATTEMPTS="1",
        S3_ENDPOINT_URL=unused_endpoint,
    )
    assert status == 1
    assert "Could not connect" in report["reason"] and unused_endpoint in report["reason"]
    assert "a-secret-of-ours" not in str(report)


@pytest.fixture
def unused_endpoint():
    """A URL without a listener: its port is bound, so that no other process can listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
