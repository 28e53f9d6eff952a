"""The supervisor is told of checkpoints."""

import json
import os
from pathlib import Path
from typing import Any, Dict, List

import pytest

mx = pytest.importorskip("mxnet")

from sagemaker_mxnet_toolkit.processes import child_report  # noqa: E402
from sagemaker_mxnet_training.checkpoints import Checkpoint  # noqa: E402
from sagemaker_mxnet_training.checkpoints.catalog import listing  # noqa: E402


def train(directory: Path, epochs: int) -> None:
    net = mx.gluon.nn.Dense(1)
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd")
    checkpoint = Checkpoint(net, trainer, directory=str(directory), every=1000)
    for _ in checkpoint.epochs(epochs):
        for batch in checkpoint.batches([mx.nd.ones((1, 2))] * 3):
            with mx.autograd.record():
                loss = net(batch)
            loss.backward()
            trainer.step(1)


def test_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(child_report, "_opened", child_report.Report(None))
    child_report.open_report({child_report.FD_VARIABLE: str(writer)})
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
