"""The SageMaker Python SDK's local mode, by the example, in an environment of its own."""

import json
import os
import re
import sys
import tarfile
from pathlib import Path
from typing import Any, Dict, Mapping

import numpy as np
import pytest

from tests.container.conftest import one_at_a_time
from tests.support import s3_api, sdks
from tests.support.containers import IMAGE, ROOT, Completed, Trained, run
from tests.support.jobs import free_port
from tests.support.packages import wheel

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("local_mode")]


@pytest.fixture(scope="session")
def sdk(image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Install the SDK once."""
    with one_at_a_time(tmp_path_factory, "sdk"):
        return sdks.sdk2()


def fit(sdk: str, *arguments: str, check: bool = True) -> "Completed[str]":
    done = run(sdk, *arguments, timeout=300, check=check)
    assert run("docker", "network", "ls", "-q", "-f", "name=sagemaker-local").stdout == ""
    return done


MODEL = ["model-0000.params", "model-shapes.json", "model-symbol.json"]
ANSWERED = r"^([a-z/-]+): 360 answers, accuracy=([\d.]+)$"


def check_training(done: "Completed[str]", hosts: int) -> None:
    accuracies = re.findall(r"validation-accuracy=([\d.]+)", done.stdout)
    assert len(accuracies) == 10 * hosts
    assert max(map(float, accuracies)) >= 0.9


def test_fit(sdk: str, tmp_path: Path) -> None:
    done = fit(sdk, "--hosts", "2", "--output", str(tmp_path))
    check_training(done, hosts=2)
    with tarfile.open(tmp_path / "model.tar.gz") as archive:
        assert sorted(archive.getnames()) == MODEL
    kinds = r" ([\w-]+) {2,}(int|float|bool|list|dict|str|NoneType)\b"
    types = dict(re.findall(kinds, done.stdout))
    assert types == {
        "epochs": "int",
        "learning-rate": "float",
        "hybridize": "bool",
        "layers": "list",
        "optimizer": "dict",
        "batch-size": "int",
        "comment": "str",
        "resume-from": "NoneType",
    }


def test_fit_then_deploy(sdk: str, tmp_path: Path) -> None:
    """The training script is the endpoint's too, and what it trained answers as it did there."""
    done = fit(sdk, "--deploy", "--output", str(tmp_path))
    check_training(done, hosts=1)
    reached = float(re.findall(r"validation-accuracy=([\d.]+)", done.stdout)[-1])
    answered = dict(re.findall(ANSWERED, done.stdout, re.MULTILINE))
    assert sorted(answered) == ["application/json", "application/x-npy", "text/csv"]
    assert [float(accuracy) for accuracy in answered.values()] == pytest.approx([reached] * 3)


def test_failing_script_reaches_the_caller(sdk: str, tmp_path: Path) -> None:
    """``fit`` raises, and the log holds the one cause, for both hosts."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.py").write_text(
        "import os\n"
        "import mxnet as mx\n"
        "mx.kv.create('dist_sync')\n"
        "if os.environ['SM_CURRENT_HOST'].startswith('algo-2'):\n"
        "    raise ValueError('boom')\n"
        "mx.nd.waitall()\n"
    )
    done = fit(
        sdk,
        *("--hosts", "2", "--source-dir", str(source), "--output", str(tmp_path / "out")),
        check=False,
    )
    assert done.returncode == 1
    assert "RuntimeError: Failed to run" in done.stdout
    causes = re.findall(r"cause: (algo-2-\w+: worker failed: ValueError: boom.*)", done.stdout)
    assert len(causes) == 2, done.stdout
    assert os.listdir(tmp_path / "out")


@pytest.fixture
def python(sdk: str) -> str:
    return sdks.python_of_sdk2()


@pytest.fixture
def python_of_sdk3(image: str) -> str:
    return sdks.python_of_sdk3()


@pytest.mark.parametrize("environment", ["python", "python_of_sdk3"])
def test_model_trainer(request: pytest.FixtureRequest, environment: str, tmp_path: Path) -> None:
    """The class that took the estimators' place, in both SDKs: our entrypoint as a command."""
    interpreter = request.getfixturevalue(environment)
    script = str(sdks.EXAMPLE / "model_trainer.py")
    done = run(interpreter, script, "--hosts", "2", "--output", str(tmp_path), timeout=300)
    assert max(map(float, re.findall(r"validation-accuracy=([\d.]+)", done.stdout))) >= 0.9
    assert "holds: model-0000.params model-shapes.json model-symbol.json" in done.stdout


def test_a_job_is_described_run_and_attached_to(python: str, tmp_path: Path) -> None:
    """The entrypoint and ``attach`` read what the SDK sends to SageMaker's API."""
    source = tmp_path / "source"
    source.mkdir()
    script = "import os, sys\nprint(sys.argv[1:], os.listdir(os.environ['SM_CHANNEL_TRAINING']))\n"
    (source / "train.py").write_text(script)
    with s3_api.serve("bucket") as (endpoint, _):
        program = str(ROOT / "tests/container/sdk_attach.py")
        done = run(python, program, endpoint, str(source), timeout=240)
        answer = json.loads(done.stdout.splitlines()[-1])
        described, attached = answer["described"], answer["attached"]
        parameters = described["HyperParameters"]
        assert attached["hyperparameters"] == parameters
        assert attached["entry_point"] == "train.py"
        assert attached["image_uri"] == described["AlgorithmSpecification"]["TrainingImage"]
        assert attached["model_data"].endswith(
            f"{described['TrainingJobName']}/output/model.tar.gz"
        )
        assert described["CheckpointConfig"] == {"S3Uri": "s3://bucket/checkpoints"}
        assert described["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600
        output = run_as_described(tmp_path, parameters, endpoint)
    arguments = ["--comment", "text", "--epochs", "5", "--layers", "[128, 64]", "--rate", "0.1"]
    assert f"{arguments} ['rows.csv']" in output
    assert "parameter server on;" in output


def run_as_described(tmp_path: Path, parameters: Mapping[str, str], endpoint: str) -> str:
    """Run a job with the files that SageMaker would write; return what it says."""
    base = tmp_path / "ml"
    config = base / "input/config"
    config.mkdir(parents=True)
    channel = base / "input/data/training"
    channel.mkdir(parents=True)
    (channel / "rows.csv").touch()
    resources = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}
    channels = {"training": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}}
    for name, content in {
        "hyperparameters": parameters,
        "resourceconfig": resources,
        "inputdataconfig": channels,
    }.items():
        (config / f"{name}.json").write_text(json.dumps(content))
    env = {
        "PATH": os.environ["PATH"],
        "SAGEMAKER_BASE_DIR": str(base),
        "SAGEMAKER_MXNET_HOST_ADDRESSES": json.dumps({"algo-1": "127.0.0.1"}),
        "AWS_ENDPOINT_URL": endpoint,
        **s3_api.CREDENTIALS,
    }
    return run(sys.executable, "-m", "sagemaker_mxnet_training", "train", env=env).stdout


class Model:
    """A model's archive, and what the SDK does with it in a program of its own."""

    def __init__(self, folder: Path, trained: Trained) -> None:
        self.folder = folder
        self._trained = trained
        (folder / "model").mkdir()
        self._archive = folder / "model/model.tar.gz"

    def pack(self, code: Mapping[str, bytes]) -> None:
        """Write the archive, with these files in ``code``."""
        folder = self.folder / "packed"
        folder.mkdir()
        for name, content in code.items():
            (folder / name).write_bytes(content)
        with tarfile.open(self._archive, "w:gz") as archive:
            for file in self._trained.model.iterdir():
                archive.add(file, file.name)
            if code:
                archive.add(folder, "code")

    def use(self, transform: Path = Path(), **model: Any) -> Dict[str, Any]:
        """Deploy it and ask for what the network says to some rows, or transform a file."""
        scenario = {
            "directory": str(self.folder),
            "port": free_port(),
            "model": {"model_data": f"file://{self._archive}", "image_uri": IMAGE, **model},
            "rows": self._trained.rows.tolist(),
            **({"transform": str(transform)} if transform.name else {}),
        }
        file = self.folder / "scenario.json"
        file.write_text(json.dumps(scenario))
        program = str(ROOT / "tests/container/sdk_model.py")
        done = run(sdks.python_of_sdk2(), program, str(file), timeout=200)
        print(done.stdout)
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def model(sdk: str, trained: Trained, tmp_path: Path) -> Model:
    return Model(tmp_path, trained)


def check_answers(answers: Mapping[str, Any], expected: Any) -> None:
    assert sorted(answers) == ["application/json", "application/x-npy", "text/csv"]
    for answer in answers.values():
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)


def test_model_without_entry_point(model: Model, trained: Trained) -> None:
    model.pack({})
    check_answers(model.use(), trained.answers)


def test_model_with_entry_point(model: Model, trained: Trained, tmp_path: Path) -> None:
    """The script imports what ``dependencies`` brings, and what ``requirements.txt`` installs."""
    required = wheel(tmp_path, "doubling", "1.0", code="FACTOR = 2\n")
    dependency = tmp_path / "scaling"
    dependency.mkdir()
    (dependency / "__init__.py").write_text("def scale(array, by):\n    return array * by\n")
    script = tmp_path / "serve_scaled.py"
    script.write_text(
        "from doubling import FACTOR\n"
        "from scaling import scale\n"
        "def predict_fn(data, model):\n"
        "    return scale(model.predict(data), FACTOR)\n"
    )
    requirements = f"numpy>=1\n./{required.name}\n".encode()
    model.pack({"requirements.txt": requirements, required.name: required.read_bytes()})
    answers = model.use(entry_point=str(script), dependencies=[str(dependency)])
    check_answers(answers, 2 * trained.answers)


def test_model_with_source_dir_and_transform_fn(
    model: Model, trained: Trained, tmp_path: Path
) -> None:
    """Local mode mounts ``source_dir`` beside the model, and has ``dependencies`` in the model."""
    source = tmp_path / "source"
    source.mkdir()
    dependency = tmp_path / "dependency"
    dependency.mkdir()
    (dependency / "__init__.py").write_text("")
    (source / "loading.py").write_text("def load(model_dir):\n    return {'dir': model_dir}\n")
    (source / "inference.py").write_text(
        "import dependency, loading\n"
        "def model_fn(model_dir):\n"
        "    return loading.load(model_dir)\n"
        "def transform_fn(model, body, content_type, accept):\n"
        "    assert model == {'dir': '/opt/ml/model'}\n"
        "    return body, content_type\n"
    )
    model.pack({})
    answers = model.use(
        entry_point="inference.py", source_dir=str(source), dependencies=[str(dependency)]
    )
    check_answers(answers, trained.rows)


def test_transformer(model: Model, trained: Trained, tmp_path: Path) -> None:
    """As many lines as the input has, and in its order, so that a transform can join them."""
    rows = np.tile(trained.rows, (20, 1))
    file = tmp_path / "rows.csv"
    file.write_text("".join(",".join(map(repr, row)) + "\n" for row in rows.tolist()))
    model.pack({})
    model.use(transform=file)
    [output] = tmp_path.rglob("rows.csv.out")
    assert output.read_text().count("\n") == len(rows)
    np.testing.assert_allclose(
        np.loadtxt(output, delimiter=","), np.tile(trained.answers, (20, 1)), rtol=1e-5, atol=1e-6
    )
