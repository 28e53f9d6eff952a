"""Which processes serve a model."""

import json
import os
from pathlib import Path
from typing import Any, Mapping

from sagemaker_mxnet_serving import plan
from sagemaker_mxnet_serving.configuration import ServerSettings
from sagemaker_mxnet_toolkit.processes.process import ProcessSpec


def options(spec: ProcessSpec) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(spec.argv[spec.argv.index("--options") + 1])
    return found


def test_a_gpu_is_used_where_there_is_one() -> None:
    spec = plan.model(ServerSettings(gpus=2), "model", "/opt/ml/model", 5, {})
    assert options(spec)["model"]["use_gpu"] is True
    assert options(spec)["gpus"] == 2
    assert options(spec)["shared"] is False


def test_without_a_gpu_workers_share_the_model() -> None:
    spec = plan.model(ServerSettings(), "model", "/opt/ml/model", 5, {})
    assert options(spec)["model"]["use_gpu"] is False
    assert options(spec)["shared"] is True
    assert spec.inherited == (5,)


def test_a_variable_of_the_users_takes_precedence() -> None:
    settings = ServerSettings(threads=2)
    ours = plan.model(settings, "model", "/opt/ml/model", 5, {}).environment
    assert (ours["OMP_NUM_THREADS"], ours["MXNET_CPU_WORKER_NTHREADS"]) == ("2", "1")
    given = {"MXNET_CPU_WORKER_NTHREADS": "3"}
    theirs = plan.model(settings, "model", "/opt/ml/model", 5, given).environment
    assert theirs["MXNET_CPU_WORKER_NTHREADS"] == "3"


def test_requirements_are_installed_from_where_the_code_is(tmp_path: Path) -> None:
    model_dir = os.fspath(tmp_path)
    spec = plan.install(ServerSettings(), model_dir, {})
    assert spec.argv[-2:] == ("--code-dir", os.path.join(model_dir, "code"))
    apart = plan.install(ServerSettings(code_dir="/opt/ml/code"), model_dir, {})
    assert apart.argv[-2:] == ("--code-dir", "/opt/ml/code")
