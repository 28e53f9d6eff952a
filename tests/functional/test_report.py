"""``sagemaker-mxnet-training report`` on real local runs, and what their timelines tell."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping

import pytest

from sagemaker_mxnet_training.host import observer
from tests.support.jobs import job, script

BOUND = 100


def program(directory: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "sagemaker_mxnet_training", *words],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND,
    )


def run(directory: Path, body: str, *words: str, name: str = "train.py") -> None:
    (directory / name).write_text(body)
    program(directory, "local", "--run-dir", "run", *words, name)


def trace(directory: Path, host: str) -> Dict[str, Any]:
    path = directory / "run" / host / "output" / "data" / f"timeline-{host}.json"
    loaded: Dict[str, Any] = json.loads(path.read_text(), parse_constant=pytest.fail)
    return loaded


def named(events: List[Mapping[str, Any]], kind: str) -> List[str]:
    found = [event for event in events if event.get("cat") == kind]
    return [event["name"] for event in sorted(found, key=lambda event: event["ts"])]


TRAIN = f"""
init()
kv.set_optimizer(mx.optimizer.SGD(learning_rate=0.1))
for _ in range(5):
    push_and_pull()
    time.sleep({observer.SAMPLE_PERIOD / 2})  # a job is sampled that lasts longer than the period
say("done")
"""


@pytest.mark.parametrize("hosts", [1, 2])
def test_kvstore_run(tmp_path: Path, hosts: int) -> None:
    run(tmp_path, script(TRAIN, kvstore=True), "--hosts", str(hosts), "--parameter-server")
    for number in range(1, hosts + 1):
        found = trace(tmp_path, f"algo-{number}")
        events = found["traceEvents"]
        assert found["otherData"]["outcome"] == "success"
        phases = named(events, "phase")
        ordered = ["resolve", "fetch", "install", "join", "roles"]
        ordered += ["first step"] * ("first step" in phases)
        assert phases == [*ordered, "train", "hold", "drain", "end"]
        roles = {"server", "worker"} | ({"scheduler"} if number == 1 else set())
        assert roles <= set(named(events, "process"))
        assert {f"{role} {what}" for role in roles for what in ("CPU", "memory")} <= set(
            named(events, "usage")
        )
        began = {e["name"]: e["ts"] for e in events if e.get("cat") == "phase"}
        lives = {e["name"]: e for e in events if e.get("cat") == "process"}
        assert began["resolve"] <= began["roles"] <= lives["worker"]["ts"] <= began["train"]


def test_first_step_is_every_hosts(tmp_path: Path) -> None:
    """The one key lives on one of the servers, whose host tells the others."""
    body = f"""
    init()
    kv.set_optimizer(mx.optimizer.SGD(learning_rate=0.1))
    push_and_pull()
    while not os.path.exists("{tmp_path}/go"):
        time.sleep(0.05)
    """
    with job(tmp_path / "run", body, 2, kvstore=True) as cluster:
        cluster.wait_for("the first step of training is done")
        (tmp_path / "go").touch()
        assert [end.status for end in cluster.ended()] == [0, 0]
    for host in ("algo-1", "algo-2"):
        phases = named(trace(tmp_path, host)["traceEvents"], "phase")
        assert phases[-5:] == ["first step", "train", "hold", "drain", "end"]


def test_a_script_without_python_runs_at_once(tmp_path: Path) -> None:
    run(tmp_path, "echo fine\n", name="train.sh")
    phases = named(trace(tmp_path, "algo-1")["traceEvents"], "phase")
    assert phases[:6] == ["resolve", "fetch", "install", "join", "roles", "train"]


FAILS = """
import os, time
if os.environ["SM_CURRENT_HOST"] == "algo-2":
    raise ValueError("boom <script>alert(1)</script>")
while True:
    time.sleep(0.05)
"""


def test_report_of_a_failure(tmp_path: Path) -> None:
    """Text and page say what failed, where and when."""
    run(tmp_path, FAILS, "--hosts", "2", "--no-parameter-server")
    done = program(tmp_path, "report", "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("job FAILED after ")
    cause = "algo-2: worker failed: ValueError: boom <script>alert(1)</script> (exit status 1)"
    assert f"cause   {cause}\n" in done.stdout
    assert "where   worker on algo-2\n" in done.stdout
    assert re.search(r"when    \d{4}-.* UTC, \d+\.\d s after the start\n", done.stdout)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "ValueError: boom &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page
    assert not re.search(r"""<(script|img|iframe)[^>]*\ssrc=["']?(https?:)?//""", page)
    assert not re.search(r"<link[^>]*href", page)
    assert "Plotly.newPlot" in page
    events = trace(tmp_path, "algo-2")["traceEvents"]
    (worker,) = [e for e in events if e.get("cat") == "process" and e["name"] == "worker"]
    failures = [e for e in events if e.get("cat") == "failure"]
    assert worker["tid"] in [e["tid"] for e in failures]
    assert all(worker["ts"] <= e["ts"] <= worker["ts"] + worker["dur"] for e in failures)
    others = trace(tmp_path, "algo-1")
    assert not named(others["traceEvents"], "failure")
    assert "SIGTERM" in named(others["traceEvents"], "signal"), "what the worker there was sent"
    assert others["otherData"]["failure"]["host"] == "algo-2"


def test_a_job_that_fails_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    program(tmp_path, "local", "--run-dir", "run", "--env", "SM_NUM_GPUS=two", "train.py")
    found = trace(tmp_path, "algo-1")
    assert named(found["traceEvents"], "phase")[0] == "resolve"
    assert "SM_NUM_GPUS" in found["otherData"]["failure"]["reason"]
    done = program(tmp_path, "report", "run", "--output", "page.html")
    assert done.returncode == 0
    assert "SM_NUM_GPUS" in done.stdout
    assert "SM_NUM_GPUS" in (tmp_path / "page.html").read_text()
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("words", [["report"], ["report", "none"], ["report", "."]])
def test_wrong_usage(tmp_path: Path, words: List[str]) -> None:
    done = program(tmp_path, *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_report_into_a_closed_pipe(tmp_path: Path) -> None:
    """As with ``| head``: no traceback."""
    run(tmp_path, "", "--no-parameter-server")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sagemaker_mxnet_training", "report", "run"]
    done = subprocess.run(
        command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, timeout=BOUND, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
