"""``sagemaker-mxnet-training export``: what it writes computes what MXNet computes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Callable, List

import mxnet as mx
import numpy as np
import pytest

from sagemaker_mxnet_training import export
from sagemaker_mxnet_training.training_utils import SHAPES, SYMBOL, save

onnxruntime = pytest.importorskip("onnxruntime")


def a_module(directory: Path) -> None:
    net = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=16)
    net = mx.sym.FullyConnected(mx.sym.Activation(net, act_type="relu"), num_hidden=4)
    module = mx.mod.Module(mx.sym.SoftmaxOutput(net, name="softmax"))
    module.bind([("data", (4, 8))], [("softmax_label", (4,))])
    module.init_params(mx.init.Xavier())
    save(str(directory), module)


def of_the_zoo(name: str) -> Callable[[Path], None]:
    """Return what saves a model of the zoo, with random weights."""

    def build(directory: Path) -> None:
        net = mx.gluon.model_zoo.vision.get_model(name, classes=10)
        net.initialize(mx.init.Xavier())
        net.hybridize()
        net(mx.nd.random.normal(shape=(2, 3, 32, 32)))
        save(str(directory), net)

    build.__name__ = name
    return build


ZOO = [
    of_the_zoo(name) for name in ("resnet18_v1", "resnet18_v2", "mobilenet1.0", "mobilenetv2_0.5")
]


def an_embedding(directory: Path) -> None:
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Embedding(50, 6), mx.gluon.nn.Dense(3))
    net.initialize()
    net.hybridize()
    net(mx.nd.array([[1, 2, 3]]))
    save(str(directory), net)


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sagemaker_mxnet_training", "export", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("build", [a_module, an_embedding, *ZOO])
def test_an_exported_model_agrees_with_mxnet(build, tmp_path: Path) -> None:
    build(tmp_path)
    done = export.export(str(tmp_path), str(tmp_path / "model.onnx"))
    assert done.difference <= 1e-5
    assert done.any_batch
    session = onnxruntime.InferenceSession(done.path)
    (described,) = json.loads((tmp_path / SHAPES).read_text())
    (given,) = session.get_inputs()
    assert given.name == described["name"]
    assert given.shape[1:] == described["shape"][1:]
    data = np.ones([7, *described["shape"][1:]], "float32")
    assert session.run(None, {given.name: data})[0].shape[0] == 7


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    a_module(tmp_path)
    done = run(str(tmp_path), "--onnx", str(tmp_path / "model.onnx"))
    assert done.returncode == 0, done.stderr
    assert "inputs data [batch, 8], any batch size" in done.stdout
    assert sorted(p.name for p in tmp_path.glob("*.onnx*")) == ["model.onnx"]


def test_a_directory_without_a_model_is_told(tmp_path: Path) -> None:
    done = run(str(tmp_path), "--onnx", str(tmp_path / "model.onnx"))
    assert done.returncode == 1
    assert f"{tmp_path / SYMBOL} does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_onnx_computes_otherwise_is_not_written(tmp_path, monkeypatch) -> None:
    a_module(tmp_path)

    def otherwise(mxnet, model_dir, data) -> List[np.ndarray]:
        return [np.full((len(data["data"]), 4), 0.25 + 2e-5, "float32")]

    monkeypatch.setattr(export, "_predict", otherwise)
    with pytest.raises(export.ExportError, match="computes something else"):
        export.export(str(tmp_path), str(tmp_path / "model.onnx"))
    assert not list(tmp_path.glob("*.onnx*"))


def test_an_operator_that_has_no_counterpart_is_named(tmp_path: Path) -> None:
    net = mx.sym.erfinv(mx.sym.Variable("data"))
    module = mx.mod.Module(net, label_names=None)
    module.bind([("data", (2, 3))])
    module.init_params()
    save(str(tmp_path), module)
    with pytest.raises(export.ExportError, match="erfinv"):
        export.export(str(tmp_path), str(tmp_path / "model.onnx"))


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    a_module(tmp_path)
    with pytest.raises(export.ExportError, match=r"missing/model\.onnx"):
        export.export(str(tmp_path), str(tmp_path / "missing" / "model.onnx"))
