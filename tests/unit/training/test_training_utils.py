"""Decisions of save before it imports MXNet: which host saves, and errors if that is unknown."""

import socket
import subprocess
import sys

import pytest

import sagemaker_mxnet_container.training_utils
from sagemaker_mxnet_training import training_utils
from sagemaker_mxnet_training.training_utils import save, scheduler_host


@pytest.fixture(autouse=True)
def outside_a_job(monkeypatch):
    monkeypatch.delenv("SM_CURRENT_HOST", raising=False)
    monkeypatch.delenv("SM_HOSTS", raising=False)


def test_the_scheduler_host_is_the_first_in_sorted_order():
    assert scheduler_host(["algo-1", "algo-2"]) == "algo-1"
    assert scheduler_host(("algo-2", "algo-1")) == "algo-1"


@pytest.mark.parametrize("hosts", [[], "algo-1"])
def test_no_list_of_hosts_has_no_scheduler_host(hosts):
    with pytest.raises(ValueError, match="hosts: expected a list"):
        scheduler_host(hosts)


@pytest.mark.parametrize(
    ("current", "hosts", "variables", "expected"),
    [
        ("b", ["a", "b"], {}, ("b", ["a", "b"])),
        (None, None, {"SM_CURRENT_HOST": "b", "SM_HOSTS": '["a", "b"]'}, ("b", ["a", "b"])),
        ("x", ["x", "y"], {"SM_CURRENT_HOST": "b", "SM_HOSTS": '["a", "b"]'}, ("x", ["x", "y"])),
        (None, ["a", "b"], {"SM_CURRENT_HOST": "b"}, ("b", ["a", "b"])),
        ("a", None, {"SM_HOSTS": '["a", "b"]'}, ("a", ["a", "b"])),
        (None, None, {"SM_HOSTS": '["a"]'}, ("a", ["a"])),
        (None, ["a"], {}, ("a", ["a"])),
        ("a", None, {}, ("a", ["a"])),
        (None, None, {}, (socket.gethostname(), [socket.gethostname()])),
    ],
)
def test_hosts_default_to_the_job_then_this_machine(
    monkeypatch, current, hosts, variables, expected
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert training_utils._hosts(current, hosts) == expected


@pytest.mark.parametrize("text", ["algo-1", '{"algo-1": 1}', "[1]", "", '"algo-1"'])
def test_error_quotes_invalid_hosts(monkeypatch, tmp_path, text):
    monkeypatch.setenv("SM_HOSTS", text)
    with pytest.raises(ValueError, match="SM_HOSTS: expected a JSON list") as caught:
        save(str(tmp_path), None)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("current", ["c", None])
def test_host_outside_the_hosts_is_an_error(tmp_path, current):
    with pytest.raises(ValueError, match=r"current_host: .*not in hosts, \['a', 'b'\]"):
        save(str(tmp_path), None, current, ["a", "b"])


def test_other_hosts_write_nothing_and_say_so_once(tmp_path, capsys):
    for _ in range(2):
        save(str(tmp_path / "model"), object(), "b", ["a", "b"])
    assert not (tmp_path / "model").exists()
    assert capsys.readouterr().out == "save: a, the first host, writes the model; b does not\n"


def test_only_rank_0_of_horovod_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    monkeypatch.setenv("HOROVOD_RANK", "1")
    save(str(tmp_path / "model"), object(), "a", ["a"])
    assert not (tmp_path / "model").exists()
    assert capsys.readouterr().out == "save: rank 0 writes the model; rank 1 does not\n"
    monkeypatch.setenv("HOROVOD_RANK", "0")
    with pytest.raises(TypeError):  # it goes on to write
        save(str(tmp_path / "model"), object(), "a", ["a"])


def test_importing_the_module_imports_no_mxnet():
    program = (
        "import sys; import sagemaker_mxnet_training.training_utils as t;"
        "t.scheduler_host(['a']); sys.exit('mxnet' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_the_names_of_the_old_toolkit_are_the_same_functions():
    assert sagemaker_mxnet_container.training_utils.save is save
    assert sagemaker_mxnet_container.training_utils.scheduler_host is scheduler_host
    from sagemaker_mxnet_container.training import main as alias
    from sagemaker_mxnet_training.training import main

    assert alias is main
