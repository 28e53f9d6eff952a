"""Settings of a server: defaults, what takes precedence, and all faults at once."""

import os
from pathlib import Path

import pytest

from sagemaker_mxnet_serving.front import process_specs
from sagemaker_mxnet_serving.front.server_settings import resolve
from sagemaker_mxnet_toolkit import container
from sagemaker_mxnet_toolkit.failure import ConfigurationError


def test_defaults() -> None:
    settings = resolve({})
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert settings.model_dir == "/opt/ml/model"
    assert (settings.timeout, settings.max_payload) == (60.0, 6291456)
    assert settings.workers == (container.count_gpus() or container.count_cpus())
    assert settings.accept == "application/json"
    assert not settings.multi_model


def test_model_dir_argument_makes_loopback_the_default() -> None:
    assert resolve({}, model_dir="model").host == "127.0.0.1"
    assert resolve({}, model_dir="model", host="0.0.0.0").host == "0.0.0.0"
    assert resolve({"SAGEMAKER_BIND_TO_PORT": "9000"}, port=9001).port == 9001


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "5"}, 5),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "7"}, 7),
        (
            {
                "SAGEMAKER_MODEL_SERVER_TIMEOUT": "5",
                "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "7",
            },
            7,
        ),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": ""}, 60),
    ],
)
def test_timeouts_are_seconds(variables: "dict[str, str]", seconds: float) -> None:
    assert resolve(variables).timeout == seconds


@pytest.mark.parametrize(
    ("variables", "spelling"),
    [
        ({}, "MULTI_RECORD"),
        ({"SAGEMAKER_BATCH": "true"}, "MULTI_RECORD"),
        ({"SAGEMAKER_BATCH": "True"}, "MultiRecord"),
        ({"SAGEMAKER_BATCH": "True", "SAGEMAKER_BATCH_STRATEGY": "SingleRecord"}, "SingleRecord"),
        ({"SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD"}, "SINGLE_RECORD"),
    ],
)
def test_batch_strategy_has_the_spelling_of_the_client(
    variables: "dict[str, str]", spelling: str
) -> None:
    assert resolve(variables).batch_strategy == spelling


def test_model_is_shared_only_if_that_is_safe() -> None:
    assert resolve({"OMP_NUM_THREADS": "1"}).shared
    assert not resolve({"OMP_NUM_THREADS": "2"}).shared
    assert not resolve({"SAGEMAKER_MXNET_SERVING_LOAD_IN_WORKERS": "true"}).shared


def test_all_faults_are_reported_with_their_variables() -> None:
    wrong = {
        "SAGEMAKER_BIND_TO_PORT": "70000",
        "SAGEMAKER_MODEL_SERVER_WORKERS": "none",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT": "-1",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "0",
        "SAGEMAKER_BATCH_STRATEGY": "some",
        "SAGEMAKER_MXNET_SERVING_ACCESS_LOG": "xml",
        "SAGEMAKER_MULTI_MODEL": "perhaps",
        "SAGEMAKER_SAFE_PORT_RANGE": "high",
        "SAGEMAKER_DEFAULT_MODEL_FIRST_DIMENSION_SIZE": "x",
    }
    with pytest.raises(ConfigurationError) as raised:
        resolve(wrong)
    for name in wrong:
        assert name in str(raised.value)
    assert len(raised.value.faults) == len(wrong)


def test_metrics_port_in_the_safe_range() -> None:
    inside = {
        "SAGEMAKER_SAFE_PORT_RANGE": "9000-9100",
        "SAGEMAKER_MXNET_SERVING_METRICS_PORT": "9005",
    }
    assert resolve(inside).metrics_port == 9005
    with pytest.raises(ConfigurationError, match="SAGEMAKER_SAFE_PORT_RANGE"):
        resolve({**inside, "SAGEMAKER_MXNET_SERVING_METRICS_PORT": "9200"})
    with pytest.raises(ConfigurationError, match="own port"):
        resolve({"SAGEMAKER_MXNET_SERVING_METRICS_PORT": "8080"})


def test_variables_without_effect_are_named() -> None:
    notes = resolve(
        {
            "MMS_JOB_QUEUE_SIZE": "3",
            "MMS_NETTY_CLIENT_THREADS": "3",
            "SAGEMAKER_INFERENCE_ACCELERATOR_PRESENT": "true",
        }
    ).notes
    assert "set SAGEMAKER_MXNET_SERVING_QUEUE_SIZE instead" in notes[0]
    assert notes[1].startswith("MMS_NETTY_CLIENT_THREADS")
    assert "Elastic Inference" in notes[2]


def test_missing_model_names_the_argument(tmp_path: Path) -> None:
    """A newcomer's `serve` without a directory; with one, the model's own error is enough."""
    base = {"SAGEMAKER_BASE_DIR": str(tmp_path)}
    (note,) = resolve(base).notes
    assert note.startswith(f"{tmp_path}/model does not exist; ")
    assert note.endswith("sagemaker-mxnet-training serve DIR")
    assert not resolve(base, str(tmp_path / "other")).notes
    assert not resolve({**base, "SAGEMAKER_MULTI_MODEL": "true"}).notes
    (tmp_path / "model").mkdir()
    assert not resolve(base).notes


def test_code_dir_of_the_variable(tmp_path: Path) -> None:
    assert resolve({"SAGEMAKER_SUBMIT_DIRECTORY": str(tmp_path)}).code_dir == str(tmp_path)
    for other in ("", "/no/such/directory", "code"):
        assert resolve({"SAGEMAKER_SUBMIT_DIRECTORY": other}).code_dir == ""
    assert resolve({"SAGEMAKER_SUBMIT_DIRECTORY": f"file://{tmp_path}"}).code_dir == str(tmp_path)


def test_archives_of_code_are_fetched(tmp_path: Path) -> None:
    local = tmp_path / "sourcedir.tar.gz"
    local.write_bytes(b"")
    for source in ("s3://bucket/sourcedir.tar.gz", str(local)):
        settings = resolve({"SAGEMAKER_SUBMIT_DIRECTORY": source, "SAGEMAKER_REGION": "eu-west-1"})
        assert (settings.code_source, settings.code_dir) == (source, "")
        assert settings.region == "eu-west-1"
        with process_specs.code_folder(settings) as placed:
            spec = process_specs.fetch(placed, {})
            assert spec.argv[-8:] == (
                *("--source", source, "--code-dir", placed.code_dir),
                *("--setting", "SAGEMAKER_SUBMIT_DIRECTORY", "--region", "eu-west-1"),
            )
            assert os.path.isdir(spec.directory)
        assert not os.path.exists(spec.directory)
    many = {"SAGEMAKER_SUBMIT_DIRECTORY": "s3://bucket/x.tar.gz", "SAGEMAKER_MULTI_MODEL": "true"}
    assert resolve(many).code_source == ""


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="--workers"):
        resolve({}, workers=0)
    with pytest.raises(ConfigurationError, match="--port"):
        resolve({}, port=70000)


def test_base_directory() -> None:
    assert resolve({"SAGEMAKER_BASE_DIR": "/data"}).model_dir == "/data/model"
    multi = {"SAGEMAKER_BASE_DIR": "/data", "SAGEMAKER_MULTI_MODEL": "true"}
    assert resolve(multi).model_dir == "/data/models"


def test_misspelled_setting_suggests_the_right_one() -> None:
    with pytest.raises(ConfigurationError) as raised:
        resolve({"SAGEMAKER_MXNET_SERVING_BATCHSIZE": "secret"})
    assert "did you mean SAGEMAKER_MXNET_SERVING_BATCH_SIZE?" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_settings_of_training_are_left_alone() -> None:
    assert resolve({"SAGEMAKER_MXNET_PEER_TIMEOUT": "5"}).timeout == 60
