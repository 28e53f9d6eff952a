"""Which processes serve a model."""

import json
import os
from pathlib import Path
from typing import Any, Mapping

from sagemaker_mxnet_serving.front import process_specs
from sagemaker_mxnet_serving.front.server_settings import ServerSettings
from sagemaker_mxnet_toolkit.processes.process import ProcessSpec


def model_settings(spec: ProcessSpec) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(spec.argv[spec.argv.index("--settings") + 1])
    return found


def test_gpu_is_used_if_there_is_one() -> None:
    spec = process_specs.model(ServerSettings(gpus=2), "model", "/opt/ml/model", 5, {})
    assert model_settings(spec)["gpus"] == 2
    assert model_settings(spec)["shared"] is False


def test_without_a_gpu_workers_share_the_model() -> None:
    spec = process_specs.model(ServerSettings(), "model", "/opt/ml/model", 5, {})
    assert model_settings(spec)["gpus"] == 0
    assert model_settings(spec)["shared"] is True
    assert spec.inherited == (5,)


def test_users_variable_takes_precedence() -> None:
    settings = ServerSettings(threads=2)
    ours = process_specs.model(settings, "model", "/opt/ml/model", 5, {}).environment
    assert (ours["OMP_NUM_THREADS"], ours["MXNET_CPU_WORKER_NTHREADS"]) == ("2", "1")
    given = {"MXNET_CPU_WORKER_NTHREADS": "3"}
    theirs = process_specs.model(settings, "model", "/opt/ml/model", 5, given).environment
    assert theirs["MXNET_CPU_WORKER_NTHREADS"] == "3"


def test_requirements_beside_the_code(tmp_path: Path) -> None:
    model_dir = os.fspath(tmp_path)
    spec = process_specs.install(ServerSettings(), model_dir, {})
    assert spec.argv[-2:] == ("--code-dir", os.path.join(model_dir, "code"))
    apart = process_specs.install(ServerSettings(code_dir="/opt/ml/code"), model_dir, {})
    assert apart.argv[-2:] == ("--code-dir", "/opt/ml/code")
    (tmp_path / "inference.py").write_text("")
    assert process_specs.install(ServerSettings(), model_dir, {}).argv[-1] == model_dir


def test_variables_of_training_are_set(tmp_path: Path) -> None:
    """The inference script of ``estimator.deploy`` is the training script."""
    given = {"SM_NUM_CPUS": "3", "SM_MODEL_DIR": "elsewhere", "SAGEMAKER_SUBMIT_DIRECTORY": ""}
    (tmp_path / "my_model" / "code").mkdir(parents=True)
    (tmp_path / "my_model" / "code" / "inference.py").write_text("")
    settings = ServerSettings(gpus=4)
    variables = process_specs.model(settings, "model", os.fspath(tmp_path), 5, given).environment
    model_dir = os.path.join(tmp_path, "my_model")
    assert variables["SM_MODEL_DIR"] == model_dir
    assert variables["SAGEMAKER_SUBMIT_DIRECTORY"] == os.path.join(model_dir, "code")
    assert (variables["SM_NUM_CPUS"], variables["SM_NUM_GPUS"]) == ("3", "1")
    assert json.loads(variables["SM_HOSTS"]) == [variables["SM_CURRENT_HOST"]]
