"""Graphs that are built from the inputs in a checkpoint, with real MXNet."""

import json
import logging
from pathlib import Path
from typing import Any, Callable, List, Sequence

import pytest

mx = pytest.importorskip("mxnet")

import numpy as np  # noqa: E402
from mxnet.gluon import nn, rnn  # noqa: E402

from sagemaker_mxnet_toolkit.model_files import PARAMS, SHAPES, SYMBOL  # noqa: E402
from sagemaker_mxnet_training.checkpoints import (  # noqa: E402
    Checkpoint,
    block_inputs,
    storage,
)
from sagemaker_mxnet_training.checkpoints.catalog import listing  # noqa: E402
from sagemaker_mxnet_training.checkpoints.checkpoint_file import CheckpointFile, write  # noqa: E402
from sagemaker_mxnet_training.training_utils import save  # noqa: E402


class TwoInputs(mx.gluon.HybridBlock):
    """Two inputs, of which the second is a list with ``None``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        with self.name_scope():
            self.left, self.right = nn.Dense(3), nn.Dense(3)

    def hybrid_forward(self, F: Any, x: Any, others: Any) -> Any:
        return self.left(x) * self.right(others[1])


class ByMode(mx.gluon.HybridBlock):
    """Has a second output while it is trained, as detection networks do."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        with self.name_scope():
            self.dense = nn.Dense(3)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        y = self.dense(x)
        return (y, F.relu(y)) if mx.autograd.is_training() else y


class Repeated(mx.gluon.HybridBlock):
    """A loop in the graph, whose body is a graph of its own."""

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.contrib.foreach(lambda row, sum_: (row + sum_, row + sum_), x, F.sum(x, axis=0))[0]


class Equal(nn.Dense):
    """Cannot be a key of a dictionary."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


def sequential() -> Any:
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(nn.Conv2D(4, 3), nn.BatchNorm(), nn.Dropout(0.5), nn.Dense(5))
    return net


def dense(dtype: str = "float32") -> Any:
    net = nn.Dense(3, prefix="net_", in_units=4)
    net.cast(dtype)
    return net


def recurrent() -> Any:
    net = nn.HybridSequential(prefix="net_")
    with net.name_scope():
        net.add(rnn.LSTM(6, input_size=4), nn.Dense(2))
    return net


def ones(*shape: int, dtype: str = "float32") -> Any:
    return mx.nd.ones(shape, dtype=dtype)


CASES = {
    "convolutions": (sequential, [ones(2, 3, 8, 8)]),
    "nested inputs": (lambda: TwoInputs(prefix="net_"), [ones(2, 4), [None, ones(2, 7)]]),
    "another type": (lambda: dense("float64"), [ones(2, 4, dtype="float64")]),
    "a sparse input": (dense, [ones(2, 4).tostype("csr")]),
    "a graph for training": (lambda: ByMode(prefix="net_"), [ones(2, 4)]),
    "a recurrent layer": (recurrent, [ones(5, 2, 4)]),
    "a loop": (lambda: Repeated(prefix="net_"), [ones(5, 4)]),
    "an unhashable block": (lambda: Equal(3, prefix="net_"), [ones(2, 4)]),
}


def trained(make: Callable[[], Any], inputs: Sequence[Any]) -> Any:
    net = make()
    net.initialize(mx.init.Xavier())
    net.hybridize()
    with mx.autograd.train_mode():
        net(*inputs)
    return net


def resumed(make: Callable[[], Any], earlier: Any, path: Path) -> Any:
    """Return a network with the weights and the records of another one, as after a restart."""
    earlier.save_parameters(str(path / "weights"))
    net = make()
    net.initialize()
    if earlier.collect_params():
        net.load_parameters(str(path / "weights"))
    block_inputs.restore(net, json.loads(json.dumps(block_inputs.records(earlier))))
    net.hybridize()
    return net


def outputs(net: Any, inputs: Sequence[Any]) -> List[Any]:
    found = net(*inputs)
    return [x.asnumpy() for x in (found if isinstance(found, (list, tuple)) else [found])]


@pytest.mark.parametrize("case", list(CASES))
def test_saved_model_is_that_of_the_earlier_run(tmp_path: Path, case: str) -> None:
    make, inputs = CASES[case]
    earlier = trained(make, inputs)
    net = resumed(make, earlier, tmp_path)
    save(str(tmp_path / "earlier"), earlier)
    save(str(tmp_path / "resumed"), net)
    for name in (PARAMS, SHAPES):
        expected = (tmp_path / "earlier" / name).read_bytes()
        assert (tmp_path / "resumed" / name).read_bytes() == expected
    for one, other in zip(outputs(earlier, inputs), outputs(net, inputs)):
        assert np.array_equal(one, other)


def test_numpy_block_is_built(tmp_path: Path) -> None:
    mx.npx.set_np()
    try:
        inputs = [mx.np.ones((2, 3, 8, 8))]
        earlier = trained(sequential, inputs)
        net = resumed(sequential, earlier, tmp_path)
        assert block_inputs.build(net)
        assert np.array_equal(outputs(net, inputs)[0], outputs(earlier, inputs)[0])
    finally:
        mx.npx.reset_np()


def test_hybrid_blocks_of_a_block_are_built(tmp_path: Path) -> None:
    def make() -> Any:
        net = nn.Sequential(prefix="net_")
        with net.name_scope():
            net.add(nn.Dense(3), nn.Dense(2))
        return net

    earlier = trained(make, [ones(2, 4)])
    net = resumed(make, earlier, tmp_path)
    save(str(tmp_path), net[1])
    assert json.loads((tmp_path / SHAPES).read_text()) == [{"name": "data", "shape": [2, 3]}]


def test_export_builds_the_graph(tmp_path: Path) -> None:
    net = resumed(sequential, trained(sequential, [ones(2, 3, 8, 8)]), tmp_path)
    net.export(str(tmp_path / "model"))
    assert (tmp_path / SYMBOL).exists()


def test_export_without_a_graph_is_still_an_error(tmp_path: Path) -> None:
    net = sequential()
    net.initialize()
    net.hybridize()
    with pytest.raises(RuntimeError, match="run forward"):
        net.export(str(tmp_path / "model"))


def test_building_changes_no_state(tmp_path: Path) -> None:
    net = resumed(sequential, trained(sequential, [ones(2, 3, 8, 8)]), tmp_path)

    def state() -> List[bytes]:
        mx.random.seed(3)
        arrays = [p.data() for p in net.collect_params().values()]
        return [x.asnumpy().tobytes() for x in [*arrays, mx.nd.random.uniform(shape=5)]]

    before = state()
    mx.random.seed(3)
    assert block_inputs.build(net)
    drawn = mx.nd.random.uniform(shape=5).asnumpy().tobytes()
    assert [*state()[:-1], drawn] == before
    assert not mx.autograd.is_recording()


@pytest.mark.parametrize("times", [1, 2])
def test_graph_that_was_built_several_times(tmp_path: Path, times: int) -> None:
    """Each graph that ``BatchNorm`` is in raises the version of its mean and variance."""
    earlier = trained(sequential, [ones(2, 3, 8, 8)])
    for _ in range(times):
        earlier.hybridize()
        earlier(ones(2, 3, 8, 8))
    net = resumed(sequential, earlier, tmp_path)
    earlier.hybridize()
    for number, each in enumerate([net, earlier]):
        save(str(tmp_path / str(number)), each)


def test_graph_of_this_process_is_kept(tmp_path: Path) -> None:
    earlier = trained(dense, [ones(2, 4)])
    net = trained(dense, [ones(7, 4)])
    block_inputs.restore(net, block_inputs.records(earlier))
    assert block_inputs.build(net)
    assert block_inputs.shapes(net) == [(7, 4)]


class Configured(mx.gluon.HybridBlock):
    """Its graph depends on an attribute that a script sets."""

    relu = True

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return F.relu(x) if self.relu else F.tanh(x)


def test_another_graph_is_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = resumed(Configured, trained(Configured, [ones(2, 4)]), tmp_path)
    net.relu = False
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match=r"block\(batch\)"):
        save(str(tmp_path / "model"), net)
    assert "cannot be built without a batch: it differs from that of training" in caplog.text
    net(ones(3, 4))
    save(str(tmp_path / "model"), net)
    assert json.loads((tmp_path / "model" / SHAPES).read_text())[0]["shape"] == [3, 4]


def test_recurrent_layer_alone_is_not_saved(tmp_path: Path) -> None:
    """Whether it has states as outputs depends on how it is called."""

    def make() -> Any:
        return rnn.LSTM(6, input_size=4, prefix="net_")

    net = resumed(make, trained(make, [ones(5, 2, 4)]), tmp_path)
    with pytest.raises(ValueError, match="no graph yet"):
        save(str(tmp_path / "model"), net)


class Run:
    """A run of a script, which trains for two epochs."""

    def __init__(self, directory: Path) -> None:
        storage.unlock()  # as the end of an earlier process does
        self.nets = [sequential() for _ in range(2)]  # those of a GAN
        trainers = []
        for net in self.nets:
            net.initialize()
            net.hybridize()
            trainers.append(mx.gluon.Trainer(net.collect_params(), "adam"))
        self.checkpoint = Checkpoint(self.nets, trainers, directory=str(directory))
        self.steps = 0
        for _ in self.checkpoint.epochs(2):
            for batch in self.checkpoint.batches([ones(2, 3, 8, 8)] * 3):
                for net, trainer in zip(self.nets, trainers):
                    with mx.autograd.record():
                        loss = net(batch).sum()
                    loss.backward()
                    trainer.step(2)
                self.steps += 1


def test_resumed_run_without_epochs_saves_all_networks(tmp_path: Path) -> None:
    first = Run(tmp_path / "checkpoints")
    Run(tmp_path / "checkpoints").checkpoint.save()  # has the inputs of the first run
    last = Run(tmp_path / "checkpoints")
    assert (first.steps, last.steps) == (6, 0)
    for number, (net, other) in enumerate(zip(first.nets, last.nets)):
        save(str(tmp_path / f"first-{number}"), net)
        save(str(tmp_path / f"last-{number}"), other)
        for name in (PARAMS, SHAPES):
            expected = (tmp_path / f"first-{number}" / name).read_bytes()
            assert (tmp_path / f"last-{number}" / name).read_bytes() == expected


def test_checkpoint_without_inputs_is_restored(tmp_path: Path) -> None:
    Run(tmp_path)
    entry = listing(str(tmp_path))[-1]
    with CheckpointFile(str(tmp_path / entry.name)) as file:
        members = {name: file.read(name) for name in file.names}
    about = json.loads(members["about.json"])
    assert about["settings"].pop("inputs")
    members["about.json"] = json.dumps(about).encode()
    with open(tmp_path / f"checkpoint-{entry.number + 1:06d}-step-6.zip", "xb") as output:
        write(output, [(name, (content,)) for name, content in members.items()])
    again = Run(tmp_path)
    assert again.steps == 0
    with pytest.raises(ValueError, match="no graph yet"):
        save(str(tmp_path / "model"), again.nets[0])
