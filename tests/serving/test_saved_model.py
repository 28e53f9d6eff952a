"""A model that training has saved, asked by many clients at once."""

import concurrent.futures
import gzip
import http.client
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, Optional, Sequence, Set

import numpy as np
import psutil
import pytest

from tests.support.jobs import eventually, free_port
from tests.support.packages import wheel
from tests.support.real_server import Answer, serving

SAVE = """
import sys
from sagemaker_mxnet_toolkit import compatibility
compatibility.install()
import mxnet as mx
from sagemaker_mxnet_training.training_utils import save
out = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=1, no_bias=True, name="sum")
module = mx.mod.Module(out, label_names=None)
module.bind([("data", (1, 3))], for_training=False)
module.init_params(arg_params={"sum_weight": mx.nd.array([[1, 10, 100]])})
save(sys.argv[1], module)
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    subprocess.run([sys.executable, "-c", SAVE, str(folder)], check=True, timeout=120)
    return folder


@pytest.mark.parametrize(
    "variables",
    [{}, {"SAGEMAKER_MXNET_SERVING_BATCH_SIZE": "4", "SAGEMAKER_MXNET_SERVING_BATCH_DELAY": "0.5"}],
    ids=["alone", "together"],
)
def test_every_caller_gets_its_own_rows(model_dir: Path, variables: "dict[str, str]") -> None:
    port = free_port()
    with serving(
        model_dir, "--workers", "1", SAGEMAKER_MXNET_SERVING_METRICS_PORT=port, **variables
    ) as served:
        served.healthy()

        def ask(number: int) -> Any:
            if number % 10 == 7:
                return served.ask("POST", "/invocations", b"[[", {"Content-Type": "text/csv"})
            rows = [[number, row, 1] for row in range(number % 3 + 1)]
            kind = {"Content-Type": "application/json"}
            return served.ask("POST", "/invocations", json.dumps(rows).encode(), kind)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(40)))
        for number, answer in enumerate(answers):
            assert isinstance(answer, Answer)
            if number % 10 == 7:
                assert answer.status == 400
                continue
            expected = [[number + 10.0 * row + 100.0] for row in range(number % 3 + 1)]
            assert (answer.status, json.loads(answer.body)) == (200, expected)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
            metrics = page.read().decode()
        found = re.search(r"batch_requests_count (\S+)", metrics)
        assert found is not None
        together = float(found[1]) < 40
        assert together is bool(variables)


def test_saved_model_without_a_script(model_dir: Path) -> None:
    """Defects 1 and 2 of the peer: as pip installs it, and without a script, nothing answers."""
    with serving(model_dir, "--workers", "1") as served:
        served.healthy()
        json_type = {"Content-Type": "application/json"}
        csv_type = {"Content-Type": "text/csv", "Accept": "text/csv"}
        assert served.ask("POST", "/invocations", b"[[1, 2, 3]]", json_type).body == b"[[321.0]]"
        assert served.ask("POST", "/invocations", b"1,2,3\n", csv_type).body == b"321.0\n"
        array = io.BytesIO()
        np.save(array, np.array([[1, 2, 3]], np.float32))
        npy_type = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
        answer = served.ask("POST", "/invocations", array.getvalue(), npy_type)
        assert np.load(io.BytesIO(answer.body)).tolist() == [[321.0]]
        wrong = served.ask("POST", "/invocations", b"[[1, 2]]", json_type)
        assert (wrong.status, b"has 2 entries, expected 3" in wrong.body) == (400, True)
        served.wait_for_log("is rejected with 400: JSON: the list at [0] has 2 entries")
        assert "infer_shape" not in served.log, "which MXNet prints"


def test_compressed_body_returns_415(model_dir: Path) -> None:
    rows = b"[[1, 2, 3]]"
    with serving(model_dir, "--workers", "1") as served:
        served.healthy()

        def ask(body: bytes, encoding: str) -> Answer:
            headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
            return served.ask("POST", "/invocations", body, headers)

        for encoding, body in (
            ("gzip", gzip.compress(rows)),
            ("deflate", zlib.compress(rows)),
            ("br", b"\x0b\x05\x80" + rows + b"\x03"),
            ("identity, X-Unknown", rows),
        ):
            answer = ask(body, encoding)
            assert answer.status == 415
            assert f"Content-Encoding '{encoding}'" in answer.body.decode()
            assert b"send the body uncompressed" in answer.body
        for encoding in ("identity", "Identity", "UTF-8", ""):
            assert ask(rows, encoding).body == b"[[321.0]]"


# Of the whole file system only /tmp can be written to.
READ_ONLY_ROOT = (
    *("unshare", "--mount", "--", "sh", "-c"),
    'mount --bind /tmp /tmp && mount -o remount,ro,bind / && exec "$0" "$@"',
)
OTHER_UID = 65534
# The capability lets that user read the tests' interpreter, wherever it is; not write anything.
OTHER_USER = (
    *("setpriv", f"--reuid={OTHER_UID}", f"--regid={OTHER_UID}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


def is_allowed(prefix: Sequence[str]) -> bool:
    """Return whether programs can be run in this way on this machine."""
    done = subprocess.run([*prefix, "true"], capture_output=True, check=False, timeout=30)
    return done.returncode == 0


@pytest.mark.parametrize(
    "prefix",
    [OTHER_USER, (*READ_ONLY_ROOT, *OTHER_USER)],
    ids=["another user", "another user, read-only root"],
)
def test_only_tmp_is_writable(model_dir: Path, prefix: Sequence[str]) -> None:
    """Defect 15 of the peer: on a read-only root, or as another user, it dies."""
    if shutil.which(prefix[0]) is None or not is_allowed(prefix):
        pytest.skip(f"this machine does not allow {prefix[0]}")
    # pytest's own directories are closed to other users.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        model = Path(shutil.copytree(model_dir, Path(folder) / "model"))
        before = sorted(model.rglob("*"))
        with serving(model, "--workers", "1", prefix=prefix, HOME="/nonexistent") as served:
            served.healthy()
            kind = {"Content-Type": "application/json"}
            assert served.ask("POST", "/invocations", b"[[1, 2, 3]]", kind).body == b"[[321.0]]"
            assert psutil.Process(served.process.pid).uids().effective == 65534
        assert served.process.returncode == 0
        assert sorted(model.rglob("*")) == before


def require(model: Path) -> None:
    """Give a model a script that needs a package, and the package."""
    (model / "code").mkdir()
    required = wheel(model / "code", "doubling_of_a_test", "1.0", code="FACTOR = 2\n")
    (model / "code" / "requirements.txt").write_text(f"./{required.name}\n")
    (model / "code" / "inference.py").write_text(
        "from doubling_of_a_test import FACTOR\n"
        "def predict_fn(data, model):\n"
        "    return FACTOR * model.predict(data)\n"
    )


def test_requirements_stay_out_of_the_callers_environment(model_dir: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(model_dir, tmp_path / "model"))
    require(model)
    folder = tmp_path / "tmp"
    folder.mkdir()
    with serving(model, "--workers", "1", TMPDIR=str(folder)) as served:
        served.healthy()
        kind = {"Content-Type": "application/json"}
        assert served.ask("POST", "/invocations", b"[[1, 2, 3]]", kind).body == b"[[642.0]]"
        served.wait_for_log(f"installed for this server only, in {folder}")
    assert list(folder.iterdir()) == []
    assert importlib.util.find_spec("doubling_of_a_test") is None


def test_requirements_with_only_tmp_writable(model_dir: Path) -> None:
    """Defect 15 of the peer: on a read-only root, or as another user, it dies."""
    prefix = (*READ_ONLY_ROOT, *OTHER_USER)
    if shutil.which(prefix[0]) is None or not is_allowed(prefix):
        pytest.skip(f"this machine does not allow {prefix[0]}")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        model = Path(shutil.copytree(model_dir, Path(folder) / "model"))
        require(model)
        with serving(model, "--workers", "1", prefix=prefix, HOME="/nonexistent") as served:
            served.healthy()
            kind = {"Content-Type": "application/json"}
            assert served.ask("POST", "/invocations", b"[[1, 2, 3]]", kind).body == b"[[642.0]]"
    # Those of root belong to servers of other tests, which run at the same time.
    name = "sagemaker-mxnet-packages-*"
    find = ["find", "/tmp", "-maxdepth", "1", "-name", name, "-uid", str(OTHER_UID)]
    assert subprocess.run(find, stdout=subprocess.PIPE, check=False).stdout == b""


FULL_DIRECTORY = (
    *("unshare", "--mount", "--", "sh", "-c"),
    'mount -t tmpfs -o size=4k,nr_inodes=2 tmpfs "$TMPDIR" && : > "$TMPDIR/full" '
    '&& dd if=/dev/zero of="$TMPDIR/full" 2> /dev/null; exec "$0" "$@"',
)


def test_full_temporary_directory_without_requirements(model_dir: Path, tmp_path: Path) -> None:
    if shutil.which("unshare") is None or not is_allowed(("unshare", "--mount", "--")):
        pytest.skip("this machine does not allow unshare")
    with serving(model_dir, "--workers", "1", prefix=FULL_DIRECTORY, TMPDIR=tmp_path) as served:
        served.healthy()
        kind = {"Content-Type": "application/json"}
        assert served.ask("POST", "/invocations", b"[[1, 2, 3]]", kind).body == b"[[321.0]]"
        full = Path(f"/proc/{served.process.pid}/root{tmp_path}/full")
        with pytest.raises(OSError, match="No space left"):
            full.with_name("another").write_text("x")


LOAD_SECONDS = float(os.environ.get("SERVING_LOAD_SECONDS", "6"))
"""How long workers are killed under load."""


def test_workers_killed_under_load_give_no_wrong_response(model_dir: Path) -> None:
    """One is killed every second: its request is tried again, or is a 500, and no other fails."""
    stop = threading.Event()
    outcomes: Counter[str] = Counter()
    with serving(model_dir, "--workers", "2") as served:
        served.healthy()

        def load(client: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
            kind = {"Content-Type": "application/json"}
            for number in itertools.count():
                if stop.is_set():
                    break
                row = [client, number % 1000, number // 1000]
                connection.request("POST", "/invocations", json.dumps([row]).encode(), kind)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status == 200:
                    right = json.loads(body) == [[client + 10.0 * row[1] + 100.0 * row[2]]]
                    outcomes["right" if right else "wrong"] += 1
                else:
                    died = answer.status == 500 and b"died while processing this request" in body
                    outcomes["died" if died else f"{answer.status} {body!r}"] += 1
            connection.close()

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(load, number) for number in range(4)]
            killed: Set[int] = set()
            while len(killed) < LOAD_SECONDS and not stop.wait(1):
                victim = eventually(lambda: set(served.workers()) - killed, "a worker").pop()
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
            stop.set()
            for client in clients:
                client.result()
        kills = len(killed)
        eventually(
            lambda: served.healthy().log.count("was killed by SIGKILL") == kills,
            "the ends in the log",
        )
    print(f"{kills} workers were killed: {dict(outcomes)}")
    assert set(outcomes) <= {"right", "died"}
    assert outcomes["died"] <= kills
    assert outcomes["right"] > kills


@pytest.mark.parametrize("script", [None, "raise ValueError('not today')\n"])
def test_doctor_of_a_model(model_dir: Path, tmp_path: Path, script: Optional[str]) -> None:
    model = Path(shutil.copytree(model_dir, tmp_path / "model"))
    if script is not None:
        (model / "code").mkdir()
        (model / "code" / "inference.py").write_text(script)
    command = [sys.executable, "-m", "sagemaker_mxnet_training", "doctor"]
    env = {**os.environ, "SM_NUM_GPUS": "two"}  # no job could run; that is not what is asked
    done = subprocess.run(
        [*command, "model"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
        env=env,
    )
    assert "SM_NUM_GPUS" in done.stdout
    if script is None:
        assert done.returncode == 0
        assert f"The model in {model} can be served:" in done.stdout
        assert "inputs: data float32 (rows, 3)" in done.stdout
    else:
        assert done.returncode == 1
        assert f"The model in {model} cannot be served: " in done.stdout
        assert "ValueError" in done.stdout
