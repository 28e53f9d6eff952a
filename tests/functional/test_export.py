"""``sagemaker-mxnet-training export``: what it writes computes what MXNet computes."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Callable, List

import mxnet as mx
import numpy as np
import pytest

from sagemaker_mxnet_training import export
from sagemaker_mxnet_training.training_utils import PARAMS, SHAPES, SYMBOL, save

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


NUMPY = """
import sys
import mxnet as mx
from sagemaker_mxnet_training.training_utils import save
mx.npx.set_np()
net = mx.gluon.nn.HybridSequential()
net.add(mx.gluon.nn.Dense(8, activation="relu"), mx.gluon.nn.Dense(3))
net.initialize()
net.hybridize()
net(mx.np.ones((2, 4)))
save(sys.argv[1], net)
"""


def of_numpy_arrays(directory: Path) -> None:
    """Save a model under ``npx.set_np``, which holds for a whole process."""
    subprocess.run([sys.executable, "-c", NUMPY, str(directory)], check=True, timeout=120)


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sagemaker_mxnet_training", "export", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("package", ["mxnet.onnx", "mxnet.contrib.onnx"])
@pytest.mark.parametrize(
    "loss", ["SoftmaxOutput", "LogisticRegressionOutput", "LinearRegressionOutput"]
)
def test_mxnet_exports_a_module_with_a_loss(package: str, loss: str, tmp_path: Path) -> None:
    """As AWS's scripts call it: files, the shape of the data alone, and NumPy's type."""
    net = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=4)
    module = mx.mod.Module(getattr(mx.sym, loss)(net, name="output"), label_names=["output_label"])
    labels = (1,) if loss == "SoftmaxOutput" else (1, 4)
    module.bind([("data", (1, 8))], [("output_label", labels)])
    module.init_params(mx.init.Xavier())
    save(str(tmp_path), module)
    files = [str(tmp_path / name) for name in (SYMBOL, PARAMS)]
    path = importlib.import_module(package).export_model(
        *files, [(1, 8)], np.float32, str(tmp_path / "model.onnx")
    )
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].name == "data"
    data = np.random.RandomState(1).rand(1, 8).astype("float32")
    module.forward(mx.io.DataBatch([mx.nd.array(data)]), is_train=False)
    [found] = session.run(None, {"data": data})
    np.testing.assert_allclose(found, module.get_outputs()[0].asnumpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [a_module, an_embedding, of_numpy_arrays, *ZOO])
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


def test_the_command_prints_what_it_wrote(tmp_path: Path) -> None:
    a_module(tmp_path)
    done = run(str(tmp_path), "--onnx", str(tmp_path / "model.onnx"))
    assert done.returncode == 0, done.stderr
    assert "inputs data [batch, 8], any batch size" in done.stdout
    assert sorted(p.name for p in tmp_path.glob("*.onnx*")) == ["model.onnx"]


def test_directory_without_a_model_is_reported(tmp_path: Path) -> None:
    done = run(str(tmp_path), "--onnx", str(tmp_path / "model.onnx"))
    assert done.returncode == 1
    assert f"there is no saved model in {tmp_path} (found: nothing)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [SYMBOL, PARAMS])
def test_truncated_model_is_told(tmp_path: Path, name: str) -> None:
    """And not an operator that cannot be converted."""
    a_module(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    done = run(str(tmp_path), "--onnx", str(tmp_path / "model.onnx"))
    assert done.returncode == 1
    assert f"{SYMBOL} and {PARAMS} cannot be read: " in done.stderr
    assert done.stderr.endswith("one of them may be truncated\n")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "model.onnx").exists()


def test_directory_instead_of_a_file_is_told(tmp_path: Path) -> None:
    a_module(tmp_path)
    done = run(str(tmp_path), "--onnx", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith("is a directory; expected a file, such as model.onnx\n")


def test_a_model_is_found_wherever_serve_finds_it(tmp_path: Path) -> None:
    a_module(tmp_path / "my_model")
    for name, other in ((SYMBOL, "net-symbol.json"), (PARAMS, "net-0003.params")):
        (tmp_path / "my_model" / name).rename(tmp_path / "my_model" / other)
    with pytest.raises(export.ExportError, match="net-shapes.json does not exist"):
        export.export(str(tmp_path), str(tmp_path / "model.onnx"))
    (tmp_path / "my_model" / SHAPES).rename(tmp_path / "my_model" / "net-shapes.json")
    assert export.export(str(tmp_path), str(tmp_path / "model.onnx")).any_batch


def test_a_model_that_onnx_computes_otherwise_is_not_written(tmp_path, monkeypatch) -> None:
    a_module(tmp_path)

    def otherwise(mxnet, model_dir, data) -> List[np.ndarray]:
        return [np.full((len(data["data"]), 4), 0.25 + 2e-5, "float32")]

    monkeypatch.setattr(export, "_predict", otherwise)
    with pytest.raises(export.ExportError, match="computes other outputs"):
        export.export(str(tmp_path), str(tmp_path / "model.onnx"))
    assert not list(tmp_path.glob("*.onnx*"))


def test_outputs_that_are_not_numbers_are_not_compared(tmp_path: Path) -> None:
    net = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=2)
    module = mx.mod.Module(net, label_names=None)
    module.bind([("data", (2, 3))])
    module.init_params(mx.init.Constant(float("nan")))
    save(str(tmp_path), module)
    with pytest.raises(export.ExportError, match=r"NaN .* in MXNet too.*check the parameters"):
        export.export(str(tmp_path), str(tmp_path / "model.onnx"))
    assert not list(tmp_path.glob("*.onnx*"))


@pytest.mark.parametrize("theirs", [[1.0, np.nan, 1.0], [1.0, np.inf, np.nan]])
def test_outputs_that_are_not_numbers_on_one_side_differ(theirs: List[float]) -> None:
    ours = np.array([1.0, np.inf, 2.0])
    assert export._difference(np, ours, np.array([1.0, np.inf, 2.0])) == 0.0
    assert export._difference(np, ours, np.array(theirs)) > export.TOLERANCE


def test_an_operator_that_has_no_counterpart_is_named(tmp_path: Path) -> None:
    net = mx.sym.erfinv(mx.sym.Variable("data"))
    module = mx.mod.Module(net, label_names=None)
    module.bind([("data", (2, 3))])
    module.init_params()
    save(str(tmp_path), module)
    with pytest.raises(export.ExportError, match="erfinv"):
        export.export(str(tmp_path), str(tmp_path / "model.onnx"))


def test_half_precision_on_a_cpu_is_reported(tmp_path: Path) -> None:
    net = mx.gluon.nn.Dense(3, in_units=4)
    net.initialize()
    net.cast("float16")
    net.hybridize()
    with pytest.raises(mx.base.MXNetError):  # its graph is built, however
        net(mx.nd.ones((2, 4), dtype="float16")).wait_to_read()
    save(str(tmp_path), net)
    done = run(str(tmp_path), "--onnx", str(tmp_path / "model.onnx"))
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if "MXNetError" in line]
    cause = f"MXNet cannot run the model {tmp_path / SYMBOL}: MXNetError: float16 fully connected "
    assert cause in line
    assert "version; MXNet runs" in line
    assert line.endswith('call net.cast("float32") and net(batch), and save the model again')
    assert "Traceback" not in done.stderr
    net.cast("float32")
    net(mx.nd.ones((2, 4)))
    save(str(tmp_path), net)
    assert export.export(str(tmp_path), str(tmp_path / "model.onnx")).any_batch


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    a_module(tmp_path)
    with pytest.raises(export.ExportError, match=r"missing/model\.onnx"):
        export.export(str(tmp_path), str(tmp_path / "missing" / "model.onnx"))
