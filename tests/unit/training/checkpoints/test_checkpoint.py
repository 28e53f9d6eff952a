"""The public object, in one process with real MXNet."""

import json
import os
import random
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

mx = pytest.importorskip("mxnet")

from sagemaker_mxnet_toolkit.failure import FailureKind  # noqa: E402
from sagemaker_mxnet_training.checkpoints import (  # noqa: E402
    Checkpoint,
    CheckpointError,
    storage,
)
from sagemaker_mxnet_training.checkpoints.catalog import listing, verify  # noqa: E402
from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointFile, write  # noqa: E402


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
        storage.unlock()  # as the end of an earlier process does
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


def test_assigned_state_is_restored(tmp_path: Path) -> None:
    first = Training(tmp_path)
    first.checkpoint.state = {"history": [1, 2]}
    first.run(1)
    assert Training(tmp_path).checkpoint.state == {"history": [1, 2]}


def test_assigned_state_that_is_not_a_dict_is_an_error(tmp_path: Path) -> None:
    checkpoint = Training(tmp_path).checkpoint
    message = r"^checkpoint\.state: expected a dict of JSON values, got \[1, 2\]; set an entry"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.state = [1, 2]  # type: ignore[assignment]
    assert checkpoint.state == {}


def test_best_takes_an_array_of_one_number(tmp_path: Path) -> None:
    """As a mean of MXNet's is one; ``float`` does not take that."""
    checkpoint = Training(tmp_path).checkpoint
    assert checkpoint.best(mx.nd.array([0.5]).mean()) and not checkpoint.best(0.4)


def test_number_of_epochs_in_text_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"epochs: expected .* 0 or more, got '3'; .*type=int"
    ):
        Training(tmp_path).checkpoint.epochs("3")


@pytest.mark.parametrize("count", [-1, 2.5, None, mx.nd.array([2, 3])])
def test_invalid_number_of_epochs_is_an_error(tmp_path: Path, count: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        Training(tmp_path).checkpoint.epochs(count)
    assert str(caught.value).startswith("epochs: expected a whole number, 0 or more, got ")
    assert "; pass the total number of epochs" in str(caught.value)
    assert caught.value.kind is FailureKind.CHECKPOINT_USE


def test_no_epochs_are_allowed(tmp_path: Path) -> None:
    assert Training(tmp_path).run(0) == []


@pytest.mark.parametrize("steps", [4, 6])  # at the end of an epoch, and in the middle of one
def test_script_stops_after_a_number_of_steps(tmp_path: Path, steps: int) -> None:
    """As ``Checkpoint.step`` describes it."""
    for expected in (list(range(steps)), []):
        training, counted = Training(tmp_path, every=1000), []
        checkpoint = training.checkpoint
        for _ in checkpoint.epochs(3):
            for batch in checkpoint.batches(training.data):
                if checkpoint.step >= steps:
                    break
                training.step(batch)
                counted.append(checkpoint.step)
            if checkpoint.step >= steps:
                break
        checkpoint.save()
        assert (checkpoint.step, counted) == (steps, expected)


@pytest.mark.parametrize("data", [None, 3, list])
def test_batches_of_what_is_not_iterable(tmp_path: Path, data: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        Training(tmp_path).checkpoint.batches(data)
    assert str(caught.value).startswith("batches: expected a gluon.data.DataLoader, a list or ")
    assert f"got {data!r}; check what the script passes" in str(caught.value)


def test_smaller_may_be_better(tmp_path: Path) -> None:
    checkpoint = Training(tmp_path).checkpoint
    assert checkpoint.best(2.0, smaller=True)
    assert not checkpoint.best(3.0, smaller=True)
    with pytest.raises(CheckpointError, match=r"^best: smaller=False after .*; .*state"):
        checkpoint.best(0.9)  # an accuracy after a loss would silently be compared with it


@pytest.mark.parametrize("value", ["a", None, mx.nd.array([0.5, 0.7])])
def test_best_names_what_is_not_a_number(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^best: expected a number, got "):
        Training(tmp_path).checkpoint.best(value)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for epochs in range(1, 6):
        Training(tmp_path, keep=3, every=1000).run(epochs)
    assert [entry.step for entry in listing(str(tmp_path))] == [12, 16, 20]


def test_weights_are_in_mxnets_own_format(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.run(1)
    with CheckpointFile(str(tmp_path / listing(str(tmp_path))[-1].name)) as file:
        arrays = mx.nd.load_frombuffer(file.read("weights.params"))
        assert json.loads(file.read("about.json"))["step"] == 4
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
    assert left.value.code == 128 + number  # nobody listens to the report
    assert [entry.step for entry in listing(str(tmp_path))] == [2]
    assert Training(tmp_path).run(1) == [2, 3]


def test_unwritten_checkpoint_is_a_warning_until_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = Training(tmp_path / "gone")
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    (tmp_path / "gone").touch()
    with pytest.raises(CheckpointError, match="the last checkpoint cannot be written") as caught:
        training.run(1)
    assert caught.value.kind is FailureKind.CHECKPOINT
    assert training.checkpoint.step == 4
    assert "the checkpoint of step 1 cannot be written" in caplog.text


@pytest.mark.parametrize("value", [object(), mx.nd.ones(1), {(1, 2): 3}])
def test_state_that_json_cannot_hold_is_an_error_at_once(tmp_path: Path, value: Any) -> None:
    training = Training(tmp_path, every=1000)
    training.checkpoint.state["own"] = value
    with pytest.raises(CheckpointError, match=r"checkpoint\.state cannot be stored") as caught:
        training.run(1)
    assert caught.value.kind is FailureKind.CHECKPOINT_USE
    assert training.checkpoint.step == 1


def test_directory_that_is_a_file_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        CheckpointError, match=r"checkpoints cannot be written to .*/file"
    ) as caught:
        Training(tmp_path / "file")
    assert caught.value.kind is FailureKind.CHECKPOINT


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
        with CheckpointFile(str(path)) as file:
            return {name: file.read(name) for name in file.names}

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
    manager, computed = training.checkpoint._manager, []
    loop = manager.loop
    state = manager.training
    assert state is not None
    monkeypatch.setattr(state, "synchronize", lambda: computed.append(loop.step))
    training.run(1)
    assert {20, 40} <= set(computed) and set(computed) <= {20, 40}


NUMPY = """
import sys
import mxnet as mx
mx.npx.set_np()
from sagemaker_mxnet_training.checkpoints import Checkpoint, storage

def run(epochs, directory):
    storage.unlock()
    mx.random.seed(3)
    net = mx.gluon.nn.Dense(2)
    if sys.argv[2] == "layers":
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


@pytest.mark.parametrize("network", ["layers", "layer"])
def test_networks_of_numpy_arrays(tmp_path: Path, network: str) -> None:
    # NumPy's semantics are switched on for a whole process.
    command = [sys.executable, "-c", NUMPY, str(tmp_path), network]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "True"


def test_another_network_is_rejected(tmp_path: Path) -> None:
    Training(tmp_path).run(1)
    with pytest.raises(
        CheckpointError, match="another network: .*; build the network as before, or set SAGE"
    ):
        Training(tmp_path, units=2)


def test_it_comes_before_the_first_step(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.run(1)
    with pytest.raises(ValueError, match="before the first step"):
        Checkpoint(training.net, training.trainer, **training.options)


def test_a_network_needs_its_trainer() -> None:
    with pytest.raises(TypeError, match="a network and its trainer"):
        Checkpoint(mx.gluon.nn.Dense(1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"keep": 0}, "keep: expected at least 1"),
        ({"keep": 1.5}, "keep: expected a number of checkpoints"),
        ({"seed": "1"}, "seed: expected an int or None"),
        ({"every": 0}, "every: expected a number or time above zero"),
        ({"every": 2.5}, "every: expected a number of steps"),
    ],
)
def test_argument_that_makes_no_sense(
    tmp_path: Path, options: Dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Checkpoint(directory=str(tmp_path), **options)
    assert os.listdir(tmp_path) == []


def test_swapped_arguments(tmp_path: Path) -> None:
    net = mx.gluon.nn.Dense(1)
    net.initialize()
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd")
    with pytest.raises(TypeError, match="expected a gluon.Block"):
        Checkpoint(trainer, net, directory=str(tmp_path))


def test_loops_need_a_network(tmp_path: Path) -> None:
    storage.unlock()
    checkpoint = Checkpoint(directory=str(tmp_path))
    for loop in (checkpoint.epochs, checkpoint.batches):
        with pytest.raises(CheckpointError, match="a Module needs fit"):
            loop(3)  # type: ignore[operator]


class Adversaries:
    """Two networks of the same shapes, each with its own trainer and kind of optimizer."""

    def __init__(self, directory: Path, epochs: int, leave_at: int = -1) -> None:
        mx.random.seed(1)
        self.nets = [mx.gluon.nn.Dense(2, in_units=3) for _ in range(2)]
        for net in self.nets:
            net.initialize(mx.init.Xavier())
        names = ("adam", "sgd")
        self.trainers = [
            mx.gluon.Trainer(net.collect_params(), name, {"learning_rate": 0.1})
            for net, name in zip(self.nets, names)
        ]
        storage.unlock()
        checkpoint = Checkpoint(self.nets, self.trainers, directory=str(directory), every=1)
        data = [mx.nd.array([[number, 1, 2]]) for number in range(4)]
        for _ in checkpoint.epochs(epochs):
            for batch in checkpoint.batches(data):
                if checkpoint.step == leave_at:
                    checkpoint._manager._writer.join()
                    return
                for sign, net, trainer in zip((1, -1), self.nets, self.trainers):
                    with mx.autograd.record():
                        loss = (sign * net(batch)).sum()
                    loss.backward()
                    trainer.step(1)

    @property
    def weights(self) -> List[Any]:
        return [net.weight.data().asnumpy().tolist() for net in self.nets]


def test_several_networks_keep_their_own_weights(tmp_path: Path) -> None:
    once = Adversaries(tmp_path / "once", 3)
    assert once.weights[0] != once.weights[1]
    Adversaries(tmp_path / "cut", 3, leave_at=6)
    assert Adversaries(tmp_path / "cut", 3).weights == once.weights


def test_other_number_of_networks_is_rejected(tmp_path: Path) -> None:
    Adversaries(tmp_path, 1)
    with pytest.raises(CheckpointError, match="the weights of 2 networks, but this script has 1"):
        Training(tmp_path)


def test_trainer_of_another_network_is_rejected(tmp_path: Path) -> None:
    nets = [mx.gluon.nn.Dense(1, prefix=f"{name}_") for name in "ab"]
    nets[1].initialize()
    trainer = mx.gluon.Trainer(nets[1].collect_params(), "sgd")
    with pytest.raises(CheckpointError, match="not in the network: b_bias, b_weight"):
        Checkpoint(nets[0], trainer, directory=str(tmp_path))


def test_distributed_kvstore_for_several_trainers_is_rejected(tmp_path: Path) -> None:
    nets = [mx.gluon.nn.Dense(1) for _ in range(2)]
    for net in nets:
        net.initialize()
    trainers = [mx.gluon.Trainer(net.collect_params(), "sgd", kvstore="dist_sync") for net in nets]
    with pytest.raises(CheckpointError, match="several trainers cannot share"):
        Checkpoint(nets, trainers, directory=str(tmp_path))


def test_second_checkpoint_in_a_directory_is_rejected(tmp_path: Path) -> None:
    Training(tmp_path).run(1)
    with pytest.raises(CheckpointError, match="already has a Checkpoint in "):
        Checkpoint(directory=str(tmp_path / ".." / tmp_path.name))


def optimized_by(directory: Path, name: str, **options: Any) -> Any:
    def prepare(trainer: Any) -> None:
        trainer._init_optimizer(name, options)

    return Training(directory, prepare=prepare)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("adam", {}, "of the optimizer SGD, but this script uses Adam"),
        ("sgd", {"momentum": 0.5}, "momentum was 0.9 and is 0.5"),
        ("sgd", {"momentum": 0.9, "wd": 0.1}, "wd was 0.0 and is 0.1"),
        ("nag", {"momentum": 0.9}, "of the optimizer SGD, but this script uses NAG"),
    ],
)
def test_other_optimizer_is_rejected(
    tmp_path: Path, name: str, options: Dict[str, Any], message: str
) -> None:
    optimized_by(tmp_path, "sgd", momentum=0.9).run(1)
    with pytest.raises(CheckpointError, match=message) as caught:
        optimized_by(tmp_path, name, **options)
    assert caught.value.kind is FailureKind.CHECKPOINT_USE


def test_ignored_learning_rate_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimized_by(tmp_path, "sgd", learning_rate=0.1).run(1)
    optimized_by(tmp_path, "sgd", learning_rate=0.1)
    assert "ignored" not in caplog.text
    for _ in range(2):  # the run that ignored it does not make it the one that counts
        caplog.clear()
        again = optimized_by(tmp_path, "sgd", learning_rate=0.01)
        assert "learning_rate was 0.1 and is 0.01" in caplog.text
        assert again.trainer.learning_rate == 0.1
        again.run(2)


def test_optimizer_that_cannot_be_stored_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the optimizer cannot be stored: .*lambda"):
        optimized_by(tmp_path, "sgd", lr_scheduler=lambda _: 0.1)


@pytest.mark.parametrize("state", [{3: 0.5}, {"best": [{"of": {3: 0.5}}]}])
def test_key_that_would_become_a_string_is_an_error(tmp_path: Path, state: Any) -> None:
    training = Training(tmp_path)
    training.checkpoint.state.update(state)
    with pytest.raises(CheckpointError, match="stored: the key 3 is not a string: use '3'"):
        training.run(1)


def test_checkpoint_of_release_5_0_is_restored(tmp_path: Path) -> None:
    Training(tmp_path).run(1)
    path = tmp_path / listing(str(tmp_path))[-1].name
    with CheckpointFile(str(path)) as file:
        members = {name: file.read(name) for name in file.names}
    about = json.loads(members["about.json"])
    [scale] = about["settings"]["scales"]
    about["settings"] = scale
    del about["passes"], about["optimizers"]
    members["about.json"] = json.dumps(about).encode()
    with open(path, "wb") as file:
        write(file, [(name, [content]) for name, content in members.items()])
    assert Training(tmp_path).run(2) == [4, 5, 6, 7]
