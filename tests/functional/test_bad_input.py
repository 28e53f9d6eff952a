"""Bad input: one error with the place, the value and what is expected; nothing is started."""

import io
import json
import os
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional, Sequence

import pytest

from tests.support.jobs import Ended, job


@dataclass(frozen=True)
class Fault:
    """One wrong thing.

    Attributes:
        told: what the error must contain: source, offending text, expectation.
        env: variables that make it.
        files: contents below the base directory that make it.
        prepare: anything else that makes it.
    """

    told: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], None] = lambda base: None


def variable(name: str, text: str, *told: str) -> Fault:
    return Fault((name, *told), env={name: text})


def config(name: str, text: str, *told: str) -> Fault:
    """An error in a configuration file, which is used if no variable is set."""
    unset = dict.fromkeys(("SM_HOSTS", "SM_CURRENT_HOST", "SM_HPS", "SM_FRAMEWORK_PARAMS"), "")
    return Fault((f"input/config/{name}", *told), unset, {f"input/config/{name}": text})


def _unlink_script(base: Path) -> None:
    (base / "code" / "train.py").unlink()


def _script_is_a_directory(base: Path) -> None:
    _unlink_script(base)
    (base / "code" / "train.py").mkdir()


def _script_links_outside(base: Path) -> None:
    _unlink_script(base)
    (base / "train.py").write_text("")
    (base / "code" / "train.py").symlink_to("../train.py")


def _fifo(path: str) -> Callable[[Path], None]:
    return lambda base: os.mkfifo(base / path)


FAULTS: Dict[str, Fault] = {
    # Malformed JSON, in a variable and in each file.
    "hps": variable("SM_HPS", '{"epochs": 5', '{"epochs": 5', "line 1", "a JSON object"),
    "hps-list": variable("SM_HPS", "[1, 2]", "[1, 2]", "a JSON object"),
    "hps-not-finite": variable(
        "SM_HPS", '{"rate": NaN}', "NaN is not a finite number", "a JSON object"
    ),
    "hosts-json": variable("SM_HOSTS", "algo-1,algo-2", "algo-1,algo-2", "a JSON list"),
    "channels-json": variable("SM_CHANNELS", "train", "'train'", "a JSON list"),
    "framework-json": variable("SM_FRAMEWORK_PARAMS", "{'a': 1}", "{'a': 1}", "a JSON object"),
    "user-args-json": variable("SM_USER_ARGS", "--epochs 5", "--epochs 5", "a JSON list"),
    **{
        f"{name}-fifo": Fault(
            ("cannot read /", f"input/config/{name}.json", "a FIFO", "a JSON object"),
            prepare=_fifo(f"input/config/{name}.json"),
        )
        for name in ("resourceconfig", "hyperparameters", "inputdataconfig")
    },
    "resource-file": config("resourceconfig.json", '{"hosts": [', '{"hosts": [', "a JSON object"),
    "hps-file": config("hyperparameters.json", "epochs: 5", "epochs: 5", "a JSON object"),
    "input-file": config("inputdataconfig.json", "[]", "[]", "a JSON object"),
    "empty-file": config("hyperparameters.json", "", "''", "a JSON object"),
    # Hosts.
    "stranger": variable("SM_CURRENT_HOST", "algo-7", "algo-7", '["algo-1"]', "SM_HOSTS"),
    "no-hosts": variable("SM_HOSTS", "[]", "no hosts", "at least this host"),
    "duplicate": variable("SM_HOSTS", '["algo-1", "algo-1"]', "duplicate", "'algo-1'"),
    "host-number": variable("SM_HOSTS", '["algo-1", 2]', "not a host name", "2"),
    "host-label": variable("SM_HOSTS", '["algo-1", "algo..2"]', "'algo..2'", "labels of 1 to 63"),
    "host-label-file": config(
        "resourceconfig.json",
        '{"hosts": ["algo-1", "algo..2"], "current_host": "algo-1"}',
        "'algo..2'",
        "labels of 1 to 63",
    ),
    "current-host": variable("SM_CURRENT_HOST", "algo..1", "'algo..1'", "labels of 1 to 63"),
    "no-hosts-file": config("resourceconfig.json", '{"hosts": []}', "no hosts", "at least this"),
    # Ports and settings.
    "port-text": Fault(("_ps_port", "eighty", "1 to 65535"), {"SM_HPS": '{"_ps_port": "eighty"}'}),
    "port-high": Fault(("_ps_port", "70000", "1 to 65535"), {"SM_HPS": '{"_ps_port": 70000}'}),
    "port-zero": Fault(("_ps_port", "0", "1 to 65535"), {"SM_HPS": '{"_ps_port": 0}'}),
    "port-negative": Fault(("_ps_port", "-1", "1 to 65535"), {"SM_HPS": '{"_ps_port": -1}'}),
    "setting": variable("SAGEMAKER_MXNET_STOP_GRACE", "soon", "'soon'", "seconds"),
    "setting-name": Fault(
        ("sagemaker_mxnet_peer_timout", "did you mean sagemaker_mxnet_peer_timeout"),
        {"SM_FRAMEWORK_PARAMS": '{"sagemaker_mxnet_peer_timout": 3}'},
    ),
    "setting-variable": variable(
        "SAGEMAKER_MXNET_PEER_TIMOUT", "3", "did you mean SAGEMAKER_MXNET_PEER_TIMEOUT?"
    ),
    "internal": variable("SAGEMAKER_MXNET_PS_PORT_GIVEN", "true", "is not a setting"),
    "mpi": Fault(
        ("mpirun option --hostfile", "sagemaker_mpi_custom_mpi_options"),
        {
            "SM_FRAMEWORK_PARAMS": '{"sagemaker_mpi_enabled": true, '
            '"sagemaker_mpi_custom_mpi_options": "--hostfile hosts"}'
        },
    ),
    "flag": Fault(
        ("sagemaker_parameter_server_enabled", "'maybe'", "true or false"),
        {"SM_FRAMEWORK_PARAMS": '{"sagemaker_parameter_server_enabled": "maybe"}'},
    ),
    "log-level": variable("SM_LOG_LEVEL", "loud", "'loud'", "an integer"),
    "gpus": variable("SM_NUM_GPUS", "two", "'two'", "an integer"),
    # The entry point.
    "no-entry-point": Fault(
        ("the entry point is not set", "sagemaker_program", "SM_USER_ENTRY_POINT"),
        {"SM_USER_ENTRY_POINT": ""},
    ),
    "missing": variable("SM_USER_ENTRY_POINT", "other.py", "'other.py'", "contains 'train.py'"),
    "outside": variable("SM_USER_ENTRY_POINT", "../train.py", "'../train.py'", "relative to"),
    "absolute": variable("SM_USER_ENTRY_POINT", "/bin/true", "'/bin/true'", "relative to"),
    "directory": Fault(("train.py", "a directory", "expected"), prepare=_script_is_a_directory),
    "link-outside": Fault(("train.py", "outside", "expected"), prepare=_script_links_outside),
    # Where the code comes from.
    "no-module-dir": variable("SM_MODULE_DIR", "/no/such/place", "'/no/such/place'", "tar.gz"),
    "https": variable("SM_MODULE_DIR", "https://host/code", "'https://host/code'", "s3://"),
    "no-s3-key": variable("SM_MODULE_DIR", "s3://bucket", "'s3://bucket'", "s3://bucket/key"),
    # Places that cannot be written. Permissions would not stop root, so files are in the way.
    "model-dir": variable("SM_MODEL_DIR", "/dev/null/model", "/dev/null/model", "a directory"),
    "data-dir": variable("SM_OUTPUT_DATA_DIR", "/dev/null", "/dev/null", "a directory"),
}


def ended(tmp_path: Path, fault: Fault) -> Ended:
    """Run a job with a fault to its end; check what must be so for all of them."""

    def spoil(number: int, base: Path) -> None:
        for path, text in fault.files.items():
            (base / path).write_text(text)
        fault.prepare(base)

    with job(tmp_path, 'say("the script runs")', env=fault.env, prepare=spoil) as cluster:
        (end,) = cluster.ended()
    assert end.status == 1, end.output
    assert not end.success
    assert "Traceback" not in end.output, "no traceback of ours"
    assert "the script runs" not in end.output
    assert not re.search(r"(worker|server|scheduler): started", end.output)
    return end


@pytest.mark.parametrize("name", FAULTS)
def test_is_rejected_before_anything_starts(tmp_path: Path, name: str) -> None:
    fault = FAULTS[name]
    end = ended(tmp_path, fault)
    assert re.match(r"[\w.-]+: entrypoint failed: configuration: ", end.cause), end.cause
    assert end.failure is not None
    for text in fault.told:
        assert text in end.failure
        assert text in end.output
    assert "started (process" not in end.output
    assert end.output.count("ERROR") == 1, "one error"
    assert len(end.failure.splitlines()) == 1, "one fault, on one line"


def test_an_invalid_list_of_hosts_ends_every_host_at_once(tmp_path: Path) -> None:
    """No host waits for the others: none knows who they are."""
    env = {"SM_HOSTS": '["algo-1", "algo..2"]'}
    with job(tmp_path, 'say("the script runs")', hosts=2, env=env) as cluster:
        for end, name in zip(cluster.ended(), ("algo-1", "algo-2")):
            assert end.status == 1
            assert end.cause.startswith(f"{name}: entrypoint failed: configuration: SM_HOSTS: ")


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    names = ("hps", "setting", "model-dir", "missing")
    env = {key: text for name in names for key, text in FAULTS[name].env.items()}
    end = ended(tmp_path, Fault((), env))
    assert end.failure is not None
    assert end.cause.endswith("configuration: 4 errors:")
    for name in names:
        for text in FAULTS[name].told:
            assert text in end.failure


def test_a_secret_in_an_invalid_value_is_not_shown(tmp_path: Path) -> None:
    env = {
        "SM_HPS": '{"db_password": "swordfish-1", "epochs": ',
        "SAGEMAKER_MXNET_STOP_GRACE": "swordfish-2",
        "MY_API_TOKEN": "swordfish-2",
    }
    end = ended(tmp_path, Fault((), env))
    assert "swordfish" not in f"{end.failure}{end.output}"
    assert "SM_HPS" in f"{end.failure}"


def _archive(base: Path, member: str) -> None:
    with tarfile.open(base / "source.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo(member)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"pass"))


def _corrupt(base: Path) -> None:
    _archive(base, "train.py")
    data = (base / "source.tar.gz").read_bytes()
    (base / "source.tar.gz").write_bytes(data[: len(data) // 2])


ARCHIVES = {
    "corrupt": (_corrupt, ("source.tar.gz",)),
    "no-archive": (lambda base: (base / "source.tar.gz").write_text("text"), ("source.tar.gz",)),
    "escapes": (lambda base: _archive(base, "../../train.py"), ("'train.py'",)),
    "absolute": (lambda base: _archive(base, "/tmp/train.py"), ("'train.py'", "'tmp'")),
    "other-file": (lambda base: _archive(base, "main.py"), ("'train.py'", "'main.py'")),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archive_is_rejected_before_the_script_starts(tmp_path: Path, name: str) -> None:
    """It has to be unpacked to be known, but nothing of it is run."""
    make, told = ARCHIVES[name]

    def prepare(base: Path) -> None:
        _unlink_script(base)
        make(base)

    env = {"SM_MODULE_DIR": str(tmp_path / "algo-1" / "source.tar.gz")}
    end = ended(tmp_path, Fault((), env, prepare=prepare))
    assert re.match(r"algo-1: (fetch|entrypoint) failed: ", end.cause)
    for text in (*told, "expected"):
        assert text in end.cause
    if name in ("corrupt", "no-archive"):
        assert not list((tmp_path / "algo-1" / "code").iterdir())
    assert not (tmp_path / "train.py").exists()


def test_other_code_in_the_way_is_not_run(tmp_path: Path) -> None:
    """The toolkits before this one would have run what is there."""
    env = {"SM_MODULE_DIR": str(tmp_path / "algo-1" / "source.tar.gz")}
    end = ended(tmp_path, Fault((), env, prepare=lambda base: _archive(base, "train.py")))
    assert "algo-1: fetch failed: the code directory" in end.cause
    assert "already contains files that are not from" in end.cause and "(train.py)" in end.cause


@pytest.mark.parametrize("place", ["/dev/null/output", "/dev/null"])
def test_an_output_directory_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    """The failure file cannot be written then; the log contains the message."""
    end = ended(tmp_path, Fault((), {"SM_OUTPUT_DIR": place}))
    assert end.failure is None
    assert f"cannot write {place}/failure" in end.output
    assert f"{place} cannot be written: " in end.output


def test_the_result_of_an_earlier_job_is_not_taken_for_this_one(tmp_path: Path) -> None:
    def succeeded_before(base: Path) -> None:
        (base / "output" / "success").touch()
        (base / "output" / "failure").write_text("stale")

    fault = FAULTS["hps"]
    end = ended(tmp_path, Fault((), fault.env, prepare=succeeded_before))
    assert "stale" not in (end.failure or "")


def test_a_base_directory_that_does_not_exist(tmp_path: Path) -> None:
    env = {"SAGEMAKER_BASE_DIR": str(tmp_path / "nowhere")}
    with job(tmp_path, "", env=env) as cluster:
        (end,) = cluster.ended()
    assert end.status == 1
    assert "train.py" in end.output
    told = (tmp_path / "nowhere" / "output" / "failure").read_text()
    assert "configuration: the entry point 'train.py' cannot be found" in told


def test_json_of_every_kind_in_one_variable(tmp_path: Path) -> None:
    """Valid values of every JSON type reach the script unchanged."""
    values = {"a": 1, "b": 1.5, "c": True, "d": None, "e": [1, "x"], "f": {"g": {}}, "h": "ä"}
    body = 'import json; say(json.dumps(json.loads(os.environ["SM_HPS"]), sort_keys=True))'
    env: Optional[Mapping[str, str]] = {"SM_HPS": json.dumps(values)}
    with job(tmp_path, body, env=env) as cluster:
        (end,) = cluster.ended()
    assert json.dumps(values, sort_keys=True) in end.output
    assert os.path.exists(tmp_path / "algo-1" / "output" / "success")
