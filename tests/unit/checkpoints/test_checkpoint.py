"""The public object, in one process with real MXNet."""

import json
import os
import random
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

mx = pytest.importorskip("mxnet")

from sagemaker_mxnet_training.checkpoints import Checkpoint, CheckpointError  # noqa: E402
from sagemaker_mxnet_training.checkpoints.archive import Archive  # noqa: E402
from sagemaker_mxnet_training.checkpoints.catalog import listing, verify  # noqa: E402


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Training:
    def __init__(
        self,
        directory: Path,
        units: int = 1,
        prepare: Callable[[Any], None] = lambda _: None,
        **options: Any,
    ) -> None:
        self.net = mx.gluon.nn.Dense(units)
        self.net.initialize()
        self.trainer = mx.gluon.Trainer(self.net.collect_params(), "adam")
        prepare(self.trainer)
        self.data = [mx.nd.ones((2, 3)) * number for number in range(4)]
        self.options = {"every": 1, "directory": str(directory), **options}
        self.checkpoint = Checkpoint(self.net, self.trainer, **self.options)

    def step(self, batch: Any) -> None:
        with mx.autograd.record():
            loss = self.net(batch).sum()
        loss.backward()
        self.trainer.step(2)

    def run(self, epochs: int) -> List[int]:
        steps = []
        for _ in self.checkpoint.epochs(epochs):
            for batch in self.checkpoint.batches(self.data):
                self.step(batch)
                steps.append(self.checkpoint.step)
        return steps


def test_what_ended_has_nothing_left_to_do(tmp_path: Path) -> None:
    assert Training(tmp_path).run(2) == list(range(8))
    assert Training(tmp_path).run(2) == []
    assert Training(tmp_path).run(3) == [8, 9, 10, 11]


def test_own_state_and_best_are_restored(tmp_path: Path) -> None:
    first = Training(tmp_path)
    assert first.checkpoint.best(0.5) and not first.checkpoint.best(float("nan"))
    first.checkpoint.state["history"] = [1, 2]
    first.run(1)
    second = Training(tmp_path).checkpoint
    assert second.state == {"history": [1, 2]}
    assert not second.best(0.4) and second.best(0.6)


def test_smaller_may_be_better(tmp_path: Path) -> None:
    checkpoint = Training(tmp_path).checkpoint
    assert checkpoint.best(2.0, smaller=True)
    assert not checkpoint.best(3.0, smaller=True)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for epochs in range(1, 6):
        Training(tmp_path, keep=3, every=1000).run(epochs)
    assert [entry.step for entry in listing(str(tmp_path))] == [12, 16, 20]


def test_weights_are_in_mxnets_own_format(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.run(1)
    with Archive(str(tmp_path / listing(str(tmp_path))[-1].name)) as archive:
        arrays = mx.nd.load_frombuffer(archive.read("weights.params"))
        assert json.loads(archive.read("about.json"))["step"] == 4
    assert (arrays["weight"] == training.net.weight.data()).asnumpy().all()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_script_after_the_step(tmp_path: Path, number: int) -> None:
    training = Training(tmp_path, every=1000)
    with pytest.raises(SystemExit) as left:
        for _ in training.checkpoint.epochs(1):
            for batch in training.checkpoint.batches(training.data):
                if training.checkpoint.step == 1:
                    os.kill(os.getpid(), number)
                training.step(batch)
    assert left.value.code == 0
    assert [entry.step for entry in listing(str(tmp_path))] == [2]
    assert Training(tmp_path).run(1) == [2, 3]


def test_what_cannot_be_written_is_a_warning_until_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(tmp_path)
    training.checkpoint.state["lock"] = object()
    with pytest.raises(CheckpointError, match="the last checkpoint is not written"):
        training.run(1)
    assert training.checkpoint.step == 4
    assert "the checkpoint of step 1 is not written" in caplog.text


def test_a_directory_that_is_a_file_is_a_warning_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="the last checkpoint is not written"):
        Training(tmp_path / "file").run(1)


def test_the_learning_rate_that_the_script_set_is_restored(tmp_path: Path) -> None:
    first = Training(tmp_path)
    first.trainer.set_learning_rate(0.25)
    first.run(1)
    assert Training(tmp_path).trainer.learning_rate == 0.25


def test_the_loss_scale_of_mixed_precision_is_restored(tmp_path: Path) -> None:
    class Scaler:
        loss_scale, unskipped = 65536.0, 0
        has_overflow = staticmethod(lambda _: False)

        def __init__(self) -> None:
            self.loss_scale = 65536.0

    def with_scaler(trainer: Any) -> None:
        trainer._amp_loss_scaler = Scaler()

    first = Training(tmp_path, prepare=with_scaler)
    first.trainer._amp_loss_scaler.loss_scale = 128.0
    first.run(1)
    second = Training(tmp_path, prepare=with_scaler)
    assert second.trainer._amp_loss_scaler.loss_scale == 128.0


def test_damage_is_noticed_or_harmless(tmp_path: Path) -> None:
    Training(tmp_path).run(1)
    path = tmp_path / listing(str(tmp_path))[-1].name
    whole = path.read_bytes()

    def content() -> Dict[str, bytes]:
        with Archive(str(path)) as archive:
            return {name: archive.read(name) for name in archive.names}

    expected = content()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert verify(str(path)) is not None, length
    for bit in random.Random(3).sample(range(8 * len(whole)), 1000):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        if verify(str(path)) is None:
            assert content() == expected, bit


def test_time_is_that_of_computed_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path, every=timedelta(microseconds=1))
    training.data = training.data * 10  # 40 steps, of which two are multiples of the stride
    run, computed = training.checkpoint._run, []
    state = run.training
    assert state is not None
    monkeypatch.setattr(state, "settle", lambda: computed.append(run.step))
    training.run(1)
    assert {20, 40} <= set(computed) and set(computed) <= {20, 40}


NUMPY = """
import sys
import mxnet as mx
mx.npx.set_np()
from sagemaker_mxnet_training.checkpoints import Checkpoint

def run(epochs, directory):
    mx.random.seed(3)
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Dense(4), mx.gluon.nn.BatchNorm(), mx.gluon.nn.Dense(2))
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), "adam")
    checkpoint = Checkpoint(net, trainer, directory=directory, every=1000)
    for _ in checkpoint.epochs(epochs):
        for batch in checkpoint.batches([mx.np.ones((2, 3)) * i for i in range(4)]):
            with mx.autograd.record():
                loss = net(batch).sum()
            loss.backward()
            trainer.step(2)
    return [p.data().asnumpy().tolist() for p in net.collect_params().values()]

once = run(2, sys.argv[1] + "/once")
run(1, sys.argv[1] + "/cut")
print(run(2, sys.argv[1] + "/cut") == once)
"""


def test_networks_of_numpy_arrays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NUMPY, str(tmp_path)]  # the mode is one of the whole process
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "True"


def test_another_network_is_refused(tmp_path: Path) -> None:
    Training(tmp_path).run(1)
    with pytest.raises(CheckpointError, match="is of another network"):
        Training(tmp_path, units=2)


def test_it_comes_before_the_first_step(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.run(1)
    with pytest.raises(ValueError, match="before the first step"):
        Checkpoint(training.net, training.trainer, **training.options)


def test_a_network_needs_its_trainer() -> None:
    with pytest.raises(TypeError, match="a network and its trainer"):
        Checkpoint(mx.gluon.nn.Dense(1))


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_is_kept(keep: int) -> None:
    with pytest.raises(ValueError, match="keep: expected at least 1"):
        Checkpoint(keep=keep)
