"""Every way in: the same job and the same endings, whoever starts it, however it is described."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Tuple

import pytest

from tests.support.jobs import job

Way = Tuple[Tuple[str, ...], Mapping[str, str]]


def outer(module: str) -> Way:
    """sagemaker-training's ``train``, as a custom image starts it."""
    program = "from sagemaker_training.cli.train import main; main()"
    return ("-c", program), {"SAGEMAKER_TRAINING_MODULE": f"{module}:main"}


WAYS: Dict[str, Way] = {
    "python-m": (("-m", "sagemaker_mxnet_training", "train"), {}),
    "sagemaker-training": outer("sagemaker_mxnet_training.training"),
    "alias": outer("sagemaker_mxnet_container.training"),
}

# sagemaker-training 5.1.4 needs resourceconfig.json before it calls us
# (``environment.read_resource_config``): variables alone describe a job to our own program only.
every_way = pytest.mark.parametrize(
    ("way", "described"), [("python-m", "variables"), *((way, "files") for way in WAYS)]
)


def started(
    tmp_path: Path, way: str, described: str, body: str, hosts: int = 1, **more: Any
) -> Any:
    """Start a job in one of the ways, described by variables or by SageMaker's files."""
    command, variables = WAYS[way]
    env = {**variables, **more.pop("env", {})}
    if described == "files":
        given = ("SM_HOSTS", "SM_CURRENT_HOST", "SM_USER_ENTRY_POINT", "SM_HPS")
        env = {**dict.fromkeys((*given, "SM_FRAMEWORK_PARAMS"), ""), **env}
        more["prepare"] = _config_files(hosts, bool(more.get("kvstore")))
    else:
        more["hyperparameters"] = {"epochs": 3}
    return job(tmp_path, body, hosts, command=command, env=env, **more)


def _config_files(hosts: int, server: bool) -> Callable[[int, Path], None]:
    names = [f"algo-{number}" for number in range(1, hosts + 1)]

    def write(number: int, base: Path) -> None:
        # The code directory stands for what SageMaker downloads there.
        documents = {
            "hyperparameters": {
                "epochs": "3",
                "sagemaker_program": '"train.py"',
                "sagemaker_submit_directory": json.dumps(str(base / "code")),
                "sagemaker_parameter_server_enabled": json.dumps(server),
            },
            "resourceconfig": {
                "current_host": f"algo-{number}",
                "hosts": names,
                "network_interface_name": "ethwe",
            },
            "inputdataconfig": {"train": {"TrainingInputMode": "File"}},
        }
        for name, content in documents.items():
            (base / "input" / "config" / f"{name}.json").write_text(json.dumps(content))

    return write


SEEN = 'say("seen", host, os.environ["SM_HPS"], os.environ["SM_HOSTS"], sys.argv[1:])'


@every_way
def test_success(tmp_path: Path, way: str, described: str) -> None:
    with started(tmp_path, way, described, SEEN, hosts=2) as cluster:
        for host, end in zip(cluster.hosts, cluster.ended()):
            assert (end.status, end.success, end.failure) == (0, True, None), end.output
            hosts = '["algo-1","algo-2"]' if described == "files" else '["algo-1", "algo-2"]'
            hps = '{"epochs":3}' if described == "files" else '{"epochs": 3}'
            assert f"seen {host.name} {hps} {hosts} ['--epochs', '3']" in end.output


@every_way
def test_failure(tmp_path: Path, way: str, described: str) -> None:
    """The script's own status and one cause, also where the outer program has other habits."""
    body = 'if host == "algo-2": sys.exit(3)\nwait_for_ever()'
    with started(tmp_path, way, described, body, hosts=2) as cluster:
        ends = cluster.ended()
    assert [end.status for end in ends] == [1, 3]
    for end in ends:
        assert end.cause == "algo-2: worker failed: sys.exit(3) (exit status 3)"
        assert not end.success


@every_way
def test_stop(tmp_path: Path, way: str, described: str) -> None:
    """A stop is neither a failure nor a success."""
    with started(tmp_path, way, described, 'say("up"); wait_for_ever()', hosts=2) as cluster:
        cluster.wait_for("^up")
        cluster[2].kill("entrypoint", signal.SIGTERM)
        for end in cluster.ended():
            assert (end.status, end.success, end.failure) == (143, False, None), end.output


@every_way
def test_kvstore(tmp_path: Path, way: str, described: str) -> None:
    """Real roles, and the names that scripts for the toolkit 4.x import."""
    body = """
    from sagemaker_mxnet_container.training_utils import save, scheduler_host
    init()
    push_and_pull()
    say(kv.num_workers, "workers", scheduler_host(["algo-2", "algo-1"]), callable(save))
    """
    with started(tmp_path, way, described, body, hosts=2, kvstore=True) as cluster:
        for end in cluster.ended():
            assert end.status == 0, end.output
            assert "2 workers algo-1 True" in end.output


@every_way
def test_a_job_that_cannot_be_described(tmp_path: Path, way: str, described: str) -> None:
    env = {"SM_CURRENT_HOST": "algo-9"}
    with started(tmp_path, way, described, "say('no')", env=env) as cluster:
        (end,) = cluster.ended()
    assert end.status == 1
    assert end.cause.startswith("algo-9: entrypoint failed: configuration: ")
    assert "this host, 'algo-9', is not among the hosts" in end.cause
    assert "Traceback" not in end.output


def test_the_outer_program_may_hold_processes_of_its_own(tmp_path: Path) -> None:
    """Processes that it started earlier, such as its S3 sync, are neither killed nor reaped."""
    program = (
        "import subprocess\n"
        "own = subprocess.Popen(['sh', '-c', 'exec sleep 60'])\n"
        "from sagemaker_mxnet_training.training import main\n"
        "main()\n"
        "assert own.poll() is None\n"
        "own.kill()\n"
        "assert own.wait() == -9\n"
        "print('still there', flush=True)\n"
    )
    with job(tmp_path, 'say("hello")', command=("-c", program)) as cluster:
        (end,) = cluster.ended()
    assert end.status == 0, end.output
    assert "still there" in end.output


# The command line.


def program(*words: str, cwd: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "sagemaker_mxnet_training", *words],
        cwd=cwd,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_console_script_is_the_same_program(tmp_path: Path) -> None:
    script = shutil.which("sagemaker-mxnet-training", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the package is not installed in this Python, only importable")
    with job(tmp_path, SEEN, command=(script, "train")) as cluster:
        (end,) = cluster.ended()
    assert (end.status, end.success) == (0, True), end.output
    version = subprocess.check_output([script, "--version"], text=True)
    assert version == program("--version", cwd=tmp_path).stdout


def test_a_first_word_that_is_no_subcommand_is_executed(tmp_path: Path) -> None:
    """It replaces the entrypoint: same arguments, same status, no process around it."""
    script = 'echo "$@" $PPID; exit 7'
    done = program("sh", "-c", script, "name", "two words", "--help", cwd=tmp_path)
    assert done.returncode == 7
    assert done.stdout.startswith("two words --help ")
    assert int(done.stdout.split()[-1]) == os.getpid()


def not_executable(tmp_path: Path) -> str:
    (tmp_path / "data").write_text("data")
    return "./data"


@pytest.mark.parametrize(
    ("word", "status", "reason"),
    [
        (lambda _: "no-such-command", 127, "No such file or directory"),
        (lambda _: "./no/such/file", 127, "No such file or directory"),
        (not_executable, 126, "Permission denied"),
        (str, 126, "Permission denied"),
        (lambda _: "trian", 127, "expected a command on PATH or one of: train, serve, local"),
        (lambda _: "", 127, "cannot execute ''"),
    ],
    ids=["missing", "missing-path", "not-executable", "directory", "typing-error", "empty"],
)
def test_a_command_that_cannot_be_executed(
    tmp_path: Path, word: Callable[[Path], str], status: int, reason: str
) -> None:
    """The statuses that shells and container engines give."""
    done = program(word(tmp_path), cwd=tmp_path)
    assert done.returncode == status
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], 2),
        (["--no-such-option"], 2),
        (["train", "surplus"], 2),
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["local", "--help"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_usage(tmp_path: Path, words: List[str], status: int) -> None:
    done = program(*words, cwd=tmp_path, SAGEMAKER_BASE_DIR=str(tmp_path))
    assert done.returncode == status
    assert "sagemaker-mxnet-training" in (done.stderr if status else done.stdout)
    assert not list(tmp_path.iterdir()), "wrong usage leaves nothing behind"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--prot", "80"], "unrecognized argument --prot (did you mean --port?)"),
        (["serve", "--prot=80"], "unrecognized argument --prot=80 (did you mean --port?)"),
        (["doctor", "--jsn"], "unrecognized argument --jsn (did you mean --json?)"),
        (["doctor", "model", "--json"], "argument --json: not allowed with argument DIR"),
        (["local", "--host", "2", "train.py"], "the script go after it) (did you mean --hosts?)"),
        (["report"], "the following arguments are required: RUN_DIR"),
        (["train", "train.py"], "on this machine: sagemaker-mxnet-training local SCRIPT)"),
        (["serve", "one", "two"], "unrecognized argument two"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_reported_in_one_line(
    tmp_path: Path, words: List[str], said: str
) -> None:
    done = program(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.endswith(f"; see sagemaker-mxnet-training {words[0]} --help\n")
    assert len(done.stderr.splitlines()) == 1


INTERRUPT = """
import os, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == os.environ["INTERRUPTED_IMPORT"]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize(
    ("words", "module", "said"),
    [
        (["train"], "sagemaker_mxnet_training.training", "the job was STOPPED"),
        (["local", "train.py"], "sagemaker_mxnet_training.local", ""),
        (["local", "train.py"], "sagemaker_mxnet_training.training", "job STOPPED"),
        (["report", "."], "sagemaker_mxnet_training.report", ""),
        (["doctor"], "sagemaker_mxnet_training.doctor", ""),
        (["--version"], "sagemaker_mxnet_cli.command_line", ""),
    ],
    ids=["train", "local", "host-of-local", "report", "doctor", "program"],
)
def test_ctrl_c_while_a_command_starts(
    tmp_path: Path, words: List[str], module: str, said: str
) -> None:
    """There is no traceback of what it interrupted."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT)
    (tmp_path / "train.py").write_text("print('the script runs')")
    done = program(
        *words,
        cwd=tmp_path,
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        INTERRUPTED_IMPORT=module,
        SAGEMAKER_BASE_DIR=str(tmp_path / "ml"),
        SM_MODULE_DIR=str(tmp_path),
        SM_USER_ENTRY_POINT="train.py",
    )
    assert done.returncode == 130
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "the script runs" not in done.stdout


# Importing.

LOOK = """
import os, sys
before, variables = set(sys.modules), dict(os.environ)
import {modules}
assert dict(os.environ) == variables
print(*sorted(set(sys.modules) - before))
"""


def imported(tmp_path: Path, modules: str) -> List[str]:
    """Import modules in an empty directory; return every module that this loaded."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", LOOK.format(modules=modules)],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "SAGEMAKER_BASE_DIR": str(tmp_path / "ml")},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert not list(tmp_path.iterdir()), "importing creates no file"
    return done.stdout.split()


def test_importing_the_package_does_nothing(tmp_path: Path) -> None:
    loaded = imported(tmp_path, "sagemaker_mxnet_training")
    assert set(loaded) <= {"sagemaker_mxnet_training", "sagemaker_mxnet_toolkit"}


def test_importing_the_entrypoint_loads_nothing_heavy(tmp_path: Path) -> None:
    modules = "sagemaker_mxnet_training.training, sagemaker_mxnet_training.local"
    heavy = {"mxnet", "numpy", "sagemaker_training", "boto3", "asyncio", "multiprocessing", "pip"}
    loaded = {name.partition(".")[0] for name in imported(tmp_path, modules)}
    assert not loaded & heavy
