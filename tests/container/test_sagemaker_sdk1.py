"""SageMaker Python SDK 1.72's local mode: what AWS's own toolkits for MXNet were tested with.

Scripts and requests have the shape of those tests: MNIST in its files, trained on one and two
hosts; a model without a framework version, whose code the SDK uploads apart from it; requests
without a Content-Type.
"""

import gzip
import json
import os
import struct
import tarfile
from pathlib import Path
from typing import Any, Dict, Iterator, List

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from tests.container.conftest import one_at_a_time
from tests.support import sdks
from tests.support.containers import run
from tests.support.jobs import free_port
from tests.support.packages import wheel
from tests.support.s3_api import CREDENTIALS

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("local_mode")]

ROLE = "arn:aws:iam::111111111111:role/unused"
MODEL = ["model-0000.params", "model-shapes.json", "model-symbol.json"]

MNIST_SCRIPT = """
import argparse, gzip, json, os, struct
import mxnet as mx
import numpy as np
from sagemaker_mxnet_container.training_utils import scheduler_host

def read(folder):
    with gzip.open(os.path.join(folder, "labels.gz")) as file:
        file.read(8)
        labels = np.fromstring(file.read(), dtype=np.int8)
    with gzip.open(os.path.join(folder, "images.gz")) as file:
        _, count, rows, columns = struct.unpack(">IIII", file.read(16))
        pixels = np.fromstring(file.read(), dtype=np.uint8)
    return labels, pixels.reshape(count, 1, rows, columns).astype(np.float32) / 255

def save(folder, module):
    module.symbol.save(os.path.join(folder, "model-symbol.json"))
    module.save_params(os.path.join(folder, "model-0000.params"))
    shapes = [{"name": each.name, "shape": list(each.shape)} for each in module.data_shapes]
    with open(os.path.join(folder, "model-shapes.json"), "w") as file:
        json.dump(shapes, file)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
    parser.add_argument("--train", default=os.environ["SM_CHANNEL_TRAIN"])
    parser.add_argument("--test", default=os.environ["SM_CHANNEL_TEST"])
    parser.add_argument("--current-host", default=os.environ["SM_CURRENT_HOST"])
    parser.add_argument("--hosts", type=list, default=json.loads(os.environ["SM_HOSTS"]))
    args = parser.parse_args()
    labels, images = read(args.train)
    place, hosts = args.hosts.index(args.current_host), len(args.hosts)
    share = slice(place * len(labels) // hosts, (place + 1) * len(labels) // hosts)
    data = mx.sym.flatten(mx.sym.var("data"))
    hidden = mx.sym.Activation(mx.sym.FullyConnected(data, num_hidden=16), act_type="relu")
    output = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(hidden, num_hidden=10), name="softmax")
    module = mx.mod.Module(output, context=mx.cpu())
    module.fit(
        mx.io.NDArrayIter(images[share], labels[share], 100, shuffle=True),
        eval_data=mx.io.NDArrayIter(read(args.test)[1], read(args.test)[0], 100),
        kvstore="local" if hosts == 1 else "dist_sync",
        optimizer="sgd",
        optimizer_params={"learning_rate": 0.1},
        num_epoch=1,
    )
    if args.current_host == scheduler_host(args.hosts):
        save(args.model_dir, module)
"""

REQUIREMENTS_SCRIPT = """
import os
import mxnet as mx
import required_by_the_job
from sagemaker_mxnet_training.training_utils import save

module = mx.mod.Module(mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=1), label_names=None)
module.bind([("data", (1, 2))])
module.init_params()
save(os.environ["SM_MODEL_DIR"], module)
"""

HOSTING_SCRIPT = """
def model_fn(model_dir):
    return "a model"

def transform_fn(model, data, input_content_type, output_content_type):
    return data, "application/json"
"""

ANSWER = 4.9999918937683105
"""A float32, as a double prints it."""


@pytest.fixture(scope="session")
def python(docker: None) -> str:
    return sdks.python_of_sdk1()


@pytest.fixture(scope="module")
def endpoint(image: str) -> Iterator[str]:
    """Serve S3 with one bucket where containers reach it; yield its URL."""
    route = "[int(line.split()[2], 16) for line in open('/proc/net/route').readlines()[1:2]]"
    code = f"import socket, struct; print(socket.inet_ntoa(struct.pack('<I', *{route})))"
    gateway = run("docker", "run", "--rm", image, "python", "-c", code).stdout.strip()
    port = free_port()
    # The default bridge's own address: of this machine, and reached from containers only.
    server = ThreadedMotoServer(ip_address=gateway, port=port, verbose=False)
    server.start()
    try:
        url = f"http://{gateway}:{port}"
        keys = {name.lower(): value for name, value in CREDENTIALS.items()}
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
        client.create_bucket(Bucket="bucket")
        yield url
    finally:
        server.stop()


@pytest.fixture(scope="module")
def image_with_s3(image: str, endpoint: str, tmp_path_factory: Any) -> Iterator[str]:
    """Build an image that knows the S3 endpoint: the SDK has no other way to tell it."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "Dockerfile").write_text(f"FROM {image}\nENV AWS_ENDPOINT_URL={endpoint}\n")
    tag = "sagemaker-mxnet-training:sdk1-test"
    with one_at_a_time(tmp_path_factory, "build"):
        run("docker", "build", "--quiet", "--tag", tag, str(folder))
    yield tag
    run("docker", "image", "rm", "--force", tag)


class SDK:
    """Runs the SDK's program, and removes what local mode leaves."""

    def __init__(self, python: str, image: str, endpoint: str, folder: Path) -> None:
        self._python, self._image, self._folder = python, image, folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "TMPDIR": str(folder),
        }

    def _run(self, verb: str, **scenario: Any) -> str:
        file = self._folder / "scenario.json"
        file.write_text(json.dumps({**scenario, "port": free_port()}))
        program = str(Path(__file__).with_name("sdk1_local_mode.py"))
        try:
            done = run(
                *(self._python, program, verb, str(file)), timeout=300, env=self._environment
            )
            print(done.stdout)
            return done.stdout
        finally:
            label = "label=com.docker.compose.project"
            form = '{{.ID}} {{.Label "com.docker.compose.project.working_dir"}}'
            listed = run("docker", "ps", "--all", "--filter", label, "--format", form).stdout
            for line in listed.splitlines():
                container, _, directory = line.partition(" ")
                if directory.startswith(str(self._folder)):
                    run("docker", "rm", "--force", container)
            run("docker", "network", "rm", "sagemaker-local", check=False)

    def fit(self, inputs: Any, **arguments: Any) -> List[str]:
        """Train; return the names of the files of the model."""
        output = self._folder / "output"
        shared = {
            "role": ROLE,
            "image_name": self._image,
            "framework_version": "1.6.0",
            "output_path": f"file://{output}",
        }
        self._run("train", arguments={**shared, **arguments}, inputs=inputs)
        with tarfile.open(output / "output.tar.gz") as archive:
            assert "success" in archive.getnames()
        with tarfile.open(output / "model.tar.gz") as archive:
            return sorted(archive.getnames())

    def ask(self, requests: List[Any], model: Path, script: Path) -> List[Any]:
        """Serve a directory, with a script, and return what is answered to some requests."""
        arguments = {
            "model_data": f"file://{model}",
            "role": ROLE,
            "entry_point": str(script),
            "image": self._image,
        }
        printed = self._run("serve", arguments=arguments, requests=requests)
        answers: List[Any] = json.loads(printed.splitlines()[-1])
        return answers


@pytest.fixture
def sdk(python: str, image_with_s3: str, endpoint: str, tmp_path: Path) -> SDK:
    return SDK(python, image_with_s3, endpoint, tmp_path)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: Any) -> Dict[str, str]:
    """Write two channels of made-up digits in MNIST's format."""
    folder = tmp_path_factory.mktemp("mnist")
    for name, count in {"train": 600, "test": 200}.items():
        (folder / name).mkdir()
        random = np.random.RandomState(count)
        images = random.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        head = struct.pack(">IIII", 2051, count, 28, 28)
        (folder / name / "images.gz").write_bytes(gzip.compress(head + images.tobytes()))
        labels = random.randint(0, 10, count).astype(np.uint8)
        head = struct.pack(">II", 2049, count)
        (folder / name / "labels.gz").write_bytes(gzip.compress(head + labels.tobytes()))
    return {name: f"file://{folder}/{name}" for name in ("train", "test")}


@pytest.mark.parametrize("hosts", [1, 2])
def test_mnist(sdk: SDK, mnist: Dict[str, str], hosts: int, tmp_path: Path) -> None:
    script = tmp_path / "mnist.py"
    script.write_text(MNIST_SCRIPT)
    distributed = {"sagemaker_parameter_server_enabled": True} if hosts > 1 else {}
    files = sdk.fit(
        mnist,
        entry_point=str(script),
        train_instance_count=hosts,
        hyperparameters=distributed,
    )
    assert files == MODEL


def test_requirements(sdk: SDK, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    required = wheel(source, "required-by-the-job", "1.0")
    (source / "requirements.txt").write_text(f"./{required.name}\n")
    (source / "entry.py").write_text(REQUIREMENTS_SCRIPT)
    files = sdk.fit(None, entry_point="entry.py", source_dir=str(source), train_instance_count=1)
    assert files == MODEL


def linear_model(folder: Path) -> None:
    """Save a module that answers ``ANSWER`` to a row of 1 and 2."""
    import mxnet as mx

    fully = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=1, name="fc")
    output = mx.sym.LinearRegressionOutput(fully, mx.sym.var("label"), name="output")
    module = mx.mod.Module(output, label_names=["label"])
    module.bind([("data", (1, 2))], [("label", (1,))])
    bias = mx.nd.array([np.float32(ANSWER) - np.float32(3)])
    module.init_params(arg_params={"fc_weight": mx.nd.array([[1, 1]]), "fc_bias": bias})
    module.symbol.save(str(folder / "model-symbol.json"))
    module.save_params(str(folder / "model-0000.params"))
    shapes = [{"name": "data", "shape": [1, 2]}]
    (folder / "model-shapes.json").write_text(json.dumps(shapes))


def test_default_functions(sdk: SDK, tmp_path: Path) -> None:
    """A script without functions, in the archive and uploaded; the answer is compared exactly."""
    model = tmp_path / "model"
    (model / "code").mkdir(parents=True)
    script = model / "code/empty_module.py"
    script.write_text("# The default functions answer.\n")
    linear_model(model)
    asked = [("[[1, 2]]", "application/json", None), ("[[1, 2]]", "application/json", "*/*")]
    for content_type, text in sdk.ask(asked, model, script):
        assert content_type == "application/json"
        assert json.loads(text) == [[ANSWER]]


@pytest.mark.parametrize("in_archive", [True, False])
def test_hosting(sdk: SDK, tmp_path: Path, in_archive: bool) -> None:
    """The script is at the top of the archive, or only in the uploaded sources; no Content-Type."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "notes.txt").write_text("no model files")
    folder = model if in_archive else tmp_path
    script = folder / "dummy_hosting.py"
    script.write_text(HOSTING_SCRIPT)
    [answer] = sdk.ask([("some data", None, None)], model, script)
    assert answer == ["application/json", "some data"]
