"""Scripts and archives as people have them from SageMaker's own containers."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Mapping

import numpy as np
import pytest

from tests.support import s3_api
from tests.support.packages import wheel
from tests.support.real_server import serving

# A script that stands on what AWS's server does for it.
SCRIPT = """
import json, logging, os, sys
import numpy as np
import beside_the_model

logger = logging.getLogger(__name__)
logger.setLevel(logging.DEBUG)
logger.debug("script imported")
LABELS = open("labels.txt").read()

def model_fn(model_dir):
    logging.info("model_fn called")
    return {"labels": open("labels.txt").read(), "same": os.path.samefile(model_dir, os.getcwd())}

def transform_fn(model, body, content_type, accept):
    logger.info("request logged")
    values = np.frombuffer(body, np.uint8)
    values += 1
    names = ["SM_MODEL_DIR", "SM_NUM_GPUS", "SM_NUM_CPUS", "SM_CURRENT_HOST", "SM_HOSTS"]
    return {
        **model, "labels_again": open("labels.txt").read(), "kind": type(body).__name__,
        "body": bytes(body).decode(), "beside": beside_the_model.VALUE,
        "unset": [name for name in names if not os.environ.get(name)],
        "model_dir": os.environ["SM_MODEL_DIR"], "code": os.environ["SAGEMAKER_SUBMIT_DIRECTORY"],
    }
"""
FILES = {"labels.txt": "cat", "beside_the_model.py": "VALUE = 5"}


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "in workers"])
@pytest.mark.parametrize("prefix", ["", "my_model/"], ids=["flat", "one directory deeper"])
def test_environment_that_scripts_are_written_for(
    tmp_path: Path, prefix: str, shared: bool
) -> None:
    files = {f"{prefix}{name}": text for name, text in FILES.items()}
    write(tmp_path, {**files, f"{prefix}code/inference.py": SCRIPT})
    load = {} if shared else {"SAGEMAKER_MXNET_SERVING_LOAD_IN_WORKERS": "true"}
    with serving(tmp_path, "--workers", "1", **load) as served:
        served.healthy()
        found = json.loads(served.invoke(b"abc").body)
        model_dir = os.path.join(tmp_path, prefix.rstrip("/")).rstrip("/")
        assert found == {
            **{"labels": "cat", "labels_again": "cat", "same": True, "beside": 5, "unset": []},
            **{"kind": "bytearray", "body": "bcd"},
            **{"model_dir": model_dir, "code": os.path.join(model_dir, "code")},
        }
        for line in ("script imported", "model_fn called", "request logged"):
            served.wait_for_log(line)
        assert not list(tmp_path.rglob("*.pyc"))
        big = os.urandom(3_000_000)  # does not come in one piece
        served.invoke(big)


def test_basic_config_of_a_script_takes_effect(tmp_path: Path) -> None:
    script = (
        "import logging\n"
        "logging.basicConfig(level=logging.DEBUG, format='mine: %(message)s')\n"
        "logging.debug('configured')\n"
        "def transform_fn(model, body, content_type, accept): return body\n"
        "def model_fn(model_dir): return 1\n"
    )
    with serving(write(tmp_path, {"code/inference.py": script}), "--workers", "1") as served:
        served.healthy()
        served.wait_for_log("mine: configured")
        assert served.invoke(b"echo").body == b"echo"


def test_forgotten_return_is_logged_once(tmp_path: Path) -> None:
    script = (
        "def model_fn(model_dir): return 1\n"
        "def transform_fn(model, body, content_type, accept): body\n"
    )
    with serving(write(tmp_path, {"code/inference.py": script}), "--workers", "1") as served:
        served.healthy()
        assert [served.invoke(b"echo").body for _ in range(2)] == [b"null"] * 2
        served.wait_for_log("transform_fn returned None; does it end without a return statement?")
        assert sum("returned None" in line for line in served.lines) == 1


ANSWERS = """
def model_fn(model_dir): return "served"
def transform_fn(model, body, content_type, accept): return WORD
"""


def test_code_packed_without_its_directory(tmp_path: Path) -> None:
    """The inside of ``source_dir``, packed together with the model's files."""
    package = wheel(tmp_path, "top-requirement", "1", code="WORD = 'top'\n")
    script = f"from top_requirement import WORD\n{ANSWERS}"
    files = {"inference.py": script, "requirements.txt": f"{package}\n"}
    model_dir = write(tmp_path / "model", files)
    target = {"PIP_TARGET": str(tmp_path / "site"), "PYTHONPATH": str(tmp_path / "site")}
    with serving(model_dir, "--workers", "1", **target) as served:
        assert served.healthy().invoke(b"").body == b"top"


def archive(files: Mapping[str, str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return stream.getvalue()


def diagnosis(model_dir: Path, **variables: str) -> str:
    """Return what ``doctor`` says of a model that can be served."""
    done = subprocess.run(
        [sys.executable, "-m", "sagemaker_mxnet_training", "doctor", "--model-dir", str(model_dir)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_code_on_s3(tmp_path: Path) -> None:
    """What the SDK sends without ``framework_version``, and for versions below 1.4."""
    files = {"serve.py": f"from beside import WORD\n{ANSWERS}", "beside.py": "WORD = 'from S3'"}
    model_dir = write(tmp_path / "model", FILES)
    variables = {
        **s3_api.CREDENTIALS,
        "SAGEMAKER_PROGRAM": "serve.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "s3://bucket/job/source/sourcedir.tar.gz",
        "SAGEMAKER_REGION": "us-east-1",
        "TMPDIR": str(tmp_path / "tmp"),
    }
    (tmp_path / "tmp").mkdir()
    with s3_api.serve("bucket") as (endpoint, client):
        key = "job/source/sourcedir.tar.gz"
        client.put_object(Bucket="bucket", Key=key, Body=archive(files))
        variables["AWS_ENDPOINT_URL_S3"] = endpoint
        with serving(model_dir, "--workers", "1", **variables) as served:
            assert served.healthy().invoke(b"").body == b"from S3"
        assert os.listdir(tmp_path / "tmp") == []
        assert "serve.py" in diagnosis(model_dir, **variables)
        variables["SAGEMAKER_SUBMIT_DIRECTORY"] = "s3://bucket/absent.tar.gz"
        with serving(model_dir, "--workers", "1", **variables) as served:
            assert served.ended() == 1
            assert "s3://bucket/absent.tar.gz cannot be downloaded" in served.lines[-1]
    assert sorted(path.name for path in model_dir.iterdir()) == sorted(FILES)


def test_missing_script_ends_the_server(tmp_path: Path) -> None:
    with serving(write(tmp_path, FILES), "--workers", "1", SAGEMAKER_PROGRAM="serve.py") as served:
        assert served.ended() == 1
        assert "the script 'serve.py' of SAGEMAKER_PROGRAM was not found" in served.log


EXPORTED = """
import sys
from sagemaker_mxnet_toolkit import compatibility
compatibility.install()
import mxnet as mx
net = mx.gluon.nn.HybridSequential()
net.add(mx.gluon.nn.Dense(2))
net.initialize(mx.init.One())
net.hybridize()
net(mx.nd.ones((1, 3)))
net.export(sys.argv[1] + "/net", 7)
"""


def test_exported_network_with_a_script_at_the_top(tmp_path: Path) -> None:
    """The archive that the documentation makes, of what gluon exports: no name is the default."""
    inner = tmp_path / "my_model"
    inner.mkdir()
    subprocess.run([sys.executable, "-c", EXPORTED, str(inner)], check=True, timeout=120)
    shutil.copy(inner / "net-0007.params", inner / "net-0003.params")
    kind = {"Content-Type": "application/json"}
    for script in ("", "def output_fn(prediction, accept): return 'mine', 'text/plain'\n"):
        if script:
            write(inner, {"inference.py": script})
        with serving(tmp_path, "--workers", "1") as served:
            answer = served.healthy().ask("POST", "/invocations", b"[[1, 2, 3], [1, 1, 1]]", kind)
            assert answer.status == 200, answer.body
            assert answer.body == (b"mine" if script else b"[[6.0,6.0],[3.0,3.0]]")
    assert str(inner / "inference.py") in diagnosis(tmp_path)


TOOLKIT = """
from sagemaker_inference import content_types, decoder, encoder, errors

class Busy(errors.BaseInferenceToolkitError):
    def __init__(self):
        super().__init__(429, "too busy", "Too Many Requests")

def model_fn(model_dir): return 2

def input_fn(body, content_type):
    if content_type == "text/plain":
        raise {b"busy": Busy(), b"status": errors.GenericInferenceToolkitError(42, "odd"),
               b"bad": errors.GenericInferenceToolkitError(422, "a bad request")}[bytes(body)]
    return decoder.decode(body, content_type)

def predict_fn(data, model): return data * model

def output_fn(prediction, accept): return encoder.encode(prediction, accept), accept
"""


def test_toolkit_of_aws_in_a_script(tmp_path: Path) -> None:
    """AWS's own server answers 500 for a format that is not supported."""
    with serving(write(tmp_path, {"code/inference.py": TOOLKIT}), "--workers", "1") as served:
        served.healthy()

        def ask(body: bytes, content_type: str, accept: str) -> "tuple[int, bytes]":
            headers = {"Content-Type": content_type, "Accept": accept}
            answer = served.ask("POST", "/invocations", body, headers)
            return answer.status, answer.body

        assert ask(b"[[1, 2]]", "application/json", "text/csv") == (200, b"2,4\n")
        rows = b"[[2, 4], [6, 8]]"
        assert ask(b"1,2\n3,4\n", "text/csv", "application/json") == (200, rows)
        array = io.BytesIO()
        np.save(array, np.ones((1, 2)))
        assert ask(array.getvalue(), "application/x-npy", "text/csv") == (200, b"2.0,2.0\n")
        assert ask(b"x", "image/png", "text/csv")[0] == 415
        assert b"Content type image/png is not supported" in ask(b"x", "image/png", "text/csv")[1]
        assert ask(b"[[1]]", "application/json", "image/png")[0] == 415
        assert ask(b"busy", "text/plain", "text/csv") == (429, b"too busy\n")
        assert ask(b"bad", "text/plain", "text/csv") == (422, b"a bad request\n")
        assert ask(b"status", "text/plain", "text/csv") == (500, b"odd\n")
