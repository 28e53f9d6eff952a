"""Only the training process records signals; the supervisor is notified of events."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest

from sagemaker_mxnet_toolkit.processes import child_report
from sagemaker_mxnet_toolkit.settings.variables import REPORT_FD
from sagemaker_mxnet_training import checkpoints
from sagemaker_mxnet_training.checkpoints import storage
from sagemaker_mxnet_training.checkpoints.catalog import listing

BEGIN = """\
import multiprocessing, os, signal, time
from sagemaker_mxnet_training.checkpoints.manager import StopRequest

# Ignored where the tests run in the background of a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)

def send(number):
    os.kill(os.getpid(), number)
"""


def printed(body: str) -> str:
    """Run code in a separate process; return its output."""
    command = [sys.executable, "-c", BEGIN + body]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_signal_is_recorded(number: str) -> None:
    body = f"stop = StopRequest(); print(stop.requested); send(signal.{number})\n"
    assert printed(body + "print(stop.requested)").split() == ["False", "True"]


def test_a_second_ctrl_c_interrupts() -> None:
    body = """
stop = StopRequest()
send(signal.SIGINT)
try:
    send(signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    print(stop.requested)
"""
    assert printed(body) == "True"


def test_handler_of_the_script_is_called() -> None:
    body = """
signal.signal(signal.SIGTERM, lambda number, frame: print("called", number == signal.SIGTERM))
StopRequest()
send(signal.SIGTERM)
"""
    assert printed(body) == "called True"


def test_forked_process_ends_by_the_signal() -> None:
    body = """
def run(ready):
    ready.set()
    time.sleep(60)

fork = multiprocessing.get_context("fork")
StopRequest()
ready = fork.Event()
child = fork.Process(target=run, args=(ready,))
child.start()
ready.wait()  # CPython drops what arrives before the child has begun
child.terminate()
child.join()
print(child.exitcode == -signal.SIGTERM)
"""
    assert printed(body) == "True"


def train(directory: Path, epochs: int) -> None:
    mx = pytest.importorskip("mxnet")
    net = mx.gluon.nn.Dense(1)
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd")
    storage.unlock()  # as the end of an earlier process does
    checkpoint = checkpoints.Checkpoint(net, trainer, directory=str(directory), every=1000)
    for _ in checkpoint.epochs(epochs):
        for batch in checkpoint.batches([mx.nd.ones((1, 2))] * 3):
            with mx.autograd.record():
                loss = net(batch)
            loss.backward()
            trainer.step(1)


def test_events_of_checkpoints_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(child_report, "_opened", child_report.Report(None))
    child_report.open_report({REPORT_FD: str(writer)})
    train(tmp_path, 1)
    train(tmp_path, 2)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        events: List[Dict[str, Any]] = [json.loads(line) for line in file]
    assert [event.pop("event") for event in events] == [
        "checkpointing", "checkpoint", "checkpointing", "resumed", "checkpoint",
    ]  # fmt: skip
    first, second = (entry.name for entry in listing(str(tmp_path)))
    assert events[0] == {"directory": str(tmp_path)}
    seconds = events[1].pop("seconds")
    assert seconds >= 0
    assert events[1] == {"file": first, "step": 3, "epoch": 1, "batch": 0}
    assert events[3] == {"file": first, "step": 3}
    assert events[4]["file"] == second
