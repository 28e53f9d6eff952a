"""A job's contract with its user: files, statuses, and the environment of the script."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any, Mapping, Tuple

import pytest

from tests.support import packages
from tests.support.jobs import Ended, eventually, job

# The entrypoint with its stdout in a file of its own: ``Host`` mixes it with stderr.
APART = """
import os
from sagemaker_mxnet_cli.command_line import main
os.dup2(os.open("stdout", os.O_WRONLY | os.O_CREAT), 1)
os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT), 2)
main(["train"])
"""
OUR_LINE = re.compile(rb"\[sagemaker-mxnet-training\].*\n")


def apart(tmp_path: Path, body: str, **more: Any) -> Tuple[Ended, bytes, bytes]:
    """Run a script as a job; return its end, stdout, and stderr without the toolkit's lines."""
    with job(tmp_path, body, command=("-c", APART), **more) as cluster:
        (end,) = cluster.ended()
    base = tmp_path / "algo-1"
    stderr = OUR_LINE.sub(b"", (base / "stderr").read_bytes())
    return end, (base / "stdout").read_bytes(), stderr


def ran(tmp_path: Path, body: str, **more: Any) -> str:
    """Run a script as a job to its success; return what it printed."""
    end, stdout, stderr = apart(tmp_path, body, **more)
    assert (end.status, end.success, end.failure) == (0, True, None), stderr.decode()
    return stdout.decode()


# Section 4: files and statuses.


@pytest.mark.parametrize(
    ("body", "status", "cause"),
    [
        ("sys.exit(3)", 3, "sys.exit(3) (exit status 3)"),
        ("sys.exit(-1)", 255, "sys.exit(-1) (exit status 255)"),
        ('sys.exit("no data")', 1, "exited with the message 'no data' (exit status 1)"),
        ("os._exit(5)", 5, "exited without an exception (exit status 5)"),
        ("raise KeyError('x')", 1, "KeyError: 'x' (exit status 1)"),
        ("os.kill(os.getpid(), 9)", 137, "killed by SIGKILL (exit status 137)"),
        ("os.kill(os.getpid(), 15)", 143, "killed by SIGTERM (exit status 143)"),
        ("os.abort()", 134, "killed by SIGABRT (exit status 134)"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt (exit status 130)"),
    ],
)
def test_status_and_cause(tmp_path: Path, body: str, status: int, cause: str) -> None:
    """The script's own status, as a shell gives it, and the root cause first."""
    with job(tmp_path, body) as cluster:
        (end,) = cluster.ended()
    assert (end.status, end.success) == (status, False)
    assert end.cause == f"algo-1: worker failed: {cause}"


ABORT = r"""
os.write(2, b"terminate called after throwing an instance of 'std::runtime_error'\n")
os.write(2, b"  what():  no space for bananas\n")
os.abort()
"""


@pytest.mark.parametrize(
    ("body", "cause", "remedy"),
    [
        ("import numpy; numpy.int", "AttributeError: module 'numpy'", "NumPy 1.24 removed np.int"),
        ("os.kill(os.getpid(), 7)", "killed by SIGBUS", "--shm-size=2g"),
        (ABORT, "killed by SIGABRT, after printing: std::runtime_error: no space for bananas", ""),
    ],
    ids=["numpy", "SIGBUS", "C++"],
)
def test_failure_file_names_the_remedy(tmp_path: Path, body: str, cause: str, remedy: str) -> None:
    with job(tmp_path, body) as cluster:
        (end,) = cluster.ended()
    assert end.cause.startswith(f"algo-1: worker failed: {cause}")
    assert remedy in end.cause


@pytest.mark.parametrize("body", ["pass", "sys.exit()", "sys.exit(0)", "raise SystemExit(None)"])
def test_success_file_is_empty_and_alone(tmp_path: Path, body: str) -> None:
    with job(tmp_path, body) as cluster:
        (end,) = cluster.ended()
    assert end.status == 0
    output = tmp_path / "algo-1" / "output"
    assert sorted(path.name for path in output.iterdir()) == ["data", "intermediate", "success"]
    assert (output / "success").read_bytes() == b""


def test_long_failure_reason_begins_with_the_cause(tmp_path: Path) -> None:
    """SageMaker keeps 1,024 characters."""
    body = 'raise ValueError("the learning rate is negative\\n" + "x" * 100000)'
    with job(tmp_path, body) as cluster:
        (end,) = cluster.ended()
    assert end.failure is not None
    assert end.failure.startswith(
        "algo-1: worker failed: ValueError: the learning rate is negative"
    ), end.failure[:200]
    assert len(end.failure) < 32768


def test_failure_file_is_plain_text(tmp_path: Path) -> None:
    body = """
    sys.stderr.write("\\x1b[33mwarning\\x1b[0m\\n")
    raise ValueError("\\x1b[31mbad\\x1b[0m \\x07 batch")
    """
    end, _, stderr = apart(tmp_path, body)
    assert end.failure is not None and "\x1b" not in end.failure and "\x07" not in end.failure
    assert end.cause == "algo-1: worker failed: ValueError: bad \\x07 batch (exit status 1)"
    assert b"\x1b[31mbad" in stderr, "the script's own output is as it was"


def test_failure_file_of_the_script_is_kept(tmp_path: Path) -> None:
    body = """
    path = os.path.join(os.environ["SM_OUTPUT_DIR"], "failure")
    with open(path, "w") as file:
        file.write("my own words")
    sys.exit(4)
    """
    with job(tmp_path, body) as cluster:
        (end,) = cluster.ended()
    assert (end.status, end.failure) == (4, "my own words")
    assert "sys.exit(4)" in end.output, "the log says what happened all the same"


def test_output_data_names_carry_the_host(tmp_path: Path) -> None:
    """The files there are merged over all hosts at the end."""
    with job(tmp_path, "pass", 2) as cluster:
        cluster.ended()
    names = [
        path.name
        for host in ("algo-1", "algo-2")
        for path in (tmp_path / host / "output/data").iterdir()
    ]
    assert names == ["timeline-algo-1.json", "timeline-algo-2.json"]


def test_only_the_first_host_saves_the_model(tmp_path: Path) -> None:
    """Only the script touches the checkpoints."""
    body = """
    import mxnet as mx
    from sagemaker_mxnet_training.training_utils import save
    net = mx.gluon.nn.Dense(2, in_units=2)
    net.initialize()
    net.hybridize()
    net(mx.nd.zeros((1, 2)))
    save(os.environ["SM_MODEL_DIR"], net)
    """
    with job(tmp_path, body, 2) as cluster:
        assert [end.status for end in cluster.ended()] == [0, 0]
    names = [sorted(path.name for path in (h.base / "model").iterdir()) for h in cluster.hosts]
    assert names == [["model-0000.params", "model-shapes.json", "model-symbol.json"], []]
    assert not any(list((host.base / "checkpoints").iterdir()) for host in cluster.hosts)


SECRETS = {
    "hyperparameter": "swordfish-0001",
    "variable": "swordfish-0002",
    "url": "swordfish-0003",
    "nested": "swordfish-0004",
}


@pytest.mark.parametrize("fails", [True, False])
def test_secrets_are_redacted(tmp_path: Path, fails: bool) -> None:
    """Neither in the toolkit's log, result files or timelines, nor to ``ps`` by its processes.

    The script itself gets its hyperparameters as arguments, secret or not, and prints what it
    likes: those are its promises to keep.
    """
    values = {
        "db_password": SECRETS["hyperparameter"],
        "mirror": f"https://me:{SECRETS['url']}@index.example/simple",
        "service": {"api_key": SECRETS["nested"]},
    }
    body = f"""
    say("up")
    while not os.path.exists("{tmp_path}/go"):
        time.sleep(0.05)
    everything = os.environ["SM_HPS"] + os.environ.get("MY_API_TOKEN", "")
    if host == "algo-2" and {fails}:
        raise ValueError("bad: " + everything)
    """

    def per_host(number: int) -> Mapping[str, str]:
        # The second host's own: the first can only keep it if it never hears it.
        return {"MY_API_TOKEN": SECRETS["variable"]} if number == 2 else {}

    with job(
        tmp_path, body, 2, parameter_server=True, hyperparameters=values, per_host=per_host
    ) as cluster:
        cluster.wait_for("^up")
        workers = {host.pid("worker") for host in cluster.hosts}
        shown = [
            " ".join(process.cmdline())
            for process in cluster.processes()
            if process.pid not in workers
        ]
        (tmp_path / "go").touch()
        ends = cluster.ended()
    assert len(shown) >= 5, "entrypoints, watchdogs, scheduler and servers"
    told = [*shown, *(end.failure or "" for end in ends)]
    for host in cluster.hosts:
        told += [line for line in host.lines if "[sagemaker-mxnet-training]" in line]
        told += [path.read_text() for path in (host.base / "output/data").iterdir()]
    assert all(bool(end.failure) is fails for end in ends)
    for name, secret in SECRETS.items():
        assert not [text for text in told if secret in text], name


# Section 5: the user script.

LOOK = """
import json, os, sys, threading
print(json.dumps({
    "name": __name__,
    "file": __file__,
    "globals": sorted(globals()),
    "argv": sys.argv[1:],
    "path": sys.path[0],
    "directory": os.getcwd(),
    "main": sys.modules["__main__"].__dict__ is globals(),
    "thread": threading.current_thread() is threading.main_thread(),
    "package": __package__,
    "spec": __spec__,
    "optimize": sys.flags.optimize,
    "buffered": [sys.stdout.line_buffering, sys.stdout.write_through],
}))
"""


def plain(script: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a script without us."""
    return subprocess.run(
        [sys.executable, "-u", str(script), *arguments],
        cwd=script.parent,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("entry_point", ["train.py", "pkg/sub dir/träin.py"])
def test_script_sees_what_it_would_see_without_us(tmp_path: Path, entry_point: str) -> None:
    files = {entry_point: LOOK}
    printed = ran(tmp_path, "", entry_point=entry_point, files=files, hyperparameters={"n": 1})
    seen = json.loads(printed)
    code = tmp_path / "algo-1" / "code"
    alone = json.loads(plain(code / entry_point, "-n", "1").stdout)
    assert seen.pop("directory") == str(code)
    del alone["directory"]
    assert seen == alone


def test_short_job_does_not_load_psutil(tmp_path: Path) -> None:
    """Importing psutil and listing all processes takes a third of the time to the first line."""
    body = """
    import time, psutil
    loaded = "psutil" in open("/proc/%d/maps" % os.getppid()).read()
    print(loaded, time.time() - psutil.Process(os.getppid()).create_time())
    """
    loaded, age = ran(tmp_path, body).split()
    assert loaded == "False" or float(age) > 1.0, "the first sample is due after a second"


def test_argv_0_names_the_script(tmp_path: Path) -> None:
    printed = ran(tmp_path, "say(sys.argv[0])")
    assert os.path.samefile(printed.strip(), tmp_path / "algo-1" / "code" / "train.py")


def test_child_processes_import_modules_next_to_the_script(tmp_path: Path) -> None:
    body = """
    import subprocess
    import helper
    assert helper.value == 42
    show = "import helper; print(helper.value)"
    subprocess.run([sys.executable, "-c", show], check=True, cwd="/")
    """
    assert ran(tmp_path, body, files={"helper.py": "value = 42"}) == "42\n"


def test_modules_named_like_ours_are_the_users(tmp_path: Path) -> None:
    """Neither the program's directory nor its modules shadow the script's."""
    names = ("process", "log", "job", "local", "failure", "bootstrap", "kvstore", "config", "host")
    body = f"""
    import importlib
    for name in {names!r}:
        assert importlib.import_module(name).mine, name
    """
    ran(tmp_path, body, files={f"{name}.py": "mine = True" for name in names})


TRACEBACKS = {
    "plain": 'def f():\n    raise ValueError("boom")\n\nf()\n',
    "module": "import helper\nhelper.fail()\n",
    "cause": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e\n",
    "context": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError('k')\n",
    "syntax": "x = 1\ndef broken(:\n    pass\n",
    "imported-syntax": "import broken\n",
    "import": "import no_such_module_anywhere\n",
    "recursion": "def f():\n    f()\n\nf()\n",
    "unicode": 'raise ValueError("äöü \\u2603")\n',
    "multi-line": 'raise ValueError("one\\ntwo")\n',
    "exit-message": 'import sys\nsys.exit("no data")\n',
    "exit-object": "import sys\nsys.exit((1, 2))\n",
    "hook": "import sys\nsys.excepthook = lambda *e: print('mine', e[1], file=sys.stderr)\n1 / 0\n",
    "interrupt": "raise KeyboardInterrupt\n",
    "thread": (
        "import threading\n"
        "t = threading.Thread(target=lambda: 1 / 0, name='mine')\nt.start()\nt.join()\n"
    ),
    "warning": "import warnings\nwarnings.warn('careful')\n",
    "at-exit": "import atexit\natexit.register(print, 'bye', flush=True)\n1 / 0\n",
    "latin-1": "# -*- coding: latin-1 -*-\nraise ValueError('\u00e4')\n",
    "assert": "assert 1 == 2, 'one is not two'\n",
}


@pytest.mark.parametrize("name", TRACEBACKS)
def test_ends_as_it_does_without_us(tmp_path: Path, name: str) -> None:
    """Same words on both streams, and the same status."""
    helper = "def fail():\n    raise RuntimeError('deep')\n"
    files = {"helper.py": helper, "broken.py": "def broken(:\n", "train.py": TRACEBACKS[name]}
    end, stdout, stderr = apart(tmp_path, "", files=files)
    code = tmp_path / "algo-1" / "code"
    alone = plain(code / "train.py")
    status = 128 - alone.returncode if alone.returncode < 0 else alone.returncode
    assert end.status == status
    assert stdout.decode() == alone.stdout.decode()
    # How deep a script is when it begins is the one thing that differs: some frames are ours.
    depth = re.compile(r"repeated \d+ more times")
    assert depth.sub("", stderr.decode()) == depth.sub("", alone.stderr.decode())


def test_output_is_passed_on_byte_for_byte(tmp_path: Path) -> None:
    """No prefix, no decoding, no changed line ends."""
    body = r"""
    data = bytes(range(256)) * 40 + "loss=0.5; ä\r 10%\r 20%\x1b[0m".encode()
    os.write(1, data)
    os.write(2, data)
    """
    data = bytes(range(256)) * 40 + "loss=0.5; ä\r 10%\r 20%\x1b[0m".encode()
    end, stdout, stderr = apart(tmp_path, body)
    assert end.status == 0
    assert stdout == data
    assert data in stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_arrives_at_once(tmp_path: Path, stream: str) -> None:
    """A progress bar without a newline is shown while the script runs."""
    body = f"""
    sys.{stream}.write("\\r 10%")
    while not os.path.exists("{tmp_path}/go"):
        time.sleep(0.02)
    """
    with job(tmp_path, body, command=("-c", APART)) as cluster:
        path = tmp_path / "algo-1" / stream
        eventually(lambda: path.exists() and b"\r 10%" in path.read_bytes(), "the progress bar")
        (tmp_path / "go").touch()
        (end,) = cluster.ended()
    assert end.status == 0


HYPERPARAMETERS = {
    "text": "two words",
    "quoted": 'it\'s "quoted" $HOME `id` ; rm *',
    "unicode": "ä \u2603",
    "list": [1, 2, "three"],
    "object": {"b": 1, "a": "x"},
    "flag": True,
    "no": False,
    "n": 5,
    "rate": 1e-3,
    "nothing": None,
    "empty": "",
    "negative": -1,
}
ARGUMENTS = [
    *("--empty", "", "--flag", "True", "--list", "[1, 2, 'three']", "-n", "5"),
    *("--negative", "-1", "--no", "False", "--nothing", "", "--object", "a=x,b=1"),
    *("--quoted", 'it\'s "quoted" $HOME `id` ; rm *', "--rate", "0.001"),
    *("--text", "two words", "--unicode", "ä \u2603"),
]


def test_hyperparameters_arrive_as_arguments_and_with_their_types(tmp_path: Path) -> None:
    body = 'import json; say(json.dumps([sys.argv[1:], json.loads(os.environ["SM_HPS"])]))'
    arguments, values = json.loads(ran(tmp_path, body, hyperparameters=HYPERPARAMETERS))
    assert arguments == ARGUMENTS
    assert values == HYPERPARAMETERS


SHOW = 'for word in "$@"; do printf "%s\\0" "$word"; done\n'
PYTHON_SHOW = "import sys\nsys.stdout.write(''.join(w + '\\0' for w in sys.argv[1:]))\n"


@pytest.mark.parametrize(
    ("entry_point", "body"),
    [
        ("train.sh", SHOW),
        ("train.sh", "#!/bin/sh\n" + SHOW),
        ("train.sh", f"#!{sys.executable}\n" + PYTHON_SHOW),
        ("bin/train", "#!/bin/sh\n" + SHOW),
    ],
    ids=["without-#!", "with-#!", "other-interpreter", "no-suffix-in-a-folder"],
)
def test_shell_command(tmp_path: Path, entry_point: str, body: str) -> None:
    """It gets the same arguments, and nothing in them is the shell's to interpret."""
    printed = ran(tmp_path, body, entry_point=entry_point, hyperparameters=HYPERPARAMETERS)
    assert printed.split("\0")[:-1] == ARGUMENTS


def test_shell_command_runs_in_the_code_directory_with_its_own_status(tmp_path: Path) -> None:
    body = "#!/bin/sh\necho in $(pwd) as $0 for $SM_CURRENT_HOST\nexit 9\n"
    end, stdout, _ = apart(tmp_path, body, entry_point="train.sh")
    assert stdout.decode() == f"in {tmp_path}/algo-1/code as ./train.sh for algo-1\n"
    assert end.status == 9
    assert end.cause == "algo-1: worker failed: exited without an exception (exit status 9)"
    assert not stat.S_IMODE(os.stat(tmp_path / "algo-1/code/train.sh").st_mode) & stat.S_IWOTH


def test_package_with_setup_py(tmp_path: Path) -> None:
    """It is installed, and a module of it is run as ``python -m`` would."""
    home = tmp_path / "python"
    venv.create(home, with_pip=False, symlinks=True)
    site = next((home / "lib").glob("python*")) / "site-packages"
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = "".join(f"site.addsitedir({path!r});" for path in outer)
    (site / "outer.pth").write_text(f"import site;{lines}\n")
    code = "import os, sys\nprint(__name__, sys.argv[1:], os.getcwd(), __spec__.name, flush=True)\n"

    def prepare(number: int, base: Path) -> None:
        tree = packages.source_files(tmp_path, "mine", "1")
        built = packages.wheel(tmp_path, "mine", "1", module="mytrain", code=code)
        for path, data in {**tree, built.name: built.read_bytes(), "setup.py": b""}.items():
            (base / "code" / path).write_bytes(data)
        (base / "code" / "train.py").unlink()

    python = str(home / "bin" / "python")
    argv = [python, "-m", "sagemaker_mxnet_training", "train"]
    env = {"SM_USER_ENTRY_POINT": "mytrain.py", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    with job(
        tmp_path,
        "",
        env=env,
        hyperparameters={"epochs": 3},
        prepare=prepare,
        command=("-c", f"import os; os.execv({python!r}, {argv!r})"),
    ) as cluster:
        (end,) = cluster.ended()
    assert end.status == 0, end.output
    arguments = "['--epochs', '3']"
    assert f"__main__ {arguments} {tmp_path}/algo-1/code mytrain" in end.output


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(tmp_path: Path, method: str) -> None:
    """As data loaders do it; a child is not the script, and its end is not the script's."""
    body = f"""
    import multiprocessing

    def square(number):
        return number * number

    def broken():
        sys.exit(3)

    if __name__ == "__main__":
        context = multiprocessing.get_context("{method}")
        with context.Pool(2) as pool:
            say(pool.map(square, range(4)))
        child = context.Process(target=broken)
        child.start()
        child.join()
        say("status", child.exitcode)
    """
    assert ran(tmp_path, body) == "[0, 1, 4, 9]\nstatus 3\n"


def test_forked_child_that_raises_is_not_the_script(tmp_path: Path) -> None:
    body = """
    pid = os.fork()
    if pid == 0:
        raise ValueError("in the child")
    _, status = os.waitpid(pid, 0)
    say("status", os.WEXITSTATUS(status))
    """
    end, stdout, stderr = apart(tmp_path, body)
    assert (end.status, end.success) == (0, True)
    assert stdout == b"status 1\n"
    assert b"ValueError: in the child" in stderr


def test_threads_and_exit_handlers_run_before_the_end(tmp_path: Path) -> None:
    body = """
    import atexit
    atexit.register(say, "handler")
    threading.Timer(0.2, say, ["thread"]).start()
    say("main")
    """
    assert ran(tmp_path, body) == "main\nthread\nhandler\n"


def test_stdin_is_empty(tmp_path: Path) -> None:
    assert ran(tmp_path, "say(repr(sys.stdin.read()))") == "''\n"


def test_nothing_of_ours_is_inherited(tmp_path: Path) -> None:
    """Neither descriptors nor variables that are between us and the supervisor, nor signals."""
    body = """
    import json, subprocess
    look = "import json, os; print(json.dumps([os.listdir('/proc/self/fd'), dict(os.environ)]))"
    child = json.loads(subprocess.check_output([sys.executable, "-c", look], close_fds=False))
    kept = [name for name in ("REPORT_FD", "JOB_KEY", "CONTROL_FD")
            if "SAGEMAKER_MXNET_" + name in child[1]]
    status = open("/proc/self/status").read()
    blocked = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
    say(json.dumps([len(child[0]), kept, blocked, "PORT" in child[1]]))
    """
    env = {"SAGEMAKER_MXNET_JOB_KEY": "swordfish-0005", "PORT": "80"}
    printed = json.loads(ran(tmp_path, body, env=env))
    # 0, 1, 2 and the one that lists them.
    assert printed == [4, [], ["0000000000000000"], False]


def test_variables_of_the_container_reach_the_script(tmp_path: Path) -> None:
    body = 'say(os.environ["MINE"], os.environ["SM_MODEL_DIR"], os.environ["SM_CHANNEL_TRAIN"])'
    env = {"MINE": "a b", "SM_CHANNELS": '["train"]'}
    base = tmp_path / "algo-1"
    assert ran(tmp_path, body, env=env) == f"a b {base}/model {base}/input/data/train\n"


@pytest.mark.parametrize("place", ["default", "named"])
def test_directories_exist_before_the_script(tmp_path: Path, place: str) -> None:
    body = """
    for name in ("MODEL", "OUTPUT", "OUTPUT_DATA", "OUTPUT_INTERMEDIATE", "CHECKPOINT"):
        say(os.environ[f"SM_{name}_DIR"])
        open(os.path.join(os.environ[f"SM_{name}_DIR"], "x"), "w").close()
    """
    base = tmp_path / "algo-1"
    written = {
        "SM_MODEL_DIR": base / "model",
        "SM_OUTPUT_DIR": base / "output",
        "SM_OUTPUT_DATA_DIR": base / "output" / "data",
        "SM_OUTPUT_INTERMEDIATE_DIR": base / "output" / "intermediate",
        "SM_CHECKPOINT_DIR": base / "checkpoints",
    }
    env = {}
    if place == "named":
        written = {name: base / "elsewhere" / name for name in written}
        env = {name: str(path) for name, path in written.items()}

    def prepare(number: int, base: Path) -> None:
        for name in ("model", "output", "checkpoints"):
            shutil.rmtree(base / name)

    end, stdout, _ = apart(tmp_path, body, env=env, prepare=prepare)
    assert end.status == 0, end.output
    assert stdout.decode().split() == [str(path) for path in written.values()]
    assert all((path / "x").exists() for path in written.values())


def test_pipe_channel_is_neither_opened_nor_listed(tmp_path: Path) -> None:
    """Opening a FIFO would block, or lose the first reader's data."""

    def prepare(number: int, base: Path) -> None:
        (base / "input" / "data").mkdir(parents=True)
        os.mkfifo(base / "input" / "data" / "train_0")
        config = {"train": {"TrainingInputMode": "Pipe"}}
        (base / "input" / "config" / "inputdataconfig.json").write_text(json.dumps(config))

    assert ran(tmp_path, "say(os.environ['SM_CHANNELS'])", prepare=prepare) == '["train"]\n'


def test_relative_pythonpath_means_the_same_to_every_process(tmp_path: Path) -> None:
    """Children have working directories of their own: script and server both find the module."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "only_here.py").write_text(
        "import mxnet as mx\n"
        "class Halving(mx.optimizer.Optimizer):\n"
        "    create_state = lambda self, index, weight: None\n"
        "    def update(self, index, weight, grad, state):\n"
        "        weight[:] = grad / 2\n"
    )
    body = """
    import only_here
    kv.set_optimizer(only_here.Halving())
    init()
    say(push_and_pull().tolist())
    """
    path = [os.path.relpath(library, tmp_path / "algo-1"), os.environ.get("PYTHONPATH", "")]
    env = {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    assert ran(tmp_path, body, env=env, kvstore=True) == "[0.5, 0.5, 0.5, 0.5]\n"


def test_program_on_a_path_with_spaces_and_unicode(tmp_path: Path) -> None:
    place = tmp_path / "a b ä'"
    place.mkdir()
    assert ran(place, "say('fine')", parameter_server=True) == "fine\n"


def test_a_stop_that_reaches_every_host_leaves_each_its_grace(tmp_path: Path) -> None:
    """SageMaker signals all containers: the second host's signal is not a second signal."""
    body = f"""
    def checkpoint(number, frame):
        say("heard")
        while not os.path.exists("{tmp_path}/go"):
            time.sleep(0.02)
        say("checkpoint written")
        sys.exit(0)

    signal.signal(signal.SIGTERM, checkpoint)
    say("up")
    wait_for_ever()
    """
    with job(tmp_path, body, 2) as cluster:
        cluster.wait_for("^up")
        cluster[2].kill("entrypoint", signal.SIGTERM)
        cluster.wait_for("^heard")
        cluster[1].kill("entrypoint", signal.SIGTERM)
        cluster[1].wait_for("received SIGTERM")
        (tmp_path / "go").touch()
        for end in cluster.ended():
            assert (end.status, end.success, end.failure) == (0, False, None), end.output
            assert "checkpoint written" in end.output
