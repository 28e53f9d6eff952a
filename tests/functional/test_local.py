"""``sagemaker-mxnet-training local``: real runs, started as from a terminal."""

import contextlib
import importlib.util
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import psutil
import pytest

from sagemaker_mxnet_training.local import ENTRYPOINT_PROGRAM
from tests.support import packages
from tests.support.jobs import eventually

BOUND = 60


class Terminal:
    """A directory with scripts in it, and the runs started from there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started: List[subprocess.Popen[str]] = []

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def start(self, *words: str, **variables: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "sagemaker_mxnet_training", "local", *words],
            cwd=self.directory,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def run(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*words, **variables)
        stdout, stderr = process.communicate(timeout=BOUND)
        self.nothing_is_left()
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    def nothing_is_left(self) -> None:
        eventually(lambda: not self.processes(), "the end of every process", 10)

    def processes(self) -> List[psutil.Process]:
        """Every living process of the runs started here."""
        found = []
        for process in psutil.process_iter():
            try:
                base = process.environ().get("SAGEMAKER_BASE_DIR", "")
                if base.startswith(str(self.directory)) and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def entrypoints(self, run: "subprocess.Popen[str]") -> Dict[str, psutil.Process]:
        """Return the entrypoint of each host by name; other processes may end meanwhile."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.ppid() == run.pid:
                    found[process.environ()["SM_CURRENT_HOST"]] = process
        return found

    def kill(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()
        for left in self.processes():
            left.kill()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.kill()


SHOW = """
import json, os, sys
names = ("SM_CURRENT_HOST", "SM_HOSTS", "SM_CHANNELS", "SM_CHANNEL_TRAIN", "SM_HPS", "MINE",
         "SM_MODEL_DIR", "SAGEMAKER_BASE_DIR", "DMLC_ROLE", "DMLC_NUM_WORKER", "LEFT_OVER",
         "SM_HP_STALE", "DMLC_STALE")
seen = {name: os.environ[name] for name in names if name in os.environ}
print(json.dumps({**seen, "argv": sys.argv[1:], "cwd": os.getcwd()}), flush=True)
with open(os.path.join(os.environ["SM_MODEL_DIR"], "made"), "w") as file:
    file.write("x")
"""


def seen(stdout: str) -> Dict[str, Dict[str, object]]:
    """Return the output of ``SHOW`` on each host."""
    lines = re.findall(r"^(algo-\d+) \| (\{.*\})$", stdout, re.MULTILINE)
    return {host: json.loads(text) for host, text in lines}


def summary(stdout: str) -> Dict[str, str]:
    """The lines without a host's prefix, by their first word."""
    lines = [line for line in stdout.splitlines() if not line.startswith("algo-")]
    return {line.split()[0]: line.strip() for line in lines}


def test_every_option(terminal: Terminal) -> None:
    terminal.write("source/train.py", SHOW)
    (terminal.directory / "digits").mkdir()
    words = ["--hosts", "2", "--no-parameter-server", "--channel", "train=digits"]
    words += ["--hyperparameter", "epochs=5", "--hyperparameter", "name=two words"]
    words += ["--hyperparameter", "equation=a=b", "--env", "MINE=a=b c"]
    words += ["--source-dir", "source", "--run-dir", "out/run", "train.py"]
    stale = {"SM_HP_STALE": "1", "DMLC_STALE": "1", "LEFT_OVER": "yes"}
    done = terminal.run(*words, **stale)
    assert done.returncode == 0, done.stderr
    run_dir = terminal.directory / "out" / "run"
    hosts = seen(done.stdout)
    assert sorted(hosts) == ["algo-1", "algo-2"]
    for name, host in hosts.items():
        base = run_dir / name
        assert host == {
            "SM_CURRENT_HOST": name,
            "SM_HOSTS": '["algo-1","algo-2"]',
            "SM_CHANNELS": '["train"]',
            "SM_CHANNEL_TRAIN": str(base / "input" / "data" / "train"),
            "SM_HPS": '{"epochs":5,"equation":"a=b","name":"two words"}',
            "MINE": "a=b c",
            "SM_MODEL_DIR": str(base / "model"),
            "SAGEMAKER_BASE_DIR": str(base),
            "LEFT_OVER": "yes",
            "argv": ["--epochs", "5", "--equation", "a=b", "--name", "two words"],
            "cwd": str(base / "code"),
        }
        laid_out = {path.name for path in base.iterdir()}
        assert laid_out == {"input", "code", "model", "output", "checkpoints"}
        assert (base / "input" / "data" / "train").resolve() == terminal.directory / "digits"
        assert (base / "output" / "success").exists()
        config = sorted(path.name for path in (base / "input" / "config").iterdir())
        wanted = ["hyperparameters.json", "inputdataconfig.json", "resourceconfig.json"]
        assert config == wanted
    told = summary(done.stdout)
    assert re.fullmatch(r"job SUCCEEDED after \d+\.\d s \(exit status 0\)", told["job"])
    assert re.fullmatch(r"phases  resolve \d+\.\d s, .*\d s", told["phases"])
    for host in ("algo-1", "algo-2"):
        assert f"  model   {run_dir}/{host}/model (made)\n" in done.stdout
    assert told["run"] == f"run     {run_dir}"
    assert "cause" not in told


def test_default_is_one_host_without_parameter_server(terminal: Terminal) -> None:
    """The source directory is the script's; the run directory is a new one below ``runs``."""
    terminal.write("source/train.py", SHOW)
    terminal.write("source/helper.txt", "helper")
    first, second = terminal.run("source/train.py"), terminal.run("source/train.py")
    for done in (first, second):
        assert done.returncode == 0, done.stderr
        assert list(seen(done.stdout)) == ["algo-1"]
        assert "DMLC_ROLE" not in done.stdout
    runs = sorted((terminal.directory / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert re.fullmatch(r"train-\d{8}-\d{6}-\d+", run.name)
        assert (run / "algo-1" / "code" / "helper.txt").read_text() == "helper"


def test_arguments_of_the_script_are_hyperparameters(terminal: Terminal) -> None:
    """As with torchrun. They are passed unchanged; the command's options may follow the script."""
    terminal.write("train.py", SHOW)
    words = ["--epochs", "5", "--lr=1e-3", "-b", "-1", "--hosts", "2", "--no-parameter-server"]
    words += ["--name", "two words", "--", "--hosts", "3", "--resume", "a"]
    done = terminal.run("--hyperparameter", "depth=2", "train.py", *words)
    assert done.returncode == 0, done.stderr
    hosts = seen(done.stdout)
    assert sorted(hosts) == ["algo-1", "algo-2"]
    arguments = ["-b", "-1", "--depth", "2", "--epochs", "5", "--hosts", "3", "--lr", "1e-3"]
    assert hosts["algo-1"]["argv"] == [*arguments, "--name", "two words", "--resume", "a"]
    values = json.loads(str(hosts["algo-1"]["SM_HPS"]))
    assert (values["epochs"], values["lr"], values["b"]) == (5, "1e-3", -1)


@pytest.mark.parametrize("command", ["local", "train", "serve"])
def test_help_has_an_example(command: str) -> None:
    words = [sys.executable, "-m", "sagemaker_mxnet_training", command, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "example" in done.stdout
    assert f"sagemaker-mxnet-training {command}" in done.stdout.partition("example")[2]


@pytest.mark.parametrize(
    "command", ["serve", "serve --model-dir", "export --onnx m", "doctor --model-dir"]
)
@pytest.mark.parametrize(
    ("directory", "told"),
    [
        ("runs/one", "a run directory, not a model directory; its model is in {}\n"),
        ("runs/one/algo-1", "a run directory, not a model directory; its model is in {}\n"),
        (
            "runs",
            "a directory of runs; expected a model directory, such as {}, runs/two/algo-1/model\n",
        ),
        ("nowhere", "there is no such directory in "),
        ("train.py", "not a directory; expected a model directory\n"),
    ],
)
def test_directory_that_is_not_that_of_a_model(
    terminal: Terminal, command: str, directory: str, told: str
) -> None:
    terminal.write("train.py", "")
    for run in ("one", "two"):
        for name in ("model", "output"):
            (terminal.directory / "runs" / run / "algo-1" / name).mkdir(parents=True)
    words = [sys.executable, "-m", "sagemaker_mxnet_training", *command.split(), directory]
    done = subprocess.run(
        words, cwd=terminal.directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    prefix = f"sagemaker-mxnet-training {command.partition(' ')[0]}: {directory}: "
    assert done.stderr.startswith(prefix)
    assert told.format("runs/one/algo-1/model") in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--parameter-server"], {"algo-1": "1"}),
        (["--hosts", "2"], {"algo-1": "2", "algo-2": "2"}),
    ],
    ids=["one-host-asked-for", "two-hosts-by-default"],
)
def test_parameter_server(terminal: Terminal, words: List[str], expected: Dict[str, str]) -> None:
    terminal.write("train.py", SHOW)
    done = terminal.run("--env", "SM_LOG_LEVEL=DEBUG", *words, "train.py")
    assert done.returncode == 0, done.stderr
    hosts = seen(done.stdout)
    assert {name: host["DMLC_NUM_WORKER"] for name, host in hosts.items()} == expected
    assert all(host["DMLC_ROLE"] == "worker" for host in hosts.values())
    assert "algo-1 scheduler: started" in done.stderr


WAIT = """
import os, sys, time
print("up", flush=True)
while not os.path.exists(sys.argv[-1]):
    time.sleep(0.02)
"""


def _roles(terminal: Terminal) -> Dict[Tuple[str, str], str]:
    found = {}
    for process in terminal.processes():
        try:
            variables = process.environ()
        except psutil.Error:
            continue
        key = (variables.get("SM_CURRENT_HOST", ""), variables.get("DMLC_ROLE", ""))
        found[key] = variables.get("SAGEMAKER_BASE_DIR", "")
    return found


def test_role_processes_carry_host_role_and_base_directory(terminal: Terminal) -> None:
    """In the environment they are started with, which anybody can look at."""
    terminal.write("train.py", WAIT)
    go = str(terminal.directory / "go")
    run = terminal.start("--hosts", "2", "--hyperparameter", f"go={go}", "train.py")
    wanted = {("algo-1", role) for role in ("scheduler", "server", "worker")}
    wanted |= {("algo-2", role) for role in ("server", "worker")}
    found = eventually(
        lambda: _roles(terminal) if wanted <= set(_roles(terminal)) else None, "all roles"
    )
    for host, role in wanted:
        assert os.path.basename(found[host, role]) == host
    Path(go).touch()
    run.communicate(timeout=BOUND)
    assert run.returncode == 0


def test_concurrent_runs_are_independent(terminal: Terminal) -> None:
    """Both hold their ports at the same time."""
    terminal.write("train.py", WAIT)
    go = str(terminal.directory / "go")
    words = ("--hosts", "2", "--hyperparameter", f"go={go}", "train.py")
    runs = [terminal.start(*words), terminal.start(*words)]

    def workers() -> int:
        return [p.environ().get("DMLC_ROLE") for p in terminal.processes()].count("worker")

    def both() -> bool:
        try:
            return workers() == 4
        except psutil.Error:
            return False

    eventually(both, "the workers of both runs")
    Path(go).touch()
    for run in runs:
        stdout, stderr = run.communicate(timeout=BOUND)
        assert run.returncode == 0, stderr
        assert "job SUCCEEDED" in stdout


def test_jobs_do_not_share_a_run_directory(terminal: Terminal) -> None:
    terminal.write("train.py", WAIT)
    terminal.write("other/train.py", "print('the script runs')")
    go = terminal.directory / "go"
    words = ("--run-dir", "run", "--hyperparameter", f"go={go}", "train.py")
    first = terminal.start(*words)
    _until_up(first, 1)
    second = terminal.start("--run-dir", "run", "other/train.py")
    _, stderr = second.communicate(timeout=BOUND)
    assert second.returncode == 2
    assert f"--run-dir {terminal.directory}/run: another job is using this directory" in stderr
    go.touch()
    stdout, _ = first.communicate(timeout=BOUND)
    assert first.returncode == 0, stdout
    assert terminal.run(*words).returncode == 0


def test_a_run_directory_stays_in_use_until_the_hosts_have_ended(terminal: Terminal) -> None:
    terminal.write("train.py", "import signal\nsignal.signal(15, lambda *_: None)" + WAIT)
    go = terminal.directory / "go"
    words = ("--run-dir", "run", "--hyperparameter", f"go={go}", "train.py")
    first = terminal.start(*words)
    _until_up(first, 1)
    first.kill()
    first.communicate(timeout=BOUND)
    second = terminal.start(*words)
    _, stderr = second.communicate(timeout=BOUND)
    assert second.returncode == 2
    assert "another job is using this directory" in stderr
    go.touch()
    terminal.nothing_is_left()
    assert terminal.run(*words).returncode == 0


def test_modules_in_the_working_directory_are_not_imported(terminal: Terminal) -> None:
    terminal.write("elsewhere/train.py", "print('the script runs')")
    terminal.write("enum.py", "raise SystemExit('this is not the standard module')")
    done = subprocess.run(
        [Path(sys.executable).with_name("sagemaker-mxnet-training"), "local", "elsewhere/train.py"],
        cwd=terminal.directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the script runs" in done.stdout


def test_only_the_working_directory_is_not_searched(terminal: Terminal) -> None:
    """With PYTHONSAFEPATH (CPython 3.11) the first entry of the path is one of PYTHONPATH."""
    terminal.write("first/sagemaker_mxnet_cli.py", "def main(): print('of PYTHONPATH')")
    done = subprocess.run(
        [sys.executable, "-c", ENTRYPOINT_PROGRAM],
        env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(terminal.directory / "first")},
        capture_output=True,
        text=True,
        check=True,
        timeout=BOUND,
    )
    assert done.stdout == "of PYTHONPATH\n"


HEAR = """
import os, signal, sys, time

def stop(number, frame):
    print("heard", signal.Signals(number).name, flush=True)
    sys.exit({status})

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
while True:
    time.sleep(0.02)
"""


def test_stop_of_one_host_is_a_stop_of_the_job(terminal: Terminal) -> None:
    """The log and the report agree for every signal and status."""
    terminal.write("train.py", HEAR.format(status=0))
    run = terminal.start("--hosts", "2", "--no-parameter-server", "train.py")
    _until_up(run, 2)
    terminal.entrypoints(run)["algo-1"].terminate()
    stdout, _ = run.communicate(timeout=BOUND)
    assert summary(stdout)["job"].startswith("job STOPPED")
    assert run.returncode == 143


def test_killed_entrypoint_is_a_failure(terminal: Terminal) -> None:
    """Not a requested stop."""
    terminal.write("train.py", HEAR.format(status=0))
    run = terminal.start("train.py")
    _until_up(run, 1)
    terminal.entrypoints(run)["algo-1"].kill()
    stdout, _ = run.communicate(timeout=BOUND)
    told = summary(stdout)
    assert told["job"].startswith("job FAILED")
    assert told["cause"].startswith("cause   algo-1: entrypoint failed: died unexpectedly")
    assert "the kernel's log may have it" in told["next"]
    assert run.returncode == 137


def _until_up(run: "subprocess.Popen[str]", hosts: int) -> str:
    return _until(run, "| up\n", hosts)


def _until(run: "subprocess.Popen[str]", text: str, times: int = 1) -> str:
    assert run.stdout is not None
    read = ""
    while read.count(text) < times:
        line = run.stdout.readline()
        assert line, f"ended early: {read}{run.stderr.read() if run.stderr else ''}"
        read += line
    return read


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_stops_everything(terminal: Terminal, number: signal.Signals) -> None:
    terminal.write("train.py", HEAR.format(status=0))
    run = terminal.start("--hosts", "2", "--no-parameter-server", "train.py")
    _until_up(run, 2)
    run.send_signal(number)
    stdout, stderr = run.communicate(timeout=BOUND)
    terminal.nothing_is_left()
    told = summary(stdout)
    assert re.match(r"job STOPPED after", told["job"]), stdout + stderr
    assert "cause" not in told
    heard = "SIGTERM" if number is signal.SIGHUP else number.name
    assert stdout.count(f"| heard {heard}\n") == 2
    assert run.returncode == 128 + number, "also of a script that left with status 0"


def test_ctrl_c_of_a_script_without_a_handler(terminal: Terminal) -> None:
    """As a shell tells it: 128 + 2."""
    terminal.write("train.py", WAIT)
    run = terminal.start("--hyperparameter", "go=/nowhere", "train.py")
    _until_up(run, 1)
    run.send_signal(signal.SIGINT)
    stdout, _ = run.communicate(timeout=BOUND)
    assert run.returncode == 130
    assert "job STOPPED" in stdout


AT_IMPORT = """
import os, pathlib, time
if "SM_CURRENT_HOST" in os.environ and not pathlib.Path("go").exists():
    pathlib.Path("up-" + os.environ["SM_CURRENT_HOST"]).touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.02)
"""


def test_ctrl_c_before_hosts_can_take_it(terminal: Terminal) -> None:
    """They stop the job once they can, instead of dying with a traceback of their imports."""
    terminal.write("train.py", "print('the script runs')")
    terminal.write("site/sitecustomize.py", AT_IMPORT)
    run = terminal.start("--hosts", "2", "train.py", PYTHONPATH=f"{terminal.directory}/site")
    hosts = ("algo-1", "algo-2")
    for host in hosts:
        eventually(lambda host=host: (terminal.directory / f"up-{host}").exists(), f"{host}")
    run.send_signal(signal.SIGINT)
    for process in terminal.processes():
        eventually(lambda pid=process.pid: _is_pending(pid, signal.SIGINT), "the signal")
    terminal.write("go", "")
    stdout, stderr = run.communicate(timeout=BOUND)
    assert run.returncode == 130
    assert "job STOPPED" in stdout
    assert "Traceback" not in stdout + stderr
    assert "the script runs" not in stdout
    terminal.nothing_is_left()


def test_second_ctrl_c_kills(terminal: Terminal) -> None:
    terminal.write("train.py", HEAR.format(status=0).replace("sys.exit(0)", "pass"))
    run = terminal.start("--hosts", "2", "--no-parameter-server", "train.py")
    _until_up(run, 2)
    run.send_signal(signal.SIGINT)
    _until(run, "heard SIGINT\n")
    run.send_signal(signal.SIGINT)
    stdout, _ = run.communicate(timeout=BOUND)
    terminal.nothing_is_left()
    assert run.returncode == 137
    assert "job STOPPED" in stdout


def test_second_ctrl_c_kills_a_host_that_missed_the_first(terminal: Terminal) -> None:
    """Two signals of one kind that a process has not taken yet are one to it."""
    terminal.write("train.py", HEAR.format(status=0).replace("sys.exit(0)", "pass"))
    run = terminal.start("--hosts", "2", "--no-parameter-server", "train.py")
    _until_up(run, 2)
    busy = terminal.entrypoints(run)["algo-2"]
    busy.suspend()
    run.send_signal(signal.SIGINT)
    _until(run, "algo-1 | heard SIGINT\n")
    run.send_signal(signal.SIGINT)
    eventually(lambda: _is_pending(busy.pid, signal.SIGTERM), "the second signal")
    busy.resume()
    run.communicate(timeout=BOUND)
    terminal.nothing_is_left()
    assert run.returncode == 137


def _is_pending(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^ShdPnd:\s*(\w+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def test_a_killed_local_leaves_nothing(terminal: Terminal) -> None:
    """Its hosts are asked to stop by the kernel."""
    terminal.write("train.py", HEAR.format(status=0))
    run = terminal.start("--hosts", "2", "train.py")
    _until_up(run, 2)
    run.kill()
    run.communicate(timeout=BOUND)
    terminal.nothing_is_left()


@pytest.mark.parametrize(
    ("body", "status", "cause"),
    [
        ("sys.exit(3)", 3, "sys.exit(3) (exit status 3)"),
        ("raise ValueError('boom')", 1, "ValueError: boom (exit status 1)"),
        ("os.kill(os.getpid(), 9)", 137, "killed by SIGKILL (exit status 137)"),
    ],
)
def test_failure_of_one_host_is_the_jobs(
    terminal: Terminal, body: str, status: int, cause: str
) -> None:
    text = f"import os, sys, time\nif os.environ['SM_CURRENT_HOST'] == 'algo-2':\n    {body}\n"
    terminal.write("train.py", text + "time.sleep(600)\n")
    done = terminal.run("--hosts", "3", "--no-parameter-server", "train.py")
    assert done.returncode == status
    told = summary(done.stdout)
    assert told["cause"] == f"cause   algo-2: worker failed: {cause}"
    assert re.fullmatch(rf"job FAILED after \d+\.\d s \(exit status {status}\)", told["job"])


@pytest.mark.parametrize(
    ("words", "script"),
    [
        (["source/pkg/train.py", "--source-dir", "source"], "pkg/train.py"),
        (["pkg/train.py", "--source-dir", "source"], "pkg/train.py"),
        (["{}/source/pkg/train.py", "--source-dir", "{}/source"], "pkg/train.py"),
        (["source/pkg/train.py"], "train.py"),
        (["source/train.sh"], "train.sh"),
    ],
    ids=["path-into-it", "path-in-it", "absolute", "without", "shell"],
)
def test_script_inside_the_source_directory(
    terminal: Terminal, words: List[str], script: str
) -> None:
    terminal.write("source/pkg/train.py", "import os\nprint(os.environ['SM_USER_ENTRY_POINT'])")
    terminal.write("source/train.sh", "echo $SM_USER_ENTRY_POINT\n")
    done = terminal.run(*(word.format(terminal.directory) for word in words))
    assert done.returncode == 0, done.stderr
    assert f"algo-1 | {script}\n" in done.stdout


@pytest.mark.parametrize("name", ["mine.main", "mine/main.py"])
def test_module_of_a_package(terminal: Terminal, name: str) -> None:
    for path, data in packages.source_files(terminal.directory, "other", "1").items():
        terminal.write(f"source/{path}", "").write_bytes(data)
    terminal.write("source/setup.py", "")
    terminal.write("source/mine/main.py", "import os\nprint(os.environ['SM_USER_ENTRY_POINT'])\n")
    done = terminal.run("--source-dir", "source", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"algo-1 | {name}\n" in done.stdout


@pytest.mark.parametrize("name", ["mine.py", "mine/main", "mine.main-1", "train.sh"])
def test_missing_file_of_a_package(terminal: Terminal, name: str) -> None:
    terminal.write("source/setup.py", "")
    done = terminal.run("--source-dir", "source", name)
    assert done.returncode == 2
    assert f"{name}: no such file in " in done.stderr


def test_lines_are_whole_and_carry_their_host(terminal: Terminal) -> None:
    """Streams stay apart, a progress bar's states become lines, a last line may lack its end."""
    body = """
import os, sys
print("ä" * 70000)
sys.stdout.write("10%\\r20%\\rdone\\r\\nlast")
print("problem\\n", end="", file=sys.stderr)  # one write: a line of the log may come between two
sys.stdout.flush()
os.write(1, b"\\xff\\n")
os.write(1, b"no end")
"""
    terminal.write("train.py", body)
    process = subprocess.run(
        [sys.executable, "-m", "sagemaker_mxnet_training", "local", "--hosts", "2",
         "--no-parameter-server", "train.py"],
        cwd=terminal.directory, capture_output=True, timeout=BOUND, check=True,
    )  # fmt: skip
    lines = process.stdout.split(b"\n")
    for host in (b"algo-1", b"algo-2"):
        own = [line[len(host) + 3 :] for line in lines if line.startswith(host + b" | ")]
        assert own == ["ä".encode() * 70000, b"10%", b"20%", b"done", b"last\xff", b"no end"]
        assert host + b" | problem\n" in process.stderr
        assert host + b" | [sagemaker-mxnet-training]" in process.stderr


def test_colours_on_a_terminal_only(terminal: Terminal) -> None:
    terminal.write("train.py", "print('hello')")
    assert "\x1b" not in terminal.run("train.py").stdout
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "sagemaker_mxnet_training", "local", "train.py"]
    with subprocess.Popen(words, cwd=terminal.directory, stdout=follower, stderr=follower) as run:
        os.close(follower)
        shown = b""
        while True:
            try:
                block = os.read(leader, 65536)
            except OSError:  # how a terminal says that nobody writes to it any more
                break
            if not block:
                break
            shown += block
    os.close(leader)
    assert run.returncode == 0
    assert b"\x1b[36malgo-1 | \x1b[0mhello\r\n" in shown


def test_closed_output(terminal: Terminal) -> None:
    """``local ... | head -1``: the job runs to its end."""
    terminal.write("train.py", SHOW + "\nfor _ in range(10000): print('x' * 100)\n")
    run = terminal.start("--run-dir", "run", "train.py")
    assert run.stdout is not None and run.stderr is not None
    run.stdout.readline()
    run.stdout.close()
    run.stderr.close()
    run.wait(BOUND)
    assert (terminal.directory / "run" / "algo-1" / "output" / "success").exists()
    terminal.nothing_is_left()


def test_second_run_in_the_same_directory(terminal: Terminal) -> None:
    """It replaces the code, and does not report the old result."""
    (terminal.directory / "digits").mkdir()
    words = ("--run-dir", "run", "--channel", "train=digits", "train.py")
    terminal.write("train.py", "raise ValueError('boom')")
    assert terminal.run(*words).returncode == 1
    terminal.write("train.py", "print('fine')")
    done = terminal.run(*words)
    assert done.returncode == 0
    assert "algo-1 | fine" in done.stdout
    assert "cause" not in summary(done.stdout)


def test_requirements_are_installed_for_the_run_only(terminal: Terminal) -> None:
    """The script's python and pip are the run's own, and see the caller's packages."""
    source = terminal.directory / "source"
    script = "set -e\npython -c 'import tiny, numpy'\npip install --no-index ./other-1.0-*.whl\n"
    terminal.write("source/train.sh", script + "python -c 'import other, sys; print(sys.prefix)'\n")
    terminal.write("source/requirements.txt", "./tiny-1.0-py3-none-any.whl\n")
    for name in ("tiny", "other"):
        packages.wheel(source, name, "1.0")
    done = terminal.run("--run-dir", "run", "source/train.sh", PATH=os.defpath)
    assert done.returncode == 0, done.stdout + done.stderr
    own = terminal.directory / "run" / "venv"
    assert f"algo-1 | {own}\n" in done.stdout
    assert f"requirements are installed for this run only, in {own}; the packages" in done.stderr
    assert not own.exists()
    assert not [each for each in ("tiny", "other") if importlib.util.find_spec(each)]


def test_success_without_a_model_is_one_warning(terminal: Terminal) -> None:
    """Also of a script that defines ``train()`` as MXNet's first containers called it."""
    terminal.write("train.py", "def train(hyperparameters, **_):\n    return 'a network'\n")
    done = terminal.run("--hosts", "2", "--run-dir", "run", "train.py")
    assert done.returncode == 0
    (warning,) = re.findall("WARNING: .*", done.stdout + done.stderr)
    assert f"without a model: {terminal.directory}/run/algo-1/model is empty on all" in warning
    assert "training_utils.save(os.environ['SM_MODEL_DIR'], model)" in warning
    assert "train.py defines train() but does not call it" in warning


def test_model_of_another_host_is_listed(terminal: Terminal) -> None:
    body = """
import os
from pathlib import Path
if os.environ["SM_CURRENT_HOST"] == "algo-2":
    Path(os.environ["SM_MODEL_DIR"], "made").touch()
"""
    terminal.write("train.py", body)
    done = terminal.run("--hosts", "3", "--run-dir", "run", "train.py")
    lines = [line for line in done.stdout.splitlines() if line.startswith("  model ")]
    run = terminal.directory / "run"
    assert lines == [
        f"  model   {run}/algo-1/model (empty)",
        f"  model   {run}/algo-2/model (made)",
    ]
    assert "without a model" not in done.stdout + done.stderr


def test_failed_rerun_does_not_list_the_earlier_model_as_its_own(terminal: Terminal) -> None:
    words = ("--run-dir", "run", "train.py")
    terminal.write("train.py", SHOW)
    model = f"model   {terminal.directory}/run/algo-1/model"
    assert summary(terminal.run(*words).stdout)["model"] == f"{model} (made)"
    terminal.write("train.py", "raise ValueError('boom')")
    told = summary(terminal.run(*words).stdout)
    assert told["model"] == f"{model} (nothing new; of an earlier run: made)"
    terminal.write("train.py", SHOW)
    assert summary(terminal.run(*words).stdout)["model"] == f"{model} (made)"


def test_rerun_with_fewer_hosts_is_reported_alone(terminal: Terminal) -> None:
    terminal.write("train.py", "print('fine')")
    terminal.run("--run-dir", "run", "--hosts", "2", "--no-parameter-server", "train.py")
    terminal.run("--run-dir", "run", "train.py")
    report = [sys.executable, "-m", "sagemaker_mxnet_training", "report", "run"]
    done = subprocess.run(
        report, cwd=terminal.directory, capture_output=True, text=True, check=False
    )
    assert "hosts   1: algo-1" in done.stdout, done.stderr


LIST = """
import os
for name in sorted(os.listdir(".")):
    if not name.startswith("."):
        print(name, os.path.islink(name), sorted(os.listdir(name)) if os.path.isdir(name) else "")
"""


def test_runs_and_channels_next_to_the_script_are_not_copied(terminal: Terminal) -> None:
    """A run does not contain earlier runs. A channel next to the script is still found."""
    terminal.write("source/train.py", LIST)
    terminal.write("source/out/needed.txt", "needed")
    terminal.write("source/digits/rows.csv", "1,2")
    words = ("--channel", "train=source/digits", "source/train.py")
    for run in ("source/first", "source/second", "source/out/third", "source/out/fourth"):
        done = terminal.run("--run-dir", run, *words)
        assert done.returncode == 0, done.stderr
        lines = [line[9:] for line in done.stdout.splitlines() if line.startswith("algo-1 | ")]
        listed = ["digits True ['rows.csv']", "out False ['needed.txt']", "train.py False "]
        assert lines == listed
        assert "MB" not in done.stderr


def test_hosts_next_to_the_script_are_not_copied(terminal: Terminal) -> None:
    """A run directory that is the script's own, as it could be chosen once."""
    terminal.write("source/train.py", LIST)
    terminal.write("source/algo-2/input/config/resourceconfig.json", "{}")
    terminal.write("source/algo-1/output/success", "")
    done = terminal.run("--run-dir", "source", "source/train.py")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"algo-1 \| (.*)", done.stdout) == ["train.py False "]


def test_large_copy_is_logged(terminal: Terminal) -> None:
    terminal.write("source/train.py", LIST)
    terminal.write("source/digits/rows.csv", "1" * 2_000_000)
    done = terminal.run("source/train.py")
    source = terminal.directory / "source"
    assert f"copied 2.0 MB from {source}, 2.0 MB of it in digits; " in done.stderr
    assert "MB" not in terminal.run("--channel", "a=source/digits", "source/train.py").stderr


def test_lines_of_ours_are_few(terminal: Terminal) -> None:
    """Start, join, end; the rest at a level of the log. A failure is logged in full."""
    terminal.write("train.py", "print('a line of the script')")
    words = ("--hosts", "2", "--no-parameter-server", "--hyperparameter", "epochs=5", "train.py")
    done = terminal.run(*words)
    ours = [line for line in done.stderr.splitlines() if "sagemaker-mxnet-training]" in line]
    assert len(ours) <= 8, done.stderr
    for text in ("starting train.py on algo-1, algo-2;", "epochs = 5", "joined", "SUCCEEDED"):
        assert text in done.stderr
    details = terminal.run("--env", "SM_LOG_LEVEL=DEBUG", *words).stderr
    for text in ("entry point: train.py from", "worker: started (process", "worker: ended with"):
        assert text in details
        assert text not in done.stderr


@pytest.mark.parametrize("stream", ["1", "2", "0"])
def test_closed_stream(terminal: Terminal, stream: str) -> None:
    """``>&-``: the job runs, and the toolkit's files do not reuse the stream's number."""
    terminal.write("train.py", SHOW)
    shell = f'exec "$0" -m sagemaker_mxnet_training local --run-dir run train.py {stream}>&-'
    words = ["bash", "-c", shell, sys.executable]
    done = subprocess.run(
        words, cwd=terminal.directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert ("job SUCCEEDED" in done.stdout) == (stream != "1")
    assert (terminal.directory / "run/algo-1/model/made").read_text() == "x"


@pytest.mark.parametrize(
    "command", ["local train.py", "serve --model-dir model", "export m --onnx o"]
)
def test_removed_working_directory(tmp_path: Path, command: str) -> None:
    shell = f'cd "$1" && rmdir "$1" && "$0" -m sagemaker_mxnet_training {command}'
    words = ["bash", "-c", shell, sys.executable, str(tmp_path / "gone")]
    (tmp_path / "gone").mkdir()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


HALF = """
import os
import mxnet as mx
from sagemaker_mxnet_training.checkpoints import Checkpoint
net = mx.gluon.nn.Dense(1)
net.initialize()
trainer = mx.gluon.Trainer(net.collect_params(), "adam")
checkpoint = Checkpoint(net, trainer, every=1)
for epoch in checkpoint.epochs(2):
    if os.environ.get("FAIL") == str(epoch):
        raise ValueError("boom")
    for batch in checkpoint.batches([mx.nd.ones((1, 2))] * 3):
        with mx.autograd.record():
            loss = net(batch)
        loss.backward()
        trainer.step(1)
        print("did step", checkpoint.step, flush=True)
"""


def steps(done: "subprocess.CompletedProcess[str]") -> List[int]:
    return [int(number) for number in re.findall(r"did step (\d+)$", done.stdout, re.MULTILINE)]


def test_only_resume_continues_an_earlier_run(terminal: Terminal) -> None:
    terminal.write("train.py", HALF)
    once = {"FAIL": "1", "SAGEMAKER_MXNET_MAX_RESTARTS": "0"}
    failed = terminal.run("--run-dir", "run", "train.py", **once)
    assert steps(failed) == [0, 1, 2]
    run_dir = terminal.directory / "run"
    expected = f"resume  the same command with --run-dir {run_dir} --resume"
    assert summary(failed.stdout)["resume"] == expected
    resumed = terminal.run("--run-dir", "run", "--resume", "train.py")
    assert "starting afresh" not in failed.stderr + resumed.stderr
    again = steps(resumed)
    for path in (run_dir / "algo-1" / "checkpoints").glob("*.zip"):
        path.write_bytes(path.read_bytes()[:-300])
    refused = terminal.run("--run-dir", "run", "--resume", "train.py")
    assert refused.returncode == 2
    assert f"--resume: {run_dir} has no whole checkpoint (checkpoint-" in refused.stderr
    assert "no --resume, to start afresh" in refused.stderr
    assert again in ([1, 2, 3, 4, 5], [2, 3, 4, 5], [3, 4, 5])  # the last one written in time
    afresh = terminal.run("--run-dir", "run", "train.py")
    assert "starting afresh: checkpoint-" in afresh.stderr
    assert steps(afresh) == [0, 1, 2, 3, 4, 5]
    assert "resume" not in summary(afresh.stdout)


def test_a_script_that_is_a_link_out_of_its_directory(terminal: Terminal) -> None:
    script = terminal.write("shared/train.py", "print('the script runs')")
    (terminal.directory / "mine").mkdir()
    (terminal.directory / "mine" / "train.py").symlink_to(script)
    done = terminal.run("mine/train.py")
    assert done.returncode == 2
    assert f"outside the source directory {terminal.directory}/mine (it is a link to" in done.stderr
    assert "set --source-dir to a directory that has the script" in done.stderr


def test_settings_of_our_own(terminal: Terminal) -> None:
    terminal.write("train.py", "pass")
    done = terminal.run(
        *("--hyperparameter", "sagemaker_mxnet_stop_grace=7", "train.py"),
        SAGEMAKER_MXNET_DRAIN_TIMEOUT="8",
    )
    assert "stop_grace = 7.0" in done.stderr
    assert "drain_timeout = 8.0" in done.stderr


def test_relative_pythonpath(terminal: Terminal) -> None:
    """It is relative to where the command was started, on every host."""
    terminal.write("library/only_here.py", "WORD = 'found'")
    terminal.write("train.py", "import only_here; print(only_here.WORD)")
    path = os.pathsep.join(filter(None, ["library", os.environ.get("PYTHONPATH")]))
    done = terminal.run("--hosts", "2", "--no-parameter-server", "train.py", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "algo-1 | found" in done.stdout
    assert "algo-2 | found" in done.stdout


def test_closed_stdout(terminal: Terminal) -> None:
    """The job continues, and its exit status is unchanged."""
    terminal.write("train.py", "open('finished', 'w').close()")
    process = terminal.start("--run-dir", "run", "train.py")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=BOUND)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert (terminal.directory / "run/algo-1/code/finished").exists()


# Wrong usage: exit status 2, everything that is wrong at once, nothing started, nothing left.

RANKS = """
import os, sys
rank = os.environ["HOROVOD_RANK"]
os.write(1, f"out {rank}\\nhalf a line {rank}".encode())
os.write(2, f"err {rank}\\n".encode())
assert os.environ["OMP_NUM_THREADS"] == "1"
"""


def test_output_of_horovod_workers_is_labelled(terminal: Terminal) -> None:
    """By their ranks; no script here uses Horovod, of which there is only the place."""
    terminal.write("other/horovod/__init__.py", "")
    terminal.write("other/horovod/mxnet/mpi_lib.so", "")
    terminal.write("ranks.py", RANKS)
    words = ("--hosts", "2", "--processes-per-host", "2", "--env", "SM_NUM_CPUS=2", "ranks.py")
    done = terminal.run(*words, PYTHONPATH=str(terminal.directory / "other"))
    assert done.returncode == 0, done.stderr
    for host, ranks in (("algo-1", (0, 1)), ("algo-2", (2, 3))):
        for rank in ranks:
            assert f"{host} rank {rank} | out {rank}\n" in done.stdout
            assert f"{host} rank {rank} | half a line {rank}\n" in done.stdout
            assert f"{host} rank {rank} | err {rank}\n" in done.stderr


WRONG: Dict[str, Tuple[List[str], List[str]]] = {
    "no-script": ([], ["SCRIPT"]),
    "hosts-zero": (["--hosts", "0", "train.py"], ["--hosts 0", "1 to 64"]),
    "hosts-text": (["--hosts", "two", "train.py"], ["--hosts two", "1 to 64"]),
    "hosts-negative": (["--hosts=-1", "train.py"], ["--hosts -1", "1 to 64"]),
    "hosts-many": (["--hosts", "65", "train.py"], ["--hosts 65", "1 to 64"]),
    "both": (["--parameter-server", "--no-parameter-server", "train.py"], ["not allowed with"]),
    "processes": (
        ["--processes-per-host", "none", "train.py"],
        ["--processes-per-host none", "1 to 64"],
    ),
    "processes-and-server": (
        ["--processes-per-host", "2", "--parameter-server", "train.py"],
        ["--processes-per-host, --parameter-server", "one of them"],
    ),
    "channel-missing": (["--channel", "train=/no/such", "train.py"], ["train=/no/such", "no such"]),
    "channel-file": (["--channel", "train=train.py", "train.py"], ["train=train.py", "directory"]),
    "channel-form": (["--channel", "digits", "train.py"], ["--channel digits: expected NAME=DIR"]),
    "channel-empty": (["--channel", "digits=", "train.py"], ["--channel digits=", "DIRECTORY"]),
    "channel-name": (["--channel", "a/b=digits", "train.py"], ["--channel a/b", "letters"]),
    "channel-twice": (
        ["--channel", "a=digits", "--channel", "a=.", "train.py"],
        ["--channel a", "duplicate"],
    ),
    "hyperparameter-form": (
        ["--hyperparameter", "epochs", "train.py"],
        ["--hyperparameter epochs"],
    ),
    "env-form": (["--env", "MINE", "train.py"], ["--env MINE", "NAME=VALUE"]),
    "env-no-name": (["--env", "=x", "train.py"], ["--env", "NAME=VALUE"]),
    "script-missing": (["other.py"], ["other.py", "no such file"]),
    "script-mistyped": (
        ["./trian.py"],
        ["./trian.py: no such file", "0 (did you mean train.py?)"],
    ),
    "script-directory": (["digits"], ["digits", "a directory"]),
    "source-dir-missing": (["--source-dir", "/no/such", "train.py"], ["/no/such", "no such dir"]),
    "outside": (["--source-dir", "digits", "train.py"], ["train.py", "outside", "digits"]),
    "option": (["--no-such-option", "train.py"], ["--no-such-option"]),
    "script-option-first": (["--epochs", "5", "train.py"], ["--epochs", "go after it"]),
    "script-flag": (["train.py", "--fast", "--epochs", "5"], ["--fast", "expected a value"]),
    "script-flag-last": (["train.py", "--fast"], ["--fast", "expected a value"]),
    "script-positional": (["train.py", "swordfish"], ["the script's arguments: expected --NAME"]),
    "script-two-values": (
        ["train.py", "--layers", "64", "32"],
        ["--layers: expected --NAME VALUE"],
    ),
    "script-dashes": (["train.py", "-lr", "1"], ["-lr: ", "as --lr; write --lr, and let"]),
    "script-dash": (["train.py", "--a", "1"], ["--a: ", "as -a; write -a, and let the script"]),
    "script-twice": (["train.py", "--a", "1", "--hyperparameter", "a=2"], ["duplicate"]),
    "run-dir": (["--run-dir", "train.py", "train.py"], ["--run-dir", "train.py", "directory"]),
    "run-dir-empty": (["--run-dir", "", "train.py"], ["--run-dir", "empty"]),
    "source-dir-empty": (["--source-dir", "", "train.py"], ["--source-dir", "empty"]),
    "run-dir-below-a-file": (
        ["--run-dir", "/dev/null/run", "train.py"],
        ["/dev/null/run", "directory"],
    ),
    "run-dir-of-somebody": (["--run-dir", ".", "train.py"], ["--run-dir", "contains other files"]),
    "resume-what": (["--resume", "train.py"], ["--resume", "expected --run-dir"]),
    "resume-nothing": (
        ["--resume", "--run-dir", "digits", "train.py"],
        ["--resume: ", "digits has no checkpoints", "--run-dir"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage(terminal: Terminal, name: str) -> None:
    words, told = WRONG[name]
    terminal.write("train.py", "print('the script runs')")
    (terminal.directory / "digits").mkdir()
    done = terminal.run(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    for text in told:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert "started (process" not in done.stderr
    assert sorted(path.name for path in terminal.directory.iterdir()) == ["digits", "train.py"]


def test_something_else_in_the_run_directory(terminal: Terminal) -> None:
    terminal.write("train.py", "print('the script runs')")
    terminal.write("run/algo-1/output/success", "")
    terminal.write("run/algo-2/model", "not a directory")
    done = terminal.run("--hosts", "2", "--run-dir", "run", "train.py")
    assert done.returncode == 2
    assert "run/algo-2/model" in done.stderr
    assert "Traceback" not in done.stderr
    assert "started (process" not in done.stderr


def test_all_usage_errors_are_reported_together(terminal: Terminal) -> None:
    done = terminal.run("--hosts", "0", "--channel", "a=/no/such", "--env", "X", "other.py")
    assert done.returncode == 2
    for text in ("--hosts 0", "--channel a=/no/such", "--env X", "other.py"):
        assert text in done.stderr


@pytest.mark.parametrize("word", ["training", "=digits", "my data"])
def test_channel_without_a_name_or_directory_is_one_fault(terminal: Terminal, word: str) -> None:
    terminal.write("train.py", "")
    done = terminal.run("--channel", word, "train.py")
    assert done.returncode == 2
    assert done.stderr.count("--channel") == done.stderr.count("expected NAME=DIRECTORY") == 1


def test_wrong_usage_shows_no_secret(terminal: Terminal) -> None:
    """A forgotten name, or a forgotten ``=``, leaves a value where a name should be."""
    terminal.write("train.py", "")
    done = terminal.run("--env", "=swordfish-1", "--hyperparameter", "=swordfish-2", "train.py")
    assert done.returncode == 2
    assert "swordfish" not in done.stderr


def _malformed(terminal: Terminal) -> List[str]:
    return ["--env", "SM_NUM_GPUS=two", "train.py"]


def _bad_setting(terminal: Terminal) -> List[str]:
    return ["--hyperparameter", "sagemaker_mxnet_stop_grace=soon", "train.py"]


@pytest.mark.parametrize(("make", "told"), [(_malformed, "SM_NUM_GPUS"), (_bad_setting, "'soon'")])
def test_a_job_that_cannot_be_described(
    terminal: Terminal, make: Callable[[Terminal], List[str]], told: Optional[str]
) -> None:
    terminal.write("train.py", "print('the script runs')")
    done = terminal.run("--hosts", "2", *make(terminal))
    assert done.returncode == 1
    assert f"{told}" in summary(done.stdout)["cause"]
    assert "the script runs" not in done.stdout


def test_stopped_job_with_checkpoints_is_not_a_success(terminal: Terminal) -> None:
    """Its script exits with status 0, but ``local ... && deploy`` must not deploy."""
    terminal.write("train.py", HALF.replace("range", "").replace("* 3)", "* 100000)"))
    run = terminal.start("--run-dir", "run", "train.py")
    _until(run, "did step 3\n")
    run.send_signal(signal.SIGINT)
    stdout, _ = run.communicate(timeout=BOUND)
    assert run.returncode == 130
    told = summary(stdout)
    assert told["job"].startswith("job STOPPED")
    assert told["resume"].endswith("--resume")


CHANNELS = {
    "key": 'import os\nos.listdir(os.environ["SM_CHANNEL_TRAIN"])\n',
    "none": 'import os\nos.path.join(os.environ.get("SM_CHANNEL_TRAIN"), "rows.csv")\n',
}


@pytest.mark.parametrize("name", CHANNELS)
def test_mistyped_channel_names_those_that_exist(terminal: Terminal, name: str) -> None:
    terminal.write("train.py", CHANNELS[name])
    terminal.write("digits/rows.csv", "1,2")
    words = ("--channel", "training=digits", "--channel", "test=digits", "train.py")
    told = summary(terminal.run(*words).stdout)["cause"]
    assert "SM_CHANNEL_TRAIN is not set: the job's channels are: test, training" in told


PARSE = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
try:
    print("ratio", 1 / parser.parse_args().epochs)
except ZeroDivisionError:
    raise SystemExit(4)
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--epochs", "ten"], "sys.exit(2): argument --epochs: invalid int value: 'ten'"),
        (["--epoch_s", "10"], "sys.exit(2): unrecognized arguments: --epoch_s 10"),
        (["--epochs", "0"], "sys.exit(4) after ZeroDivisionError: division by zero"),
    ],
)
def test_exit_reason_is_reported(terminal: Terminal, words: List[str], told: str) -> None:
    terminal.write("train.py", PARSE)
    done = terminal.run("train.py", *words)
    status = int(told[9])
    assert done.returncode == status
    cause = f"cause   algo-1: worker failed: {told} (exit status {status})"
    assert summary(done.stdout)["cause"] == cause


def test_breakpoint_on_a_terminal(terminal: Terminal) -> None:
    terminal.write("train.py", "answer = 6 * 7\nbreakpoint()\nprint('went on')\n")
    pid, leader = pty.fork()
    if pid == 0:
        os.chdir(terminal.directory)
        words = [sys.executable, "-m", "sagemaker_mxnet_training", "local", "train.py"]
        os.execv(sys.executable, words)
    shown = b""
    answers = [b"p answer + 1\n", b"continue\n"]
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:  # how a terminal says that nobody writes to it any more
            break
        shown += block
        if answers and shown.count(b"(Pdb) ") == 3 - len(answers):
            os.write(leader, answers.pop(0))
    _, status = os.waitpid(pid, 0)
    os.close(leader)
    assert status == 0, shown
    assert b"43\r\n" in shown
    assert b"went on" in shown


def test_trainers_that_share_a_kvstore_are_told_what_to_pass(terminal: Terminal) -> None:
    source = """
import mxnet as mx
kv = mx.kv.create("device")
for _ in range(2):
    net = mx.gluon.nn.Dense(1, in_units=2)
    net.initialize(ctx=[mx.cpu(0), mx.cpu(1)])
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", kvstore=kv)
    trainer._init_kvstore()
    trainer._init_params()
"""
    terminal.write("train.py", source)
    told = summary(terminal.run("train.py").stdout)
    assert "worker failed: mxnet.base.MXNetError: Check failed: " in told["cause"]
    assert "trainers cannot share a kvstore: pass its name to each" in told["cause"]


def test_uneven_batches_are_not_resumed_from(terminal: Terminal) -> None:
    """The checkpoint of the end would leave out the batches that the other host still has."""
    source = """
import os
import mxnet as mx
from mxnet import autograd, gluon
from sagemaker_mxnet_training.checkpoints import Checkpoint
net = gluon.nn.Dense(1, in_units=2)
net.initialize()
trainer = gluon.Trainer(net.collect_params(), "sgd", kvstore="dist_sync")
checkpoint = Checkpoint(net, trainer)
count = 3 if os.environ["SM_CURRENT_HOST"] == "algo-1" else 5
for epoch in checkpoint.epochs(1):
    for batch in checkpoint.batches([mx.nd.ones((1, 2))] * count):
        with autograd.record():
            loss = net(batch).sum()
        loss.backward()
        trainer.step(1)
"""
    terminal.write("train.py", source)
    done = terminal.run("--hosts", "2", "train.py", SAGEMAKER_MXNET_STALL_TIMEOUT="3")
    told = summary(done.stdout)
    assert done.returncode == 1
    assert "after algo-1 had finished" in told["cause"]
    assert "same number of batches" in told["next"]
    assert "resume" not in told
