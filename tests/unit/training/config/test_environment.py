import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.settings.sources import variable_text
from sagemaker_mxnet_training.config.configuration import resolve
from sagemaker_mxnet_training.config.environment import (
    arguments,
    base_environment,
    script_arguments,
    script_environment,
)
from tests.support.fakes import checked

mapping = pytest.importorskip("sagemaker_training.mapping")


@pytest.fixture
def base(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").touch()
    (tmp_path / "input" / "config").mkdir(parents=True)
    return tmp_path


def resolved(base, **variables):
    environ = {"SAGEMAKER_BASE_DIR": str(base), "SM_USER_ENTRY_POINT": "train.py", **variables}
    return checked(resolve(environ))


# The peer itself, in a process of its own: importing it creates directories.
PEER = """
import json, sys
from sagemaker_training import environment
env = environment.Environment()
json.dump({"variables": env.to_env_vars(), "arguments": env.to_cmd_args()}, sys.stdout)
"""

RESOURCES = {"current_host": "algo-1", "hosts": ["algo-1", "algo-2"]}

CONFIGURATIONS = {
    "minimal": ({"sagemaker_program": "train.py"}, RESOURCES, {}),
    "typical": (
        {
            "epochs": "5",
            "batch-size": "32",
            "rate": "0.1",
            "big": "1e30",
            "name": '"resnet"',
            "plain": "some text with spaces",
            "quoted": '"5"',
            "umlaut": '"ä"',
            "layers": '[1, 2, "three"]',
            "object": '{"b": [1], "a": null, "c": "x"}',
            "flag": "true",
            "Flag": "False",
            "nothing": "null",
            "empty": "",
            "n": "1",
            "_ps_port": "9000",
            "_tuning_objective_metric": '"accuracy"',
            "default_user_module_name": "x",
            "sagemaker_program": '"train.py"',
            "sagemaker_submit_directory": '"s3://bucket/source.tar.gz"',
            "sagemaker_container_log_level": "10",
            "sagemaker_job_name": '"job-1"',
            "sagemaker_region": '"eu-west-1"',
            "sagemaker_enable_cloudwatch_metrics": "false",
            "sagemaker_parameter_server_enabled": "true",
            "sagemaker_instance_type": '"ml.c5.xlarge"',
        },
        {**RESOURCES, "network_interface_name": "ethwe", "current_instance_type": "ml.c5.xlarge"},
        {"train": {"TrainingInputMode": "File"}, "Test_set": {"TrainingInputMode": "Pipe"}},
    ),
    "groups": (
        {
            "sagemaker_program": "bin/train.sh",
            "sagemaker_distribution_instance_groups": '["two"]',
            "sagemaker_mpi_enabled": "false",
        },
        {
            **RESOURCES,
            "current_group_name": "one",
            "current_instance_group": "one",
            "instance_groups": [
                {
                    "instance_group_name": "one",
                    "instance_type": "ml.c5.xlarge",
                    "hosts": ["algo-1"],
                },
                {
                    "instance_group_name": "two",
                    "instance_type": "ml.p3.xlarge",
                    "hosts": ["algo-2"],
                },
            ],
            "topology": [{"hostName": "algo-1", "capacityUnitId": "c-1"}],
        },
        {},
    ),
    "one group": (
        {"sagemaker_program": "train.py", "sagemaker_parameter_server_enabled": "true"},
        {
            **RESOURCES,
            "current_host": "algo-2",
            "current_group_name": "homogeneousCluster",
            "instance_groups": [
                {
                    "instance_group_name": "homogeneousCluster",
                    "instance_type": "ml.c5.xlarge",
                    "hosts": ["algo-1", "algo-2"],
                }
            ],
        },
        {},
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize(
    "variables",
    [{}, {"TRAINING_JOB_NAME": "job-1", "SAGEMAKER_TRAINING_MODULE": "module:main"}],
    ids=["files", "variables"],
)
def test_variables_and_arguments_are_those_of_sagemaker_training(base, name, variables):
    hyperparameters, resources, inputs = CONFIGURATIONS[name]
    files = {
        "hyperparameters": hyperparameters,
        "resourceconfig": resources,
        "inputdataconfig": inputs,
    }
    for file, content in files.items():
        (base / "input" / "config" / f"{file}.json").write_text(json.dumps(content))
    (base / "code" / "bin").mkdir()
    (base / "code" / "bin" / "train.sh").touch()
    environ = {
        "SAGEMAKER_BASE_DIR": str(base),
        "PATH": os.environ["PATH"],
        "HOME": str(base),
        **variables,
    }
    peer = subprocess.run(
        [sys.executable, "-c", PEER], env=environ, stdout=subprocess.PIPE, check=True, timeout=60
    )
    theirs = json.loads(peer.stdout)
    job = checked(resolve(environ))
    ours = script_environment(job)

    assert script_arguments(job) == theirs["arguments"]
    assert ours.pop("SAGEMAKER_BASE_DIR") == str(base)
    assert ours.pop("SM_CHECKPOINT_DIR") == str(base / "checkpoints")  # theirs has none
    ours_env = json.loads(ours.pop("SM_TRAINING_ENV"))
    theirs_env = json.loads(theirs["variables"].pop("SM_TRAINING_ENV"))
    # Theirs counts the machine's CPUs; ours those of the affinity and the cgroup's quota.
    assert ours.pop("SM_NUM_CPUS") == str(job.num_cpus) == str(ours_env.pop("num_cpus"))
    theirs["variables"].pop("SM_NUM_CPUS")
    theirs_env.pop("num_cpus")
    # Theirs takes the job's name from a variable only, ours also from the hyperparameter.
    assert ours_env.pop("job_name") == (job.job_name or None)
    theirs_env.pop("job_name")
    assert ours == theirs["variables"]
    assert ours_env == theirs_env


# Deep or long values say nothing more about the form.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES))
@settings(deadline=None)
def test_arguments_have_sagemaker_trainings_form(values):
    assert arguments(values) == mapping.to_cmd_args(values)


@given(VALUES)
@settings(deadline=None)
def test_variables_have_sagemaker_trainings_form(value):
    assert variable_text(value) == mapping.to_env_vars({"x": value})["SM_X"]


# What no program can be given is a fault, and test_configuration's subject.
PASSABLE = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
NAMES = st.text(st.sampled_from("abAB_-5"), min_size=1, max_size=4)
HYPERPARAMETERS = st.dictionaries(
    NAMES,
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | PASSABLE
    | st.sampled_from(["5", "true", "null", "[1]", '"x"'])
    | st.lists(PASSABLE, max_size=3)
    | st.dictionaries(PASSABLE, PASSABLE, max_size=3),
    max_size=6,
)


@given(HYPERPARAMETERS)
@settings(deadline=None, max_examples=100)
def test_the_types_of_hyperparameters_survive_a_job_inside_a_job(values):
    with tempfile.TemporaryDirectory() as directory:
        base = pathlib.Path(directory)
        (base / "code").mkdir()
        (base / "code" / "train.py").touch()
        outer = resolved(base, SM_HPS=json.dumps(values))
        assert outer.hyperparameters == values
        inner = checked(resolve(base_environment(outer)))
        assert inner.hyperparameters == values
        assert script_environment(inner) == script_environment(outer)


def test_a_variable_that_was_set_keeps_its_text(base):
    given_variables = {
        "SM_HOSTS": '["a",   "b"]',
        "SM_CURRENT_HOST": "a",
        "SM_USER_ARGS": '["--mine"]',
        "SM_TRAINING_ENV": '{"mine": 1}',
        "SM_NUM_NEURONS": "4",
        "SM_MODULE_NAME": "mine",
        "SM_INPUT_DIR": "/elsewhere",
        "SM_NETWORK_INTERFACE_NAME": "lo",
        "SM_LOG_LEVEL": "30",
        "SM_UNKNOWN": "kept",
        "SM_HPS": '{"a": "5"}',
        "SM_CHANNEL_TRAIN": "/data",
    }
    found = script_environment(resolved(base, **given_variables))
    assert {name: found[name] for name in given_variables} == given_variables


def test_what_a_variable_changed_is_seen_everywhere(base):
    job = resolved(base, SM_HPS='{"a": 1}', SM_HP_B="2", SM_HOSTS='["b", "a"]', SM_CURRENT_HOST="a")
    found = script_environment(job)
    assert json.loads(found["SM_HPS"]) == {"a": 1, "b": 2}
    assert json.loads(found["SM_USER_ARGS"]) == ["-a", "1", "-b", "2"] == script_arguments(job)
    assert json.loads(found["SM_HOSTS"]) == ["a", "b"]


def test_capitalized_false_disables_the_parameter_server(base):
    params = json.dumps({"sagemaker_parameter_server_enabled": "False"})
    found = script_environment(resolved(base, SM_FRAMEWORK_PARAMS=params))
    assert found["SM_DISTRIBUTION_INSTANCE_GROUPS"] == "[]"


def test_an_interface_is_always_named_to_the_script(base):
    assert script_environment(resolved(base))["SM_NETWORK_INTERFACE_NAME"] == "eth0"


def test_children_get_everything_but_what_would_mislead_them(base):
    job = resolved(
        base,
        PORT="80",
        PATH="/bin",
        AWS_REGION="eu-west-1",
        SAGEMAKER_MXNET_JOB_KEY="a-secret-key",
        SAGEMAKER_MXNET_CONTROL_FD="5",
        SAGEMAKER_MXNET_PEER_TIMEOUT="3",
        PYTHONUNBUFFERED="",
        LD_PRELOAD="",
    )
    found = base_environment(job)
    lost = {
        name: text for name, text in job.environ.items() if name not in found or found[name] != text
    }
    assert sorted(lost) == [
        "PATH",
        "PORT",
        "PYTHONUNBUFFERED",
        "SAGEMAKER_MXNET_CONTROL_FD",
        "SAGEMAKER_MXNET_JOB_KEY",
    ]
    own = os.path.dirname(sys.executable)
    assert found["PATH"] == f"{own}:/bin"
    assert base_environment(resolved(base, PATH=f"{own}:/bin"))["PATH"] == f"{own}:/bin"
    assert found["PYTHONUNBUFFERED"] == "1"
    assert found["SAGEMAKER_BASE_DIR"] == str(base)
    assert "a-secret-key" not in json.dumps(found)


def test_any_valid_environment_can_start_a_process(base):
    values = {"text": "ä\n\t'\"$(x)", "nested": {"a": ["\udc80"]}, "none": None}
    (base / "input" / "config" / "hyperparameters.json").write_text(json.dumps(values))
    job = resolved(base)
    show = "import os, sys, json; print(json.dumps([sys.argv[1:], os.environ['SM_HP_TEXT']]))"
    done = subprocess.run(
        [sys.executable, "-c", show, *script_arguments(job)],
        env={**base_environment(job), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == [script_arguments(job), values["text"]]
