import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagemaker_mxnet_serving.front.server_settings import ServerSettings
from sagemaker_mxnet_toolkit.container import count_cpus, count_gpus
from sagemaker_mxnet_toolkit.failure import CodeError, ConfigurationError
from sagemaker_mxnet_toolkit.settings import variables
from sagemaker_mxnet_toolkit.settings.declaration import declared
from sagemaker_mxnet_training.config.configuration import resolve
from sagemaker_mxnet_training.config.directories import check_writable
from sagemaker_mxnet_training.config.environment import base_environment, script_arguments
from sagemaker_mxnet_training.config.hosts import HOST_NAME
from sagemaker_mxnet_training.config.job import describe
from sagemaker_mxnet_training.config.job_settings import Settings
from sagemaker_mxnet_training.config.mpi_options import Horovod
from sagemaker_mxnet_training.config.user_code import check_entry_point
from tests.support.fakes import checked


@pytest.fixture
def base(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print('here')\n")
    (tmp_path / "input" / "config").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def job(base):
    """Resolve a job from variables and files; values other than strings are written as JSON."""

    def resolved(variables=None, program="train.py", **files):
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (base / "input" / "config" / f"{name}.json").write_text(text)
        environ = {"SAGEMAKER_BASE_DIR": str(base), **(variables or {})}
        if program is not None:
            environ.setdefault("SM_USER_ENTRY_POINT", program)
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in environ.items()}
        return checked(resolve(texts))

    return resolved


@pytest.fixture
def faults(job):
    def found(variables=None, **others):
        with pytest.raises(ConfigurationError) as caught:
            job(variables, **others)
        return caught.value.faults

    return found


def the(faults):
    assert len(faults) == 1, faults
    return faults[0]


# Precedence: variable, file, default.


def test_an_entry_point_alone_gives_one_host_with_defaults(job, base):
    resolved = job()
    assert resolved.hosts == (socket.gethostname(),)
    assert resolved.is_leader
    assert resolved.leader == resolved.current_host == socket.gethostname()
    assert resolved.network_interface == ""
    assert resolved.hyperparameters == resolved.framework_parameters == resolved.channels == {}
    assert resolved.module_dir == resolved.code_dir == str(base / "code")
    assert resolved.model_dir == str(base / "model")
    assert resolved.output_dir == str(base / "output")
    assert resolved.output_data_dir == str(base / "output" / "data")
    assert resolved.output_intermediate_dir == str(base / "output" / "intermediate")
    assert resolved.input_config_dir == str(base / "input" / "config")
    assert resolved.log_level == 20
    assert not resolved.parameter_server
    assert (resolved.s3_output, resolved.job_name) == (None, "")
    assert resolved.settings.join_timeout == 900
    assert resolved.settings.peer_timeout == 15
    assert resolved.settings.stop_grace == 110
    assert resolved.settings.drain_timeout == 30
    assert resolved.settings.stall_timeout == 0
    assert (resolved.settings.ps_port, resolved.settings.control_port) == (8000, 8001)
    assert not resolved.settings.explicit_ps_port


def test_it_creates_nothing(job, base):
    before = sorted(base.rglob("*"))
    job()
    assert sorted(base.rglob("*")) == before


def test_the_same_input_gives_equal_jobs(job):
    assert job({"SM_HPS": {"a": [1, {"b": None}]}}) == job({"SM_HPS": {"a": [1, {"b": None}]}})


def test_without_a_base_directory_the_root_is_used(base):
    assert resolve({"SM_USER_ENTRY_POINT": "train.py"}, str(base)).job.base_dir == str(base)


def test_files_as_sagemaker_writes_them(job, base):
    resolved = job(
        program=None,
        resourceconfig={
            "current_host": "algo-2",
            "hosts": ["algo-2", "algo-1"],
            "network_interface_name": "ethwe",
            "topology": [],
        },
        hyperparameters={
            "epochs": "5",
            "rate": "0.1",
            "name": '"resnet"',
            "plain": "some text",
            "layers": "[1, 2]",
            "flag": "true",
            "nothing": "null",
            "typed": 7,
            "_tuning_objective_metric": "accuracy",
            "sagemaker_program": '"train.py"',
            "sagemaker_submit_directory": '"s3://bucket/source/sourcedir.tar.gz"',
            "sagemaker_parameter_server_enabled": "true",
            "sagemaker_container_log_level": "10",
            "sagemaker_job_name": '"job-1"',
            "sagemaker_region": '"eu-west-1"',
            "sagemaker_s3_output": '"s3://bucket/out"',
        },
        inputdataconfig={"Training": {"TrainingInputMode": "File"}, "test": {}},
    )
    assert (resolved.current_host, resolved.hosts) == ("algo-2", ("algo-1", "algo-2"))
    assert not resolved.is_leader
    assert resolved.network_interface == "ethwe"
    assert resolved.hyperparameters == {
        "epochs": 5,
        "rate": 0.1,
        "name": "resnet",
        "plain": "some text",
        "layers": [1, 2],
        "flag": True,
        "nothing": None,
        "typed": 7,
    }
    assert resolved.framework_parameters == {"sagemaker_parameter_server_enabled": True}
    assert resolved.channels == {
        "Training": str(base / "input" / "data" / "Training"),
        "test": str(base / "input" / "data" / "test"),
    }
    assert (resolved.entry_point, resolved.module_dir) == (
        "train.py",
        "s3://bucket/source/sourcedir.tar.gz",
    )
    assert resolved.parameter_server
    assert (resolved.log_level, resolved.job_name, resolved.region, resolved.s3_output) == (
        10,
        "job-1",
        "eu-west-1",
        "s3://bucket/out",
    )
    assert resolved.resource_config["hosts"] == ["algo-2", "algo-1"]


def test_variables_take_precedence_over_files(job, base):
    (base / "elsewhere").mkdir()
    (base / "elsewhere" / "other.py").touch()
    resolved = job(
        {
            "SM_HOSTS": ["b", "a"],
            "SM_CURRENT_HOST": "b",
            "SM_NETWORK_INTERFACE_NAME": "lo",
            "SM_HPS": {"epochs": 9, "text": "9"},
            "SM_HP_RATE": "0.5",
            "SM_FRAMEWORK_PARAMS": {"sagemaker_parameter_server_enabled": "False"},
            "SM_CHANNELS": ["train"],
            "SM_CHANNEL_TRAIN": "/data/train",
            "SM_MODULE_DIR": str(base / "elsewhere"),
            "SM_USER_ENTRY_POINT": "other.py",
            "SM_MODEL_DIR": str(base / "m"),
            "SM_OUTPUT_DIR": str(base / "o"),
            "SM_OUTPUT_DATA_DIR": str(base / "d"),
            "SM_OUTPUT_INTERMEDIATE_DIR": str(base / "i"),
            "SM_NUM_GPUS": "3",
            "SM_NUM_CPUS": "5",
            "SM_LOG_LEVEL": "30",
        },
        resourceconfig={
            "current_host": "x",
            "hosts": ["x"],
            "network_interface_name": "eth0",
        },
        hyperparameters={
            "old": "1",
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": "s3://b/k",
            "sagemaker_parameter_server_enabled": "true",
            "sagemaker_container_log_level": "40",
        },
        inputdataconfig={"other": {}},
    )
    assert (resolved.current_host, resolved.hosts) == ("b", ("a", "b"))
    assert resolved.network_interface == "lo"
    assert resolved.hyperparameters == {"epochs": 9, "text": "9", "rate": 0.5}
    assert not resolved.parameter_server
    assert resolved.channels == {"train": "/data/train"}
    assert (resolved.entry_point, resolved.module_dir) == ("other.py", str(base / "elsewhere"))
    assert resolved.model_dir == str(base / "m")
    assert (resolved.output_dir, resolved.output_data_dir) == (str(base / "o"), str(base / "d"))
    assert resolved.output_intermediate_dir == str(base / "i")
    assert (resolved.num_gpus, resolved.num_cpus, resolved.log_level) == (3, 5, 30)


def test_an_empty_variable_of_plain_text_is_not_set(job):
    resolved = job({"SM_CURRENT_HOST": "", "SM_MODEL_DIR": "", "SM_LOG_LEVEL": ""})
    assert resolved.current_host == socket.gethostname()
    assert resolved.model_dir.endswith("/model")


def test_sagemaker_trainings_own_variables(job, base):
    resolved = job(
        {
            "SAGEMAKER_PROGRAM": "train.py",
            "SAGEMAKER_SUBMIT_DIRECTORY": str(base / "code"),
            "TRAINING_JOB_NAME": "job-7",
            "AWS_REGION": "us-east-1",
        },
        program=None,
        hyperparameters={"sagemaker_program": "gone.py", "sagemaker_region": "eu-west-1"},
    )
    assert resolved.entry_point == "train.py"
    assert resolved.module_dir == str(base / "code")
    assert (resolved.job_name, resolved.region) == ("job-7", "us-east-1")


def test_submit_directory_of_the_job_takes_precedence(job):
    resolved = job(
        {"SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/code"},
        hyperparameters={"sagemaker_submit_directory": '"s3://b/k.tar.gz"'},
    )
    assert resolved.module_dir == "s3://b/k.tar.gz"


# Hyperparameters.


def test_sm_hps_may_hold_hyperparameters_of_the_platform(job):
    resolved = job(
        {"SM_HPS": {"sagemaker_program": "train.py", "lr": 1, "_tuning_objective_metric": "x"}},
        program=None,
    )
    assert (resolved.entry_point, resolved.hyperparameters) == ("train.py", {"lr": 1})


def test_sm_framework_params_replaces_the_file_except_the_code(job):
    resolved = job(
        {"SM_FRAMEWORK_PARAMS": {"sagemaker_own": 1}},
        program=None,
        hyperparameters={
            "sagemaker_program": "train.py",
            "sagemaker_parameter_server_enabled": "true",
            "epochs": "5",
        },
    )
    assert resolved.framework_parameters == {"sagemaker_own": 1}
    assert not resolved.parameter_server
    assert (resolved.entry_point, resolved.hyperparameters) == ("train.py", {"epochs": 5})


@pytest.mark.parametrize(
    ("hps", "name", "text", "expected"),
    [
        ({}, "EPOCHS", "5", {"epochs": 5}),
        ({}, "batch-size", "5", {"batch-size": 5}),
        ({}, "batchSize", "x y", {"batchSize": "x y"}),
        ({"Lr": 1}, "LR", "2", {"Lr": 2}),
        ({"lr": 1, "LR": 2}, "LR", "3", {"lr": 1, "LR": 3}),
        ({"number": "5"}, "NUMBER", "5", {"number": "5"}),
        ({"number": "5"}, "NUMBER", "6", {"number": 6}),
        ({"none": None}, "NONE", "", {"none": None}),
        ({}, "EMPTY", "", {"empty": ""}),
    ],
)
def test_a_single_hyperparameter_in_a_variable(job, hps, name, text, expected):
    assert job({"SM_HPS": hps, f"SM_HP_{name}": text}).hyperparameters == expected


def test_a_dash_in_a_name_is_an_underscore_in_its_variable(job):
    """As SDK 3 exports it, in addition to ``SM_HPS``."""
    variables = {"SM_HPS": {"batch-size": 32}, "SM_HP_BATCH_SIZE": "32"}
    assert job(variables).hyperparameters == {"batch-size": 32}
    variables["SM_HP_BATCH_SIZE"] = "64"
    assert job(variables).hyperparameters == {"batch-size": 64}


def test_a_single_hyperparameter_can_be_of_the_platform(job):
    variables = {"SM_HP_SAGEMAKER_PARAMETER_SERVER_ENABLED": "true", "SM_HP__PS_PORT": "9000"}
    resolved = job(variables)
    assert resolved.parameter_server
    assert resolved.settings.ps_port == 9000


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "[" * 99 + "]" * 99, '"'])
def test_a_hyperparameter_that_is_not_json_is_a_text(job, text):
    assert job(hyperparameters={"x": text}).hyperparameters == {"x": text}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        ("true", True),
        ("True", True),
        (1, True),
        ("1", True),
        ('"true"', True),
        (False, False),
        ("False", False),
        ('"False"', False),
        (0, False),
        (None, False),
    ],
)
def test_values_of_the_parameter_servers_switch(job, value, expected):
    files = {"hyperparameters": {"sagemaker_parameter_server_enabled": value}}
    assert job(**files).parameter_server is expected


@pytest.mark.parametrize("value", ["maybe", 2, [], {"on": True}, "yes please", 0.5])
def test_invalid_values_of_the_parameter_servers_switch(faults, value):
    fault = the(faults(hyperparameters={"sagemaker_parameter_server_enabled": value}))
    assert "sagemaker_parameter_server_enabled" in fault
    assert "true or false" in fault


# Settings.


def test_hyperparameter_takes_precedence_over_the_variable(job):
    resolved = job(
        {
            "SAGEMAKER_MXNET_JOIN_TIMEOUT": "10",
            "SAGEMAKER_MXNET_PEER_TIMEOUT": "2.5",
            "SAGEMAKER_MXNET_STOP_GRACE": "0",
            "SAGEMAKER_MXNET_JOB_KEY": "0123456789",
            "SAGEMAKER_MXNET_CONTROL_PORT": "7777",
            "SAGEMAKER_MXNET_CONTROL_FD": "5",
            "SAGEMAKER_MXNET_HOST_ADDRESSES": {"a": "10.0.0.1", "b": "10.0.0.2"},
        },
        hyperparameters={"sagemaker_mxnet_join_timeout": "20", "_ps_port": '"9000"'},
    )
    found = resolved.settings
    assert (found.join_timeout, found.peer_timeout, found.stop_grace) == (20, 2.5, 0)
    assert (found.ps_port, found.explicit_ps_port, found.control_port) == (9000, True, 7777)
    assert found.host_addresses == {"a": "10.0.0.1", "b": "10.0.0.2"}
    assert found.control_fd == 5
    assert found.job_key == "0123456789"
    assert "0123456789" not in repr(found)
    assert "0123456789" not in repr(resolved)


def test_the_job_key_never_reaches_the_script(job):
    resolved = job(hyperparameters={"sagemaker_mxnet_job_key": "a-long-key"})
    assert resolved.settings.job_key == "a-long-key"
    assert resolved.framework_parameters == {}


@pytest.mark.parametrize("port", [9000, "9000", '"9000"'])
def test_ps_port_and_ps_verbose_as_number_or_text(job, port):
    resolved = job(hyperparameters={"_ps_port": port, "_ps_verbose": "2"})
    assert (resolved.settings.ps_port, resolved.settings.ps_verbose) == (9000, 2)
    assert resolved.settings.control_port == 9001


def test_control_port_is_below_the_highest_scheduler_port(job):
    assert job(hyperparameters={"_ps_port": 65535}).settings.control_port == 65534


def test_port_zero_in_the_variable_is_any_free_port(job):
    found = job({"SAGEMAKER_MXNET_PS_PORT": "0"}).settings
    assert (found.ps_port, found.explicit_ps_port) == (0, False)


def test_servers_per_host(job):
    assert job().settings.servers_per_host == 1
    given = {"sagemaker_mxnet_servers_per_host": "3"}
    assert job(hyperparameters=given).settings.servers_per_host == 3


@pytest.mark.parametrize("count", ["0", "65", "two", "1.5"])
def test_invalid_numbers_of_servers(faults, count):
    fault = the(faults({"SAGEMAKER_MXNET_SERVERS_PER_HOST": count}))
    assert "SAGEMAKER_MXNET_SERVERS_PER_HOST" in fault
    assert "from 1 to 64" in fault


PORTS = [0, -1, 65536, "http", "80.5", 80.5, True, [], {}, "1" * 50, "", "٨٠"]


@pytest.mark.parametrize("port", [port for port in PORTS if port != ""])
def test_invalid_ports(faults, port):
    fault = the(faults(hyperparameters={"_ps_port": port}))
    assert "not a port" in fault
    assert "hyperparameters.json: '_ps_port'" in fault
    assert "from 1 to 65535" in fault


@pytest.mark.parametrize("port", ["0", "65536", "x"])
def test_invalid_control_ports(faults, port):
    fault = the(faults({"SAGEMAKER_MXNET_CONTROL_PORT": port}))
    assert f"SAGEMAKER_MXNET_CONTROL_PORT: not a port: '{port}'" in fault


def test_the_control_port_cannot_be_that_of_the_kvstore(faults):
    fault = the(faults({"SAGEMAKER_MXNET_CONTROL_PORT": "8000"}))
    assert "control_port and ps_port are both 8000" in fault
    assert "SAGEMAKER_MXNET_CONTROL_PORT" in fault


@pytest.mark.parametrize("name", ["JOIN_TIMEOUT", "PEER_TIMEOUT", "STOP_GRACE", "STALL_TIMEOUT"])
@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e300", "9999999999", "soon", "15s", "[]"])
def test_invalid_durations_in_variables(faults, name, text):
    fault = the(faults({f"SAGEMAKER_MXNET_{name}": text}))
    assert f"SAGEMAKER_MXNET_{name}: not a duration: '{text}'" in fault
    assert "seconds" in fault


@pytest.mark.parametrize("value", [True, [1], {"s": 1}, 10**400, "0"])
def test_invalid_durations_in_hyperparameters(faults, value):
    name = "sagemaker_mxnet_peer_timeout"
    assert name in the(faults(hyperparameters={name: value}))


def test_a_misspelled_hyperparameter_is_a_fault(faults):
    fault = the(faults(hyperparameters={"sagemaker_mxnet_join_timout": "3"}))
    assert "did you mean sagemaker_mxnet_join_timeout?" in fault
    assert "hyperparameters.json" in fault


def test_a_misspelled_variable_is_a_fault(faults):
    fault = the(faults({"SAGEMAKER_MXNET_JOIN_TIMOUT": "3"}))
    assert fault == (
        "SAGEMAKER_MXNET_JOIN_TIMOUT is not a setting (environment variable); "
        "did you mean SAGEMAKER_MXNET_JOIN_TIMEOUT?"
    )


def test_error_for_an_unknown_setting_lists_the_settings(faults):
    fault = the(faults({"SAGEMAKER_MXNET_XYZ": "3"}))
    assert "expected SAGEMAKER_MXNET_ followed by one of CONTROL_PORT, DRAIN_TIMEOUT, " in fault


@pytest.mark.parametrize("name", ["PS_PORT_GIVEN", "CONTROL_FD", "REJOIN_TIMEOUT"])
def test_internal_and_removed_names_are_not_settings(faults, name):
    fault = the(faults(hyperparameters={f"sagemaker_mxnet_{name.lower()}": "1"}))
    assert f"sagemaker_mxnet_{name.lower()}" in fault
    assert "is not a setting" in fault


def test_an_internal_field_is_not_a_variable(faults):
    assert "is not a setting" in the(faults({"SAGEMAKER_MXNET_PS_PORT_GIVEN": "true"}))


def test_the_value_of_a_misspelled_secret_is_not_shown(faults):
    told = faults(
        {"SAGEMAKER_MXNET_JOB_KYE": "hunter-2222"},
        hyperparameters={"sagemaker_mxnet_jobkee": "hunter-3333"},
    )
    assert len(told) == 2
    assert "hunter" not in "\n".join(told)


def test_our_variables_that_are_not_settings_are_no_faults(job):
    resolved = job(
        {
            **dict.fromkeys(variables.NOT_SETTINGS, "5"),
            "SAGEMAKER_MXNET_SERVING_ANYTHING": "of another package",
            "SAGEMAKER_MXNET_MISSPELLED": "",
        }
    )
    assert resolved.settings.control_fd == 5


def test_every_variable_that_the_source_names_is_known():
    """The list of variables that are not settings is complete."""
    source = Path(variables.__file__).parents[2]
    named = {
        name
        for path in source.glob("sagemaker_mxnet_*/**/*.py")
        for name in re.findall(r"SAGEMAKER_MXNET_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8"))
    }
    declarations = {f"SAGEMAKER_MXNET_{name.upper()}" for name in declared(Settings)}
    serving = {f"SAGEMAKER_MXNET_SERVING_{name.upper()}" for name in declared(ServerSettings)}
    unknown = named - declarations - serving - variables.NOT_SETTINGS
    assert unknown - {"SAGEMAKER_MXNET_SERVING"} == set()
    assert not declarations & variables.NOT_SETTINGS


def test_every_default_is_valid():
    for name, declaration in declared(Settings).items():
        default = getattr(Settings(), name)
        if default is not None:
            assert declaration.kind.convert(default) == default


def test_the_documents_have_the_tables_of_the_settings():
    root = Path(__file__).parents[4]
    command = [sys.executable, str(root / "scripts" / "settings_table.py"), "--check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_mpi_of_the_sdk_is_horovod(job):
    """The SDK's parameters for distribution={'mpi': {'enabled': True, ...}}."""
    given = {
        "sagemaker_mpi_enabled": "true",
        "sagemaker_mpi_num_of_processes_per_host": "4",
        "sagemaker_mpi_custom_mpi_options": '""',
    }
    assert job(hyperparameters=given).horovod == Horovod(4)
    options = {**given, "sagemaker_mpi_custom_mpi_options": '"-x NCCL_DEBUG=INFO"'}
    found = job(hyperparameters=options).horovod
    assert found.options.variables == {"NCCL_DEBUG": "INFO"}
    assert job(hyperparameters=given).framework_parameters["sagemaker_mpi_enabled"] is True


def test_processes_per_host_are_the_gpus_by_default(job):
    on = {"sagemaker_mpi_enabled": "true"}
    assert job(hyperparameters=on).horovod == Horovod(1)
    assert job({"SM_NUM_GPUS": "8"}, hyperparameters=on).horovod == Horovod(8)
    assert job(hyperparameters={}).horovod is None
    assert job(hyperparameters={"sagemaker_mpi_enabled": "false"}).horovod is None


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"sagemaker_parameter_server_enabled": "true"}, "both MXNet's parameter server and MPI"),
        ({"sagemaker_mpi_num_of_processes_per_host": "0"}, "not a number of processes"),
        ({"sagemaker_mpi_num_processes": "5"}, "expected 1, 1 on each host"),
        ({"sagemaker_mpi_custom_mpi_options": '"-np 4"'}, "mpirun option -np: the number of"),
    ],
)
def test_fault_of_mpi(faults, extra, words):
    assert words in the(faults(hyperparameters={"sagemaker_mpi_enabled": "true", **extra}))


def test_hyperparameters_that_no_variable_can_hold(faults):
    """They would pass every check, and no program could be started with them (E2BIG)."""
    values = {f"parameter-{number}": "x" * 2000 for number in range(100)}
    fault = the(faults(hyperparameters=values))
    assert "131,072 bytes" in fault
    assert "input channel" in fault


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a": "not an address"}', '{"a": 5}', "x", '{"a": "::1"}']
)
def test_invalid_addresses(faults, text):
    fault = the(faults({"SAGEMAKER_MXNET_HOST_ADDRESSES": text}))
    assert "SAGEMAKER_MXNET_HOST_ADDRESSES: " in fault
    assert "IPv4" in fault


@pytest.mark.parametrize(("text", "level"), [("10", 10), ("INFO", 20), ("warning", 30), ("0", 0)])
def test_log_levels(job, text, level):
    assert job({"SM_LOG_LEVEL": text}).log_level == level


@pytest.mark.parametrize("text", ["loud", "-1", "1000", "2.5", "[]"])
def test_invalid_log_levels(faults, text):
    assert f"SM_LOG_LEVEL: not a log level: '{text}'" in the(faults({"SM_LOG_LEVEL": text}))


# Hosts.


@pytest.mark.parametrize(
    ("hosts", "current", "said"),
    [
        ([], "a", "no hosts"),
        (["a", "a"], "a", "duplicate host"),
        (["a", "b"], "c", "'c', is not among the hosts"),
        (["a", 5], "a", "not a host name: 5"),
        (["a", ""], "a", "not a host name: ''"),
        (["a", ".."], "a", "not a host name"),
        (["a", "b c"], "a", "not a host name"),
        (["a", "b/../c"], "a", "not a host name"),
        (["a", "b\n"], "a", "not a host name"),
        (["a", ["b"]], "a", "not a host name"),
        (["a", "algo..1"], "a", "not a host name: 'algo..1'"),
        (["a", ".algo"], "a", "not a host name"),
        (["a", "algo."], "a", "not a host name"),
        (["a", "x" * 64], "a", "not a host name"),
        (["a", "-b"], "a", "not a host name"),
        (["a", "b-"], "a", "not a host name"),
        (["a", "b.-c"], "a", "not a host name"),
        (["a", ".".join(["x" * 50] * 6)], "a", "not a host name"),
        (["a", "ä"], "a", "not a host name"),
        (["a", "fe80::1%eth0"], "a", "not a host name"),
    ],
)
def test_invalid_hosts(faults, hosts, current, said):
    for source, files in (
        ({"SM_HOSTS": hosts, "SM_CURRENT_HOST": current}, {}),
        ({}, {"resourceconfig": {"hosts": hosts, "current_host": current}}),
    ):
        fault = the(faults(source, **files))
        assert said in fault
        assert ("SM_HOSTS" if source else "resourceconfig.json: 'hosts'") in fault


@pytest.mark.parametrize("text", ["", "[", "a,b", "{}", "null", '"a"', "5", "NaN"])
def test_sm_hosts_that_is_not_a_list(faults, text):
    fault = the(faults({"SM_HOSTS": text}))
    assert "SM_HOSTS" in fault
    assert "expected a JSON list" in fault


@pytest.mark.parametrize("name", ["a..b", "a/b", "x" * 64, "a b"])
def test_an_invalid_name_of_this_host_is_one_fault(base, name):
    resolution = resolve(
        {
            "SAGEMAKER_BASE_DIR": str(base),
            "SM_USER_ENTRY_POINT": "train.py",
            "SM_CURRENT_HOST": name,
            "SM_HOSTS": '["a", "b"]',
        }
    )
    assert f"SM_CURRENT_HOST: not a host name: '{name}'" in the(resolution.faults)
    assert resolution.job.current_host == socket.gethostname(), "a name that files can have"


@pytest.mark.parametrize(
    "name", ["algo-1", "web_1", "x" * 63, "a.b.c", "10.0.0.1", "::1", "7", "A-1.svc.cluster.local"]
)
def test_host_names_as_dns_and_docker_have_them(job, name):
    resolved = job({"SM_HOSTS": [name], "SM_CURRENT_HOST": name})
    assert resolved.hosts == (name,)


@given(st.text(st.sampled_from("aA0-_.:"), min_size=1, max_size=70) | st.text(max_size=10))
@settings(deadline=None)
def test_a_host_name_that_is_valid_can_be_looked_up(name):
    """Python's resolver encodes a name with IDNA, which raises UnicodeError for a bad label."""
    try:
        HOST_NAME.convert(name)
    except ValueError:
        return
    if ":" not in name:
        name.encode("idna")
    assert os.path.basename(f"timeline-{name}.json") == f"timeline-{name}.json"


@pytest.mark.parametrize("name", ["a b", "eth0/1", "\udc80", "ä"])
def test_an_invalid_network_interface(faults, name):
    fault = the(faults(resourceconfig={"network_interface_name": name}))
    assert "not the name of a network interface" in fault


def test_hosts_without_this_machines_name(faults):
    assert "is not among the hosts" in the(faults({"SM_HOSTS": ["algo-1", "algo-2"]}))


# Malformed JSON and wrong types, anywhere.

JSON_VARIABLES = {
    "SM_HOSTS": list,
    "SM_HPS": dict,
    "SM_FRAMEWORK_PARAMS": dict,
    "SM_CHANNELS": list,
    "SM_RESOURCE_CONFIG": dict,
    "SM_INPUT_DATA_CONFIG": dict,
    "SM_USER_ARGS": list,
    "SM_TRAINING_ENV": dict,
    "SM_INSTANCE_GROUPS": list,
    "SM_TOPOLOGY": list,
}


@pytest.mark.parametrize("name", JSON_VARIABLES)
@pytest.mark.parametrize("text", ["{'a': 1}", "[1,", "\ufeff[]", '"x"', "1e999", "[" * 100_000])
def test_malformed_json_in_a_variable(faults, name, text):
    fault = the(faults({name: text}))
    assert f"{name}: " in fault
    assert f"expected a JSON {'object' if JSON_VARIABLES[name] is dict else 'list'}" in fault
    assert len(fault) < 400


@pytest.mark.parametrize("name", ["resourceconfig", "hyperparameters", "inputdataconfig"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "{'a': 1}"])
def test_malformed_json_in_a_file(faults, base, name, text):
    fault = the(faults(**{name: text}))
    assert str(base / "input" / "config" / f"{name}.json") in fault
    assert "expected a JSON object" in fault


def test_files_that_are_a_directory_or_not_utf8(base, faults):
    (base / "input" / "config" / "resourceconfig.json").mkdir()
    (base / "input" / "config" / "hyperparameters.json").write_bytes(b'{"a": "\xff"}')
    first, second = faults()
    assert "Is a directory" in first
    assert "not UTF-8" in second


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("resourceconfig", {"current_host": 5}),
        ("resourceconfig", {"network_interface_name": ["eth0"]}),
        ("resourceconfig", {"current_instance_type": {}}),
        ("resourceconfig", {"current_group_name": 1}),
        ("resourceconfig", {"instance_groups": {"a": 1}}),
        ("resourceconfig", {"instance_groups": [{"instance_group_name": "g"}]}),
        ("inputdataconfig", {"train": "File"}),
        ("inputdataconfig", {"tr/ain": {}}),
        ("inputdataconfig", {"..": {}}),
        ("hyperparameters", {"sagemaker_program": 5}),
        ("hyperparameters", {"sagemaker_submit_directory": []}),
        ("hyperparameters", {"sagemaker_region": 5}),
        ("hyperparameters", {"sagemaker_region": "eu west"}),
        ("hyperparameters", {"sagemaker_s3_output": "s3://"}),
        ("hyperparameters", {"sagemaker_job_name": {}}),
        ("hyperparameters", {"sagemaker_s3_output": "/local"}),
        ("hyperparameters", {"sagemaker_distribution_instance_groups": "g"}),
        ("hyperparameters", {"nul": "a\0b"}),
        ("hyperparameters", {"half": "\ud800"}),
        ("hyperparameters", {"deep": {"in": ["a\0b"]}}),
        ("hyperparameters", {"na=me": 1}),
    ],
)
def test_a_wrong_type_or_text_in_a_file(faults, file, content):
    program = None if "sagemaker_program" in content else "train.py"
    fault = the(faults(program=program, **{file: content}))
    assert f"{file}.json" in fault or "INPUT_DATA" in fault
    assert repr(next(iter(content))) in fault
    assert "expected" in fault
    fault.encode("utf-8")


def test_all_faults_are_reported_together(faults):
    told = faults(
        {"SM_HOSTS": "[", "SM_NUM_GPUS": "many", "SM_NUM_CPUS": "0"},
        program="../train.py",
        hyperparameters={"_ps_port": 0},
        inputdataconfig="[]",
    )
    text = "\n".join(told)
    assert len(told) == 6
    for name in ("SM_HOSTS", "SM_NUM_GPUS", "SM_NUM_CPUS", "SM_USER_ENTRY_POINT", "_ps_port"):
        assert name in text
    assert "inputdataconfig.json" in text


@pytest.mark.parametrize(
    ("variables", "files"),
    [
        ({"SM_HPS": '{"password": "hunter-2222"'}, {}),
        ({"SM_HPS": '["password", "hunter-2222"]'}, {}),
        ({"SM_TRAINING_ENV": '{"hps": {"api_key": "hunter-2222"'}, {}),
        ({}, {"hyperparameters": '{"db_password": "hunter-2222"'}),
        ({}, {"hyperparameters": {"api_key": "hunter-2222\0"}}),
        ({}, {"hyperparameters": {"_ps_port": "hunter-2222", "token": "hunter-2222"}}),
        ({"SM_NUM_GPUS": "hunter-2222", "MY_SECRET": "hunter-2222"}, {}),
        ({"SAGEMAKER_MXNET_JOB_KEY": "[", "SM_LOG_LEVEL": "https://me:hunter-2222@host"}, {}),
        ({"SM_HOSTS": [{"password": "hunter-2222"}], "SM_CURRENT_HOST": "a"}, {}),
        ({"SM_FRAMEWORK_PARAMS": {"sagemaker_mxnet_secret": "hunter-2222"}}, {}),
    ],
)
def test_no_fault_shows_a_secret(faults, variables, files):
    assert "hunter" not in "\n".join(faults(variables, **files))


# The user's code.


@pytest.mark.parametrize("value", [None, "", "null"])
def test_no_entry_point_at_all(faults, value):
    files = {} if value is None else {"hyperparameters": {"sagemaker_program": value}}
    fault = the(faults(program=None, **files))
    assert "sagemaker_program" in fault
    assert "SM_USER_ENTRY_POINT" in fault


@pytest.mark.parametrize(
    "name",
    [
        "missing.py",
        "/etc/passwd",
        "../code/train.py",
        "a/../train.py",
        ".",
        "lib",
        "train.ipynb",
        "-c",
        "a\nb",
        "x" * 999,
    ],
)
def test_invalid_entry_points(faults, base, name):
    (base / "code" / "lib").mkdir()
    fault = the(faults(program=name))
    assert "entry point" in fault
    assert "expected" in fault


def test_an_entry_point_may_begin_with_a_dot_or_lie_deeper(job, base):
    (base / "code" / "bin").mkdir()
    (base / "code" / "bin" / "my train.sh").touch()
    assert job(program="./train.py").entry_point == "train.py"
    assert job(program="bin/my train.sh").entry_point == "bin/my train.sh"


def test_a_missing_entry_point_lists_what_is_there(tmp_path):
    (tmp_path / "main.py").touch()
    with pytest.raises(CodeError, match=r"'train.py' cannot be found.*contains 'main.py'"):
        check_entry_point(str(tmp_path), "train.py")


def test_code_that_does_not_exist(tmp_path):
    with pytest.raises(CodeError, match="cannot be found"):
        check_entry_point(str(tmp_path / "code"), "train.py")


def test_an_entry_point_that_leaves_through_a_link(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "secret.py").touch()
    (tmp_path / "code" / "train.py").symlink_to(tmp_path / "secret.py")
    with pytest.raises(CodeError, match="outside"):
        check_entry_point(str(tmp_path / "code"), "train.py")


def test_a_link_inside_the_code_is_valid(tmp_path):
    (tmp_path / "real.py").touch()
    (tmp_path / "train.py").symlink_to("real.py")
    check_entry_point(str(tmp_path), "train.py")


def test_a_fifo_is_not_a_program(tmp_path):
    os.mkfifo(tmp_path / "train.py")
    with pytest.raises(CodeError, match="not a regular file"):
        check_entry_point(str(tmp_path), "train.py")


def test_the_module_of_a_package_need_not_be_a_file(tmp_path):
    (tmp_path / "setup.py").touch()
    check_entry_point(str(tmp_path), "trainer")
    with pytest.raises(CodeError):
        check_entry_point(str(tmp_path), "train.sh")


def test_code_in_s3_is_not_looked_for_here(job):
    assert job({"SM_MODULE_DIR": "s3://b/k.tar.gz"}, program="not-here.py").entry_point


@pytest.mark.parametrize(
    "place", ["/no/such/place", "https://host/x.tar.gz", "s3://bucket", "s3:///k"]
)
def test_invalid_sources_of_code(faults, place):
    fault = the(faults({"SM_MODULE_DIR": place}, program="x.py"))
    assert fault.startswith("SM_MODULE_DIR: ") and f"'{place}'" in fault
    assert "s3://bucket/key" in fault


def test_with_network_isolation_the_code_is_in_a_channel(job, base):
    archive = base / "input" / "data" / "code" / "sourcedir.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.touch()
    assert job().module_dir == str(base / "code")
    shutil.rmtree(base / "code")
    assert job().module_dir == str(archive)
    (base / "code").mkdir()
    assert job(program="not-yet-here.py").module_dir == str(archive)


# Directories.


@pytest.mark.parametrize("name", ["SM_MODEL_DIR", "SM_OUTPUT_DIR"])
def test_a_directory_that_is_a_file(faults, base, name):
    (base / "file").touch()
    for path in (base / "file", base / "file" / "below"):
        assert f"{path} cannot be written" in "\n".join(faults({name: str(path)}))


def test_a_directory_that_can_be_written_or_created(tmp_path):
    assert check_writable(str(tmp_path)) is None
    assert check_writable(str(tmp_path / "not" / "yet")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_dangling_link_is_not_a_directory(tmp_path):
    (tmp_path / "model").symlink_to(tmp_path / "gone")
    assert "is not a directory" in str(check_writable(str(tmp_path / "model")))


def test_a_read_only_file_system():
    assert "read-only" in str(check_writable("/proc/sys/kernel/nothing")) or (
        "cannot be written" in str(check_writable("/proc/sys/kernel/nothing"))
    )


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_read_only_mount_is_a_fault_for_root_too(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(target)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr}")
    try:
        assert "read-only file system" in str(check_writable(str(target / "deeper")))
    finally:
        subprocess.run(["umount", str(target)], check=True)


def as_nobody(check):
    """Return the result of a function in a child process that is not root."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            os.write(writer, str(check()).encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def others():
    """A directory that everybody can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield path


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="changes the user of a child process")
def test_directory_of_another_user(others):
    assert "user 65534 may not write" in as_nobody(lambda: check_writable(others))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="changes the user of a child process")
def test_an_entry_point_that_cannot_be_read(others):
    path = os.path.join(others, "train.py")
    with open(path, "w"):
        os.chmod(path, 0o600)
    assert "cannot be read" in as_nobody(lambda: check_entry_point(others, "train.py"))


# Channels, CPUs, GPUs, and jobs with faults.


def test_a_channel_in_pipe_mode_is_never_opened(job, base):
    data = base / "input" / "data"
    data.mkdir()
    os.mkfifo(data / "train_0")
    resolved = job(inputdataconfig={"train": {"TrainingInputMode": "Pipe"}})
    assert resolved.channels == {"train": str(data / "train")}


def test_a_channel_in_a_variable_alone(job):
    assert job({"SM_CHANNEL_TRAINING": "/data"}).channels == {"training": "/data"}


def test_a_channel_in_a_variable_keeps_the_case_of_the_file(job):
    resolved = job({"SM_CHANNEL_TRAIN": "/data"}, inputdataconfig={"Train": {}})
    assert resolved.channels == {"Train": "/data"}


def test_cpus_come_from_the_quota(tmp_path):
    membership = tmp_path / "membership"
    membership.write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert count_cpus(str(tmp_path), str(membership)) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert count_cpus(str(tmp_path), str(membership)) == len(os.sched_getaffinity(0))


def test_gpus_are_counted_by_their_devices(tmp_path):
    for name in ("nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm", "nvidia-caps", "null"):
        (tmp_path / name).touch()
    assert count_gpus(str(tmp_path)) == 2
    assert count_gpus(str(tmp_path / "gone")) == 0


def test_a_job_with_faults_has_a_host_and_an_output_directory(base):
    broken = {"SAGEMAKER_BASE_DIR": str(base), "SM_RESOURCE_CONFIG": "{", "SM_HOSTS": "["}

    def job(**more):
        resolution = resolve({**broken, **more})
        assert len(resolution.faults) > 1
        return resolution.job

    assert job().current_host == socket.gethostname()
    assert job(SM_CURRENT_HOST="algo-3").current_host == "algo-3"
    assert job().output_dir == str(base / "output")
    assert job(SM_OUTPUT_DIR="/elsewhere").output_dir == "/elsewhere"


def test_s3_in_capitals_is_the_same_place(job):
    assert job({"SM_MODULE_DIR": "S3://b/k.tar.gz"}).module_dir == "s3://b/k.tar.gz"


# Anything, anywhere.

SECRET = "hunter-2222"

VARIABLES = [
    *JSON_VARIABLES,
    "SM_CURRENT_HOST",
    "SM_NETWORK_INTERFACE_NAME",
    "SM_HP_LR",
    "SM_HP_SAGEMAKER_PROGRAM",
    "SM_CHANNEL_TRAIN",
    "SM_MODULE_DIR",
    "SM_USER_ENTRY_POINT",
    "SM_MODEL_DIR",
    "SM_OUTPUT_DATA_DIR",
    "SM_NUM_GPUS",
    "SM_NUM_CPUS",
    "SM_LOG_LEVEL",
    "SM_IS_HETERO",
    "SM_OUTPUT_DIR",
    "AWS_REGION",
    "TRAINING_JOB_NAME",
    "SAGEMAKER_SUBMIT_DIRECTORY",
    "SAGEMAKER_MXNET_ANYTHING",
    "SAGEMAKER_MXNET_CONTROL_FD",
    "SAGEMAKER_MXNET_PEER_TIMEOUT",
    "SAGEMAKER_MXNET_CONTROL_PORT",
    "SAGEMAKER_MXNET_HOST_ADDRESSES",
    "SAGEMAKER_MXNET_JOB_KEY",
]

KEYS = st.text(max_size=8) | st.sampled_from(
    [
        "hosts",
        "current_host",
        "network_interface_name",
        "instance_groups",
        "instance_group_name",
        "current_group_name",
        "sagemaker_program",
        "sagemaker_submit_directory",
        "sagemaker_parameter_server_enabled",
        "sagemaker_distribution_instance_groups",
        "sagemaker_mxnet_stop_grace",
        "sagemaker_mxnet_ps_port",
        "sagemaker_mpi_enabled",
        "sagemaker_mpi_num_of_processes_per_host",
        "sagemaker_mpi_num_processes",
        "sagemaker_mpi_custom_mpi_options",
        "sagemaker_region",
        "sagemaker_s3_output",
        "sagemaker_job_name",
        "sagemaker_mxnet_host_addresses",
        "_ps_port",
        "_ps_verbose",
        "train",
    ]
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["train.py", "algo-1", "algo..1", "True", "s3://b/k", "..", "/", "\udc80"])
)


def guarded(children):
    secret = st.dictionaries(st.sampled_from(["password", "api_key"]), st.just(SECRET))
    objects = st.dictionaries(KEYS, children, max_size=4)
    return st.lists(children, max_size=4) | st.builds(lambda a, b: {**a, **b}, objects, secret)


JSON = st.recursive(SCALARS, guarded, max_leaves=12)
TEXTS = JSON.map(json.dumps) | st.builds(
    lambda value, end: json.dumps(value)[:end], JSON, st.integers(0, 60)
)
# No process can have a NUL in its environment.
VARIABLE_TEXTS = TEXTS | st.text(
    st.characters(min_codepoint=1, exclude_categories=("Cs",)), max_size=20
)


@given(
    st.dictionaries(st.sampled_from(VARIABLES), VARIABLE_TEXTS, max_size=6),
    st.dictionaries(
        st.sampled_from(["resourceconfig", "hyperparameters", "inputdataconfig"]), TEXTS
    ),
)
@settings(max_examples=300, deadline=None)
def test_any_json_anywhere_gives_a_job_or_its_faults(variables, files):
    with tempfile.TemporaryDirectory() as base:
        config = os.path.join(base, "input", "config")
        os.makedirs(config)
        os.mkdir(os.path.join(base, "code"))
        with open(os.path.join(base, "code", "train.py"), "w"):
            pass
        for name, text in files.items():
            with open(os.path.join(config, f"{name}.json"), "w", encoding="utf-8") as file:
                file.write(text)
        environ = {"SAGEMAKER_BASE_DIR": base, **variables}
        resolution = resolve(environ)
        job = resolution.job
        assert list(job.hosts) == sorted(set(job.hosts))
        assert resolution == resolve(environ)
        assert describe(job)
        if resolution.faults:
            with pytest.raises(ConfigurationError) as caught:
                checked(resolution)
            assert SECRET not in str(caught.value)
            str(caught.value).encode("utf-8")
        else:
            assert job.current_host in job.hosts
            # Whatever passes can be handed to a program.
            for name, value in base_environment(job).items():
                assert "=" not in name
                assert b"\0" not in os.fsencode(f"{name}={value}")
            assert b"\0" not in os.fsencode("".join(script_arguments(job)))
