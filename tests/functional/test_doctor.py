"""The doctor as a program: in good environments, and in each kind that no job can run in."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import psutil
import pytest

from sagemaker_mxnet_toolkit.requirements import known
from sagemaker_mxnet_training import __version__, doctor
from tests.support.jobs import eventually

SOURCE = str(Path(__file__).resolve().parents[2] / "src")
BOUND = 100
SECRET = "hunter2-is-no-password"

KEYS = {
    *("ok", "reasons", "python", "packages", "mxnet", "cpus", "memory", "gpus"),
    *("interfaces", "base_dir", "disks", "configured", "job", "faults"),
}

GOOD_MXNET = """
class base:
    class MXNetError(Exception):
        pass

class context:
    @staticmethod
    def num_gpus():
        raise base.MXNetError("no driver")

__version__ = "1.9.1"
"""

GOOD_RUNTIME = """
class Feature:
    def __init__(self, enabled):
        self.enabled = enabled

def Features():
    return {"DIST_KVSTORE": Feature(True), "CUDA": Feature(False)}
"""

needs_mxnet = pytest.mark.skipif(
    importlib.util.find_spec("mxnet") is None, reason="MXNet is not installed here"
)


@pytest.fixture
def environ(tmp_path):
    """An environment outside of any job, with an MXNet that imports fast first on its path."""
    package(tmp_path / "good", GOOD_MXNET, GOOD_RUNTIME)
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("SM_", "SAGEMAKER_", "DMLC_"))
    }
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "good"), SOURCE]),
        "SAGEMAKER_BASE_DIR": str(tmp_path / "ml"),
    }


def package(folder, code, runtime=""):
    (folder / "mxnet").mkdir(parents=True)
    (folder / "mxnet/__init__.py").write_text(code)
    (folder / "mxnet/runtime.py").write_text(runtime)
    return folder


def with_mxnet(environ, tmp_path, code):
    """Put another MXNet in front."""
    folder = package(tmp_path / "bad", code)
    return {**environ, "PYTHONPATH": os.pathsep.join([str(folder), environ["PYTHONPATH"]])}


def configure(tmp_path, hyperparameters, **resources):
    """Describe a job as SageMaker does."""
    config = tmp_path / "ml/input/config"
    config.mkdir(parents=True)
    (tmp_path / "ml/code").mkdir()
    (tmp_path / "ml/code/train.py").write_text("print(1)")
    texts = {name: json.dumps(value) for name, value in hyperparameters.items()}
    (config / "hyperparameters.json").write_text(json.dumps(texts))
    resources = {"current_host": "algo-1", "hosts": ["algo-1", "algo-2"], **resources}
    (config / "resourceconfig.json").write_text(json.dumps(resources))


def run(environ, *arguments, prefix=(), python=sys.executable):
    argv = (*prefix, python, "-m", "sagemaker_mxnet_training", "doctor", *arguments)
    return subprocess.run(
        argv, env=environ, capture_output=True, text=True, timeout=BOUND, check=False
    )


def diagnosed(environ):
    """Return the exit status and the JSON, after checking that the text output agrees."""
    screen, answer = run(environ), run(environ, "--json")
    assert answer.stderr == screen.stderr == ""
    found = json.loads(answer.stdout)
    assert found.keys() == KEYS
    assert found["ok"] is (found["reasons"] == [])
    assert screen.returncode == answer.returncode == (0 if found["ok"] else 1)
    for reason in found["reasons"]:
        assert joined(reason) in joined(screen.stdout)
    # Only a path may be longer, which has to stay whole to be copied.
    long = [line for line in screen.stdout.splitlines() if len(line) > 80]
    assert all(os.sep in line and len(line.split()) <= 2 for line in long), screen.stdout
    return found, screen.stdout


def joined(text):
    """Undo how the screen breaks lines."""
    return "".join(text.split())


def is_running(pid):
    """Return whether a process is running; orphans that are not reaped remain as zombies."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def listing(folder):
    return sorted(
        (str(path), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if "__pycache__" not in str(path) and path.name != "mxnet"
    )


@needs_mxnet
def test_the_real_mxnet_of_this_environment(environ):
    found, screen = diagnosed({**environ, "PYTHONPATH": SOURCE})
    assert found["reasons"] == []
    mxnet = found["mxnet"]
    assert mxnet["version"] == "1.9.1"
    assert {"DIST_KVSTORE", "MKLDNN"} <= set(mxnet["features"])
    assert mxnet["compatibility"]["enabled"]
    assert "mxnet.recordio" in mxnet["compatibility"]["repaired"]
    assert "kvstore yes, CUDA no, MKLDNN yes" in screen
    assert screen.endswith("A job can run here.\n")


@needs_mxnet
def test_kvstore_role_in_the_environment_does_not_run_on_import(environ):
    """With these, MXNet 1.9.1 would wait in its import for a scheduler that never starts."""
    role = {"DMLC_ROLE": "server", "DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": "9"}
    counts = {"DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": "1"}
    found = doctor.diagnose({**environ, "PYTHONPATH": SOURCE, **role, **counts}, BOUND)
    assert found.mxnet.error is None
    assert found.mxnet.version == "1.9.1"


def test_outside_of_any_job_no_configuration_is_no_fault(environ, tmp_path):
    before = listing(tmp_path)
    found, screen = diagnosed(environ)
    assert (found["ok"], found["configured"], found["faults"]) == (True, False, [])
    assert "not configured (no SM_" in screen
    assert len(screen.splitlines()) <= 40
    assert listing(tmp_path) == before


def test_facts_agree_with_those_of_the_system(environ, tmp_path):
    found, _ = diagnosed(environ)
    assert found["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["sagemaker-mxnet-training"] == __version__
    assert found["cpus"]["machine"] == os.cpu_count()
    assert found["memory"]["machine"] == psutil.virtual_memory().total
    assert found["interfaces"]["lo"] == ["127.0.0.1"]
    (path,) = found["disks"]
    assert path == str(tmp_path / "ml")
    assert found["disks"][path]["size"] == shutil.disk_usage(tmp_path).total
    assert found["mxnet"]["features"] == ["DIST_KVSTORE"]
    assert found["mxnet"]["gpus"] == 0
    assert found["mxnet"]["directory"] == str(tmp_path / "good/mxnet")


def test_job_description_is_short_and_has_no_secrets(environ, tmp_path):
    parameters = {f"parameter-{number}": "x" * 200 for number in range(50)}
    parameters.update({"api_key": SECRET, "sagemaker_program": "train.py"})
    configure(tmp_path, parameters, current_group_name="group")
    before = listing(tmp_path)
    environ["DB_PASSWORD"] = SECRET
    found, screen = diagnosed(environ)
    assert (found["ok"], found["configured"]) == (True, True)
    assert "host: algo-1 (of 2: algo-1, algo-2, leader)" in found["job"]
    assert "  host: algo-1 (of 2: algo-1, algo-2, leader)\n" in screen
    assert "more lines: see --json" in screen
    assert len(screen.splitlines()) == 40
    assert SECRET not in screen + json.dumps(found)
    assert listing(tmp_path) == before


def test_every_configuration_error_is_reported(environ, tmp_path):
    configure(tmp_path, {"sagemaker_program": "missing.py", "api_key": SECRET}, hosts=["algo-7"])
    environ.update(SM_HPS=f'{{"password": "{SECRET}"', SAGEMAKER_MXNET_JOIN_TIMEOUT="soon")
    found, screen = diagnosed(environ)
    assert found["configured"]
    assert not found["job"]
    text = " ".join(found["reasons"])
    for word in ("missing.py", "algo-7", "SM_HPS", "SAGEMAKER_MXNET_JOIN_TIMEOUT"):
        assert word in text
    assert SECRET not in screen + json.dumps(found)


def test_variables_alone_configure_a_job(environ):
    found, _ = diagnosed({**environ, "SM_CURRENT_HOST": "algo-1"})
    assert found["configured"]
    assert [reason for reason in found["reasons"] if "the entry point is not set" in reason]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libcuda.so.1: cannot open')", "ImportError: .*libcuda.so.1: cannot"),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        (
            "import os, sys; print('terminate called', file=sys.stderr, flush=True); os._exit(255)",
            "status 255: terminate called",
        ),
        ("import os; os._exit(0)", "status 0: no output"),
        ("", "mxnet.*has no attribute|cannot import name 'Features'"),
    ],
    ids=["raises", "exits", "crashes", "dies", "leaves", "is-another-package"],
)
def test_an_mxnet_that_cannot_be_imported(environ, tmp_path, code, reason):
    found, screen = diagnosed(with_mxnet(environ, tmp_path, code))
    (told,) = found["reasons"]
    assert told.startswith(f"import mxnet fails in {sys.executable}: ")
    assert found["mxnet"]["error"] in told
    assert known.INSTALL_MXNET in told
    assert re.search(reason, told), told
    assert "A job cannot run here:\n" in screen
    assert found["mxnet"]["version"] is None


def test_a_folder_that_is_only_called_mxnet(environ, tmp_path):
    (tmp_path / "good/mxnet/__init__.py").unlink()
    (tmp_path / "good/mxnet/runtime.py").unlink()
    good = tmp_path / "good"
    python = bare_python(tmp_path)
    answer = run({**environ, "PYTHONPATH": f"{good}:{tmp_path / 'bare'}:{SOURCE}"}, python=python)
    assert answer.returncode == 1, answer.stderr
    assert "No module named 'mxnet.runtime'" in " ".join(answer.stdout.split())


def bare_python(tmp_path):
    """Return a Python with nothing installed but psutil, which is in ``bare``."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/psutil").symlink_to(Path(psutil.__file__).parent)
    return str(tmp_path / "venv/bin/python")


@pytest.mark.parametrize("hooked", [False, True])
def test_whether_the_layer_acts_outside_of_jobs_too(environ, tmp_path, hooked):
    python = bare_python(tmp_path)
    if hooked:
        (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
        shutil.copy(Path(SOURCE, "sagemaker-mxnet-training.pth"), site)
    environ["PYTHONPATH"] += f":{tmp_path / 'bare'}"
    answer = run(environ, "--json", python=python)
    assert json.loads(answer.stdout)["mxnet"]["compatibility"]["hook"] is hooked, answer.stdout


def test_an_environment_in_which_everything_is_missing(environ, tmp_path):
    python = bare_python(tmp_path)
    environ.update(PYTHONPATH=f"{tmp_path / 'bare'}:{SOURCE}", PATH=os.defpath)
    answer = run(environ, "--json", python=python)
    assert answer.returncode == 1, answer.stderr
    found = json.loads(answer.stdout)
    (reason,) = found["reasons"]
    assert reason.startswith(f"import mxnet fails in {python}: ModuleNotFoundError: ")
    del found["packages"]["sagemaker-mxnet-training"]
    assert found["packages"] == {"sagemaker-training": None, "numpy": None, "pip": None}
    assert run(environ, python=python).stdout.count("(missing)") == 3


def test_hanging_mxnet_is_killed_with_its_processes(environ, tmp_path):
    note = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    found = doctor.diagnose(with_mxnet(environ, tmp_path, code), import_seconds=5.0)
    assert "timed out after 5 s" in doctor.reasons(found)[0]
    for pid in map(int, note.read_text().split()):
        eventually(lambda pid=pid: not is_running(pid), f"the end of {pid}")


def test_an_error_of_the_import_shows_no_secret(environ, tmp_path):
    code = "import os; raise ImportError('login ' + os.environ['DB_PASSWORD'])"
    environ["DB_PASSWORD"] = SECRET
    found, screen = diagnosed(with_mxnet(environ, tmp_path, code))
    assert "login ***" in found["reasons"][0]
    assert SECRET not in screen + json.dumps(found)


@pytest.mark.parametrize("configured", [False, True])
def test_a_model_directory_that_cannot_be_written(environ, tmp_path, configured):
    if configured:
        configure(tmp_path, {"sagemaker_program": "train.py"})
    else:
        (tmp_path / "ml").mkdir()
    (tmp_path / "ml/model").write_text("a file")
    found, _ = diagnosed(environ)
    (reason,) = found["reasons"]
    assert f"{tmp_path}/ml/model cannot be written" in reason


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a mount")
def test_a_full_disk(environ, tmp_path):
    model = tmp_path / "ml/model"
    model.mkdir(parents=True)
    mount = f'mount -t tmpfs -o size=64k tmpfs {model} && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", mount, "sh")
    answer = run(environ, "--json", prefix=prefix)
    assert answer.returncode == 1, answer.stderr
    (reason,) = json.loads(answer.stdout)["reasons"]
    assert reason.startswith(
        f"not enough disk space at {model}: 0.1 MiB free of 0.1 MiB; expected at least"
    )


def test_what_the_terminal_cannot_print_is_escaped(environ, tmp_path):
    base = tmp_path / "größe"
    answer = run({**environ, "SAGEMAKER_BASE_DIR": str(base), "PYTHONIOENCODING": "ascii"})
    assert answer.returncode == 0, answer.stderr
    assert "gr\\xf6\\xdfe" in answer.stdout
