"""Models of real MXNet behind requests: each row's answer is the one that MXNet gives."""

import gc
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys

import psutil
import pytest

mx = pytest.importorskip("mxnet", reason="MXNet is not installed")
import numpy as np  # noqa: E402
from mxnet.gluon import nn  # noqa: E402

from sagemaker_mxnet_serving.inference import (  # noqa: E402
    ModelError,
    ModelMemoryError,
    ModelSettings,
    Request,
)
from sagemaker_mxnet_serving.worker import function_handler  # noqa: E402
from sagemaker_mxnet_serving.worker.executors import SIZES, split  # noqa: E402
from sagemaker_mxnet_serving.worker.loading import device  # noqa: E402
from sagemaker_mxnet_serving.worker.media_types import CSV, JSON, NPY  # noqa: E402
from sagemaker_mxnet_serving.worker.worker_process import load  # noqa: E402
from sagemaker_mxnet_toolkit.failure import FailureKind  # noqa: E402
from sagemaker_mxnet_toolkit.model_files import PARAMS, SHAPES, SYMBOL  # noqa: E402
from sagemaker_mxnet_training.training_utils import save  # noqa: E402
from tests.support.leaks import no_leaks  # noqa: E402

COLUMNS, CLASSES = 6, 4


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.chdir(os.getcwd())  # loading a model enters its directory
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    monkeypatch.delenv("SM_CURRENT_HOST", raising=False)
    monkeypatch.delenv("SM_HOSTS", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    mx.random.seed(7)
    np.random.seed(7)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "inference" in name:
            del sys.modules[name]


def network(*layers):
    net = nn.HybridSequential()
    net.add(*(layers or (nn.Dense(16, activation="relu"), nn.Dense(CLASSES))))
    net.initialize(mx.init.Xavier())
    net.hybridize()
    return net


def saved(directory, first=1, shape=(COLUMNS,), net=None):
    """Save a network; return what predicts rows with MXNet alone."""
    net = net or network()
    net(mx.nd.zeros((first, *shape)))
    save(str(directory), net)
    return lambda rows: net(mx.nd.array(rows)).asnumpy()


def service(directory, script=None, **settings):
    if script is not None:
        (directory / "code").mkdir(exist_ok=True)
        (directory / "code" / "inference.py").write_text(script)
    return load(ModelSettings(str(directory), **settings))


def random(rows, *shape):
    return np.random.uniform(-1, 1, (rows, *(shape or (COLUMNS,)))).astype("float32")


def body(array, content_type):
    if content_type == NPY:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()
    if content_type == JSON:
        return json.dumps(array.tolist()).encode()
    return "\n".join(",".join(map(repr, row.ravel().tolist())) for row in array).encode()


def request(array, content_type=JSON, accept="", name="r"):
    return Request(name, body(array, content_type), content_type, accept)


def numbers(response):
    assert response.status == 200, response.body
    if response.content_type == JSON:
        return np.array(json.loads(response.body), dtype="float32")
    if response.content_type == NPY:
        return np.load(io.BytesIO(response.body), allow_pickle=False)
    assert response.content_type == CSV
    return np.loadtxt(io.BytesIO(response.body), delimiter=",", ndmin=2, dtype="float32")


def answer(ready, *requests):
    responses = ready.predict(requests)
    assert len(responses) == len(requests)
    return responses


def same(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


# Rows


@pytest.mark.parametrize("first", [1, 4, 8])
def test_any_number_of_rows(tmp_path, first):
    """Defect 3 of the peer: of a model bound at 4 rows, 5 rows have 2 answers, and 4 have none."""
    reference = saved(tmp_path, first)
    ready = service(tmp_path)
    for rows in [*range(1, 10), 33, 70]:
        array = random(rows)
        expected = reference(array)
        for content_type in (JSON, CSV, NPY, "text-csv", "Text/CSV; charset=utf-8"):
            kind = CSV if "csv" in content_type.lower() else content_type
            for accept in (JSON, CSV, NPY):
                asked = Request("r", body(array, kind), content_type, accept)
                (response,) = answer(ready, asked)
                assert response.content_type == accept
                same(numbers(response), expected)


@pytest.mark.parametrize("sizes", [SIZES, (1,), (4,), (1, 2, 4, 8)])
def test_batches_have_little_padding(sizes):
    for rows in range(1, 150):
        batches = split(rows, sizes)
        assert sum(count for count, _ in batches) == rows
        assert all(0 < count <= size and size in sizes for count, size in batches)
        assert all(count == size for count, size in batches[:-1])
        count, size = batches[-1]
        assert size - count <= size / 4 or size == min(sizes)


@pytest.mark.parametrize("first", [1, 4, 8])
def test_images_in_every_content_type(tmp_path, first):
    net = network(nn.Conv2D(4, 3), nn.BatchNorm(), nn.Activation("relu"), nn.Dense(3))
    reference = saved(tmp_path, first, (3, 8, 8), net)
    ready = service(tmp_path)
    for rows in range(1, 10):
        array = random(rows, 3, 8, 8)
        for content_type in (JSON, CSV, NPY):
            (response,) = answer(ready, request(array, content_type))
            same(numbers(response), reference(array))


def test_first_dimension_of_the_setting(tmp_path):
    reference = saved(tmp_path, 1)
    ready = service(tmp_path, first_dimension=4)
    assert ready.describe()["rows"] == "any number, in batches of 4"
    for rows in range(1, 10):
        array = random(rows)
        same(numbers(*answer(ready, request(array))), reference(array))


def mlp():
    return network(nn.Dense(8, activation="relu"), nn.Dense(3))


def convolutional():
    return network(nn.Conv2D(4, 3, padding=1), nn.GlobalAvgPool2D(), nn.Dense(3))


BOUND_BY_SCRIPT = """
import mxnet as mx
def model_fn(model_dir):
    symbol, args, auxs = mx.model.load_checkpoint(model_dir + "/model", 0)
    module = mx.mod.Module(symbol, data_names=["data"], label_names=None)
    module.bind([("data", (1, 1, 8, 8))], for_training=False)
    module.set_params(args, auxs)
    return module
"""


@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize(
    ("net", "shapes"),
    [
        # As AWS's notebooks send images of MNIST: without channels.
        (mlp, [(16, 8, 8), (1, 8, 8), (2, 64), (5, 4, 16)]),
        (convolutional, [(2, 1, 12, 10), (1, 1, 3, 3), (3, 1, 8, 8)]),
    ],
)
def test_shapes_that_the_graph_takes(tmp_path, net, shapes, first):
    reference = saved(tmp_path, first, (1, 8, 8), net())
    write = "def output_fn(prediction, accept): return prediction.asnumpy().tolist()\n"
    for script in (None, BOUND_BY_SCRIPT, write, BOUND_BY_SCRIPT + write):
        ready = service(tmp_path, script)
        for shape in shapes:
            array = random(*shape)
            for content_type in (JSON, NPY):
                same(numbers(*answer(ready, request(array, content_type))), reference(array))
        for wrong in ((1, 5, 5), (8, 8), (2, 2, 9, 9)):
            for content_type in (JSON, NPY):
                (response,) = answer(ready, request(random(*wrong), content_type))
                assert (response.status, b"rows, 1, 8, 8" in response.body) == (400, True)
        sys.modules.pop("inference", None)


def test_rows_are_reshaped_to_the_saved_shape(tmp_path):
    net = network(nn.Conv2D(4, 3), nn.Dense(3))
    reference = saved(tmp_path, 1, (1, 8, 8), net)
    ready = service(tmp_path)
    for shape in ((16, 8, 8), (1, 8, 8), (3, 64)):
        array = random(*shape)
        for content_type in (JSON, NPY):
            expected = reference(array.reshape(-1, 1, 8, 8))
            same(numbers(*answer(ready, request(array, content_type))), expected)


def test_requests_of_other_shapes_are_batched_by_shape(tmp_path):
    reference = saved(tmp_path, 1, (1, 8, 8), convolutional())
    ready = service(tmp_path, max_batch=8)
    arrays = [random(rows, 1, side, side) for rows, side in ((1, 8), (2, 9), (1, 9), (40, 7))]
    for response, array in zip(answer(ready, *map(request, arrays)), arrays):
        same(numbers(response), reference(array))


def test_graph_with_a_constant_batch_size(tmp_path):
    data = mx.sym.var("data")
    hidden = mx.sym.reshape(mx.sym.FullyConnected(data, num_hidden=6, name="fc"), shape=(4, 6))
    module = mx.mod.Module(mx.sym.softmax(hidden), data_names=["data"], label_names=None)
    module.bind([("data", (4, COLUMNS))], for_training=False)
    module.init_params(mx.init.Xavier())
    save(str(tmp_path), module)
    ready = service(tmp_path)
    assert ready.describe()["rows"] == "any number, in batches of 4"
    for rows in range(1, 10):
        array = random(rows)
        padded = np.concatenate([array, np.zeros((-rows % 4, COLUMNS), "float32")])
        expected = module.predict(mx.io.NDArrayIter(padded, batch_size=4)).asnumpy()[:rows]
        same(numbers(*answer(ready, request(array))), expected)
    with pytest.raises(ModelError, match="FIRST_DIMENSION_SIZE"):
        service(tmp_path, first_dimension=3)


def test_no_memory_beyond_the_rows_is_read(tmp_path):
    """MXNet would read it: a reshape is not checked for the number of values."""
    data = mx.sym.reshape(mx.sym.var("data"), shape=(4, COLUMNS))
    module = mx.mod.Module(mx.sym.mean(data, axis=0), data_names=["data"], label_names=None)
    module.bind([("data", (4, COLUMNS))], for_training=False)
    module.init_params()
    save(str(tmp_path), module)
    ready = service(tmp_path)
    assert answer(ready, request(random(4)))[0].status == 200
    for rows in (1, 3, 5):
        (response,) = answer(ready, request(random(rows)))
        assert (response.status, b"does not support" in response.body) == (400, True)


class OverRows(mx.gluon.HybridBlock):
    """As many outputs as rows, and each depends on all of them."""

    def hybrid_forward(self, F, x):
        return F.softmax(x, axis=0)


class FirstToAll(mx.gluon.HybridBlock):
    """Each row depends on the first, as a state goes on from row to row."""

    def hybrid_forward(self, F, x):
        return F.broadcast_add(x, F.slice_axis(x, axis=0, begin=0, end=1))


class Mean(mx.gluon.HybridBlock):
    """One output for all rows."""

    def hybrid_forward(self, F, x):
        return F.mean(x, axis=0, keepdims=True)


@pytest.mark.parametrize("block", [OverRows, FirstToAll, Mean])
def test_outputs_without_one_row_per_input_row(tmp_path, block):
    net = block()
    net.hybridize()
    reference = saved(tmp_path, 3, net=net)
    ready = service(tmp_path, max_batch=8)
    assert not ready.batchable
    assert "in one batch" in ready.describe()["rows"]
    for rows in (1, 2, 3, 5, 40):
        array = random(rows)
        same(numbers(*answer(ready, request(array))), reference(array))
    many = [random(2), random(3)]
    for response, array in zip(answer(ready, *map(request, many)), many):
        same(numbers(response), reference(array))
    assert answer(ready, request(random(5000)))[0].status == 400


@pytest.mark.parametrize("block", [OverRows, FirstToAll])
def test_dependent_rows_are_detected_without_batching(tmp_path, block):
    net = block()
    net.hybridize()
    reference = saved(tmp_path, 1, net=net)
    for arrays in ([random(3)], [random(40)], [random(1), random(1)]):
        ready = service(tmp_path)
        for response, array in zip(answer(ready, *map(request, arrays)), arrays):
            same(numbers(response), reference(array))


class Tokens(mx.gluon.HybridBlock):
    """A sequence of tokens, time first: all fractions are the same token to it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.embedding = nn.Embedding(10, 3)
            self.lstm = mx.gluon.rnn.LSTM(4, layout="TNC")

    def hybrid_forward(self, F, x):
        return self.lstm(self.embedding(x))


def test_dependent_tokens_are_detected(tmp_path):
    net = Tokens()
    net.initialize(mx.init.Uniform(1))
    net.hybridize()
    reference = saved(tmp_path, 5, (1,), net)
    for rows in (5, 3, 8):
        array = np.random.randint(0, 10, (rows, 1)).astype("float32")
        (response,) = answer(service(tmp_path), request(array))
        same(np.array(json.loads(response.body), "float32"), reference(array))


# Models

LABELLED = """
import collections, json
import mxnet as mx
Batch = collections.namedtuple("Batch", ["data"])
"""


@pytest.mark.parametrize(
    "functions",
    [
        "def transform_fn(model, body, content_type, accept):\n"
        "    model.forward(Batch([mx.nd.array(json.loads(body))]))\n"
        "    return model.get_outputs()[0].asnumpy().tolist()\n",
        "def transform_fn(model, body, content_type, accept):\n"
        "    data = mx.nd.array(json.loads(body))\n"
        "    model.reshape([('data', data.shape)])\n"
        "    model.forward(mx.io.DataBatch([data]), is_train=False)\n"
        "    return model.get_outputs()[0].asnumpy().tolist()\n",
        "def input_fn(body, content_type): return mx.nd.array(json.loads(body))\n",
        "def input_fn(body, content_type):\n"
        "    return mx.io.NDArrayIter(mx.nd.array(json.loads(body)), batch_size=1)\n",
        "def input_fn(body, content_type):\n"
        "    data = mx.nd.array(json.loads(body))\n"
        "    return mx.io.NDArrayIter(data, mx.nd.zeros(len(data)), batch_size=len(data))\n",
        "def predict_fn(data, model): return model.predict(data)\n",
    ],
)
@pytest.mark.parametrize("size", [None, 1])
def test_module_with_a_label_in_a_script(tmp_path, functions, size):
    symbol = mx.sym.SoftmaxOutput(
        mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=3, name="fc"), name="softmax"
    )
    module = mx.mod.Module(symbol)
    module.bind([("data", (32, COLUMNS))], [("softmax_label", (32,))])
    module.init_params(mx.init.Xavier())
    save(str(tmp_path), module)
    ready = service(tmp_path, LABELLED + functions, first_dimension=size)
    padded = np.concatenate([random(40), np.zeros((24, COLUMNS), "float32")])
    expected = module.predict(mx.io.NDArrayIter(padded, batch_size=32)).asnumpy()
    for rows in (1, 3, 40, 1):
        same(numbers(*answer(ready, request(padded[:rows]))), expected[:rows])
    for wrong in (random(1, 7), random(2, 5)):
        assert answer(ready, request(wrong))[0].status in (400, 500)
    same(numbers(*answer(ready, request(padded[:3]))), expected[:3])


def test_module_is_bound_for_one_row(tmp_path):
    saved(tmp_path, 32)
    script = (
        "def transform_fn(model, body, content_type, accept):\n"
        "    return [each.shape for each in model.data_shapes]\n"
    )
    for size, shape in ((None, [1, 6]), (4, [4, 6])):
        ready = service(tmp_path, script, first_dimension=size)
        assert json.loads(answer(ready, Request("r", b"", ""))[0].body) == [shape]
        sys.modules.pop("inference")


class Siamese(mx.gluon.HybridBlock):
    """Two inputs, two outputs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.left, self.right = nn.Dense(5), nn.Dense(5)

    def hybrid_forward(self, F, x, y):
        return self.left(x) * self.right(y), F.sum(x, axis=1)


def test_several_inputs_and_outputs(tmp_path):
    net = Siamese()
    net.initialize(mx.init.Xavier())
    net.hybridize()
    net(mx.nd.zeros((1, 3)), mx.nd.zeros((1, 2)))
    save(str(tmp_path), net)
    ready = service(tmp_path)
    names = [each["name"] for each in ready.describe()["inputs"]]
    for rows in (1, 3, 9):
        x, y = random(rows, 3), random(rows, 2)
        text = json.dumps(dict(zip(names, (x.tolist(), y.tolist())))).encode()
        (response,) = answer(ready, Request("r", text, JSON))
        first, second = (each.asnumpy() for each in net(mx.nd.array(x), mx.nd.array(y)))
        found = json.loads(response.body)
        same(np.array(found[0], "float32"), first)
        same(np.array(found[1], "float32"), second)
    assert answer(ready, Request("r", b"1,2,3", CSV))[0].status == 415
    assert answer(ready, Request("r", text, JSON, CSV))[0].status == 406


class Scale(mx.gluon.HybridBlock):
    """MXNet's layers have no half precision on a CPU; a product has."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.weight = self.params.get("weight", shape=(COLUMNS,))

    def hybrid_forward(self, F, x, weight):
        return F.broadcast_mul(x, weight)


def test_half_precision(tmp_path):
    net = Scale()
    net.initialize(mx.init.Uniform())
    net.cast("float16")
    net.hybridize()
    net(mx.nd.zeros((1, COLUMNS), dtype="float16"))
    save(str(tmp_path), net)
    ready = service(tmp_path)
    assert ready.describe()["inputs"][0]["dtype"] == "float16"
    array = random(3).astype("float16")
    expected = net(mx.nd.array(array, dtype="float16")).asnumpy()
    for content_type in (JSON, CSV, NPY):
        for accept in (JSON, CSV, NPY):
            found = numbers(*answer(ready, request(array, content_type, accept)))
            np.testing.assert_array_equal(found.astype("float16"), expected)
    # Doubles are converted; what half precision cannot hold is refused.
    found = numbers(*answer(ready, request(array.astype("float64"), NPY, NPY)))
    assert found.tobytes() == expected.tobytes()
    assert answer(ready, request(np.full((1, COLUMNS), 1e6), NPY))[0].status == 400


def test_module_with_a_label(tmp_path):
    symbol = mx.sym.SoftmaxOutput(
        mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=3, name="fc"), name="softmax"
    )
    module = mx.mod.Module(symbol)
    module.bind([("data", (4, COLUMNS))], [("softmax_label", (4,))])
    module.init_params(mx.init.Xavier())
    save(str(tmp_path), module)
    ready = service(tmp_path)
    array = random(7)
    expected = module.predict(mx.io.NDArrayIter(array, batch_size=4)).asnumpy()
    same(numbers(*answer(ready, request(array))), expected)


def test_indices_of_an_embedding(tmp_path):
    net = network(nn.Embedding(10, 3), nn.Dense(2))
    reference = saved(tmp_path, 2, (5,), net)
    array = np.random.randint(0, 10, (5, 5))
    for content_type in (JSON, CSV, NPY):
        same(numbers(*answer(service(tmp_path), request(array, content_type))), reference(array))


GLUON = """
import mxnet as mx
from mxnet.gluon import nn
def model_fn(model_dir):
    net = nn.HybridSequential()
    net.add(nn.Dense(16, activation="relu"), nn.Dense(4))
    net.load_parameters(model_dir + "/net.params")
    return net
"""


NUMPY = """
import os, sys
import mxnet as mx
from mxnet.gluon import nn
from sagemaker_mxnet_training.training_utils import save
mx.npx.set_np()

class Block(mx.gluon.HybridBlock):
    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(4)

    def hybrid_forward(self, F, x):
        return F.np.tanh(self.dense(x))

layers = nn.HybridSequential()
layers.add(nn.Dense(8, activation="relu"), nn.Dropout(0.5), nn.Dense(4))
for name, net in (("np operator", Block()), ("no np operator", layers)):
    net.initialize(mx.init.Xavier())
    net.hybridize()
    print(net(mx.np.full((3, 6), 0.5)).asnumpy().tolist())
    save(os.path.join(sys.argv[1], name), net)
"""

ANSWERING = """
import json, sys
from sagemaker_mxnet_serving.inference import ModelSettings, Request
from sagemaker_mxnet_serving.worker.worker_process import load
for name in sys.argv[1:]:
    ready = load(ModelSettings(name))
    body = json.dumps([[0.5] * 6] * 3).encode()
    print(ready.predict([Request("r", body, "application/json")])[0].body.decode())
"""

NUMPY_SCRIPT = """
from mxnet import np, npx
npx.set_np()
def output_fn(prediction, accept):
    assert isinstance(prediction, np.ndarray)
    return prediction
"""


def test_models_of_numpy_arrays(tmp_path):
    """MXNet marks them in the file of the parameters; the operators may be the usual ones."""
    names = [tmp_path / "np operator", tmp_path / "no np operator"]

    def run(program, *arguments):  # set_np holds for a whole process
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            timeout=120,
            check=True,
        )
        return [np.array(json.loads(line), "float32") for line in done.stdout.splitlines()]

    expected = run(NUMPY, tmp_path)
    for name, right in zip(names, expected):
        same(run(ANSWERING, name)[0], right)
        (name / "code").mkdir()
        (name / "code" / "inference.py").write_text(NUMPY_SCRIPT)
    for found, right in zip(run(ANSWERING, *names), expected):
        same(found, right)


def test_gluon_block_of_a_script(tmp_path):
    net = network()
    net(mx.nd.zeros((1, COLUMNS)))
    net.save_parameters(str(tmp_path / "net.params"))
    ready = service(tmp_path, GLUON)
    assert ready.batchable
    assert ready.describe()["functions"] == ["model_fn"]
    for rows in range(1, 10):
        array = random(rows)
        expected = net(mx.nd.array(array)).asnumpy()
        for content_type in (JSON, CSV, NPY):
            same(numbers(*answer(ready, request(array, content_type))), expected)
    wrong, right = answer(ready, request(random(1, 7)), request(array))
    assert wrong.status == 400
    assert b"(1, 7)" in wrong.body
    same(numbers(right), expected)


SIAMESE = """
import json
import mxnet as mx
class Siamese(mx.gluon.HybridBlock):
    def __init__(self):
        super().__init__(prefix="siamese_")
        with self.name_scope():
            self.left = mx.gluon.nn.Dense(5, in_units=2)
            self.right = mx.gluon.nn.Dense(5, in_units=4)
            self.scale = self.params.get("scale", shape=(1,))
    def hybrid_forward(self, F, x, y, bias=None, scale=None):
        found = F.broadcast_mul(self.left(x) * self.right(y), scale)
        return found if bias is None else F.broadcast_add(found, bias)
def model_fn(model_dir):
    mx.random.seed(3)
    net = Siamese()
    net.initialize(mx.init.Uniform(1))
    return net
"""
ARRAYS = "    x, y = (mx.nd.array(rows) for rows in json.loads(body))\n"


def siamese(tmp_path):
    names = {"__name__": "siamese"}
    exec(SIAMESE, names)
    return names["model_fn"](None)


def test_block_with_several_inputs(tmp_path):
    net = siamese(tmp_path)
    ready = service(tmp_path, SIAMESE, max_batch=4)
    assert [each["name"] for each in ready.describe()["inputs"]] == ["x", "y", "bias"]
    x, y = random(3, 2), random(3, 4)
    bias = random(3, 1)
    expected = net(mx.nd.array(x), mx.nd.array(y)).asnumpy()
    biased = net(mx.nd.array(x), mx.nd.array(y), mx.nd.array(bias)).asnumpy()
    named = {"y": y.tolist(), "x": x.tolist()}
    bodies = [named, [x.tolist(), y.tolist()], {**named, "bias": None}]
    bodies += [{**named, "bias": bias.tolist()}, [x.tolist(), y.tolist(), bias.tolist()]]
    requests = [Request("r", json.dumps(each).encode(), JSON) for each in bodies]
    for responses in (answer(ready, *requests), [answer(ready, each)[0] for each in requests]):
        for response, right in zip(responses, [expected] * 3 + [biased] * 2):
            same(numbers(response), right)
    for wrong in ({"x": x.tolist()}, [x.tolist()], {**named, "z": [1]}):
        (response,) = answer(ready, Request("r", json.dumps(wrong).encode(), JSON))
        assert (response.status, b"y" in response.body) == (400, True)
    assert answer(ready, request(x, CSV))[0].status == 415


@pytest.mark.parametrize(
    "returned",
    [
        "[x, y]",
        "(x, y)",
        "{'y': y, 'x': x}",
        "(x.asnumpy(), y.asnumpy())",
        "mx.io.NDArrayIter([x, y], batch_size=2)",
        "mx.io.NDArrayIter({'y': y, 'x': x}, batch_size=2)",
        "mx.io.DataBatch([x, y])",
        "iter([x, y])",
    ],
)
def test_several_inputs_of_an_input_fn(tmp_path, returned):
    net = siamese(tmp_path)
    script = f"def input_fn(body, content_type):\n{ARRAYS}    return {returned}\n"
    x, y = random(3, 2), random(3, 4)
    (response,) = answer(
        service(tmp_path, SIAMESE + script),
        Request("r", json.dumps([x.tolist(), y.tolist()]).encode(), JSON),
    )
    same(numbers(response), net(mx.nd.array(x), mx.nd.array(y)).asnumpy())


@pytest.mark.parametrize(
    "returned",
    [
        "mx.io.NDArrayIter(data, batch_size=2)",
        "mx.io.NDArrayIter(data, mx.nd.zeros(len(data)), batch_size=1)",
        "mx.io.NDArrayIter({'data': data}, batch_size=8)",
        "mx.io.DataBatch([data])",
        "{'data': data}",
        "data.asnumpy()",
    ],
)
def test_one_input_of_an_input_fn(tmp_path, returned):
    """The document of SageMaker's MXNet containers has an ``NDArrayIter`` for a Gluon net too."""
    net = network()
    net(mx.nd.zeros((1, COLUMNS)))
    net.save_parameters(str(tmp_path / "net.params"))
    script = (
        "import json\ndef input_fn(body, content_type):\n"
        f"    data = mx.nd.array(json.loads(body))\n    return {returned}\n"
    )
    ready = service(tmp_path, GLUON + script)
    for rows in (1, 5):
        array = random(rows)
        same(numbers(*answer(ready, request(array))), net(mx.nd.array(array)).asnumpy())


def test_blocks_of_other_kinds(tmp_path):
    net = Siamese()
    net.initialize(mx.init.Xavier())
    net.hybridize()
    x, y = random(2, 3), random(2, 2)
    net(mx.nd.array(x), mx.nd.array(y))
    net.export(str(tmp_path / "siamese"))
    exported = (
        "import mxnet as mx\ndef model_fn(model_dir):\n"
        "    return mx.gluon.SymbolBlock.imports(model_dir + '/siamese-symbol.json',\n"
        "        ['data0', 'data1'], model_dir + '/siamese-0000.params')\n"
    )
    plain = (
        "import mxnet as mx\nclass Pairs(mx.gluon.Block):\n"
        "    def forward(self, pair):\n        a, b = pair\n        return {'sum': [a + b]}\n"
        "def model_fn(model_dir): return Pairs()\n"
        "def input_fn(body, content_type): return [mx.nd.ones(2), mx.nd.ones(2)]\n"
    )
    recurrent = (
        "import mxnet as mx\ndef model_fn(model_dir):\n"
        "    net = mx.gluon.rnn.LSTM(4, layout='NTC')\n    net.initialize()\n    return net\n"
    )
    ready = service(tmp_path, exported)
    text = json.dumps({"data0": x.tolist(), "data1": y.tolist()}).encode()
    first, second = json.loads(answer(ready, Request("r", text, JSON))[0].body)
    expected = net(mx.nd.array(x), mx.nd.array(y))
    same(np.array(first, "float32"), expected[0].asnumpy())
    same(np.array(second, "float32"), expected[1].asnumpy())
    sys.modules.pop("inference")
    (response,) = answer(service(tmp_path, plain), Request("r", b"", JSON))
    assert response.body == b'{"sum":[[2.0,2.0]]}'
    sys.modules.pop("inference")
    found = numbers(*answer(service(tmp_path, recurrent), request(random(2, 3, 5), NPY, JSON)))
    assert found.shape == (2, 3, 4)


@pytest.mark.parametrize("first", [1, 4, 8])
def test_module_of_a_script(tmp_path, first):
    reference = saved(tmp_path, first)
    script = """
import mxnet as mx
def model_fn(model_dir):
    symbol, args, auxs = mx.model.load_checkpoint(model_dir + "/model", 0)
    module = mx.mod.Module(symbol, data_names=["data"], label_names=None)
    module.bind([("data", (%d, 6))], for_training=False)
    module.set_params(args, auxs)
    return module
"""
    ready = service(tmp_path, script % first)
    assert ready.batchable
    for rows in range(1, 10):
        array = random(rows)
        for content_type in (JSON, CSV, NPY):
            same(numbers(*answer(ready, request(array, content_type))), reference(array))


# Batches of requests


def test_batched_requests_get_their_own_rows(tmp_path):
    reference = saved(tmp_path)
    ready = service(tmp_path, max_batch=16)
    assert ready.batchable
    arrays = [random(rows) for rows in (1, 3, 2, 9, 1)]
    kinds = [JSON, CSV, NPY, JSON, CSV]
    accepts = [CSV, JSON, NPY, NPY, JSON]
    bad = [
        Request("bad", b"[[1, 2]]", JSON),
        Request("bad", b"1,x", CSV),
        Request("bad", b"", NPY),
        Request("bad", b"1", "image/png"),
        Request("bad", body(arrays[0], JSON), JSON, "image/png"),
    ]
    good = list(map(request, arrays, kinds, accepts))
    mixed = [each for pair in zip(good, bad) for each in pair]
    responses = answer(ready, *mixed)
    assert [each.status for each in responses[1::2]] == [400, 400, 400, 415, 406]
    for response, array, accept in zip(responses[::2], arrays, accepts):
        assert response.content_type == accept
        same(numbers(response), reference(array))
    assert answer(ready) == []


def test_bad_request_does_not_affect_the_next(tmp_path):
    """Defect 4 of the peer: the executor stays in the shape of the bad request."""
    reference = saved(tmp_path, 4)
    ready = service(tmp_path)
    array = random(4)
    expected = numbers(*answer(ready, request(array)))
    same(expected, reference(array))
    for bad in (random(4, 5), random(4, 7), random(1, 3, 6), random(0, 6), random(9, 60)):
        for content_type in (JSON, NPY):
            assert answer(ready, request(bad, content_type))[0].status == 400
        assert numbers(*answer(ready, request(array))).tobytes() == expected.tobytes()


FAILING = """
import mxnet as mx

class Picky(mx.operator.CustomOp):
    def forward(self, is_train, req, in_data, out_data, aux):
        assert in_data[0].min().asscalar() >= 0, "a negative number"
        self.assign(out_data[0], req[0], in_data[0] * 2)

@mx.operator.register("picky")
class PickyProp(mx.operator.CustomOpProp):
    def create_operator(self, ctx, shapes, dtypes):
        return Picky()

def pre_model_fn(model_dir):
    pass
"""


def test_failing_operator_does_not_affect_other_requests(tmp_path, capfd):
    code = tmp_path / "code"
    code.mkdir()
    (code / "inference.py").write_text(FAILING)
    exec(FAILING, {})
    module = mx.mod.Module(
        mx.sym.Custom(mx.sym.var("data"), op_type="picky"), data_names=["data"], label_names=None
    )
    module.bind([("data", (1, 2))], for_training=False)
    module.init_params()
    save(str(tmp_path), module)
    ready = service(tmp_path, max_batch=4)
    good, bad = np.ones((2, 2), "float32"), -np.ones((1, 2), "float32")
    for _ in range(3):
        responses = answer(ready, request(good), request(bad, name="id-5"), request(good))
        assert [each.status for each in responses] == [200, 500, 200]
        assert b"request id-5" in responses[1].body
        for each in responses[::2]:
            same(numbers(each), good * 2)
        assert capfd.readouterr().err.count("request id-5") == 1


def test_pickle_in_an_npy_body_is_rejected(tmp_path):
    """Defect 5 of the peer: it is executed, as root."""
    saved(tmp_path)
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(witness),))

    stream = io.BytesIO()
    np.save(stream, np.array([[Evil()] * COLUMNS], dtype=object), allow_pickle=True)
    (response,) = answer(service(tmp_path), Request("r", stream.getvalue(), NPY))
    assert response.status == 400
    assert not witness.exists()


def test_bad_requests_leak_no_memory(tmp_path):
    saved(tmp_path)
    ready = service(tmp_path)
    bad = [
        Request("r", b"[[1, 2]]", JSON),
        Request("r", b"[" * 5000, JSON),
        Request("r", b"1,x\n" * 500, CSV),
        Request("r", body(random(50, 7), NPY), NPY),
        Request("r", b"\x93NUMPY\x01\x00" + b"\xff" * 500, NPY),
        Request("r", b"1", "image/png"),
        Request("r", body(random(1), JSON), JSON, "image/png"),
    ]

    def resident():
        for _ in range(200):
            assert all(each.status in (400, 406, 415) for each in answer(ready, *bad))
        gc.collect()
        return psutil.Process().memory_info().rss

    resident()
    first = resident()
    assert resident() - first < 2**20


def test_gpu_is_used_if_there_is_one(tmp_path):
    """Defect 19 of the peer: it never is."""
    assert device(ModelSettings(str(tmp_path), gpus=1)) == mx.gpu(0)
    assert device(ModelSettings(str(tmp_path))) == mx.cpu()


# The user's functions

DATA = "import json, mxnet as mx, numpy as np\n"


def test_arguments_of_functions(tmp_path):
    reference = saved(tmp_path, 4)
    script = DATA + (
        "def predict_fn(data, model):\n"
        "    assert type(data) is mx.io.NDArrayIter, type(data)\n"
        "    assert isinstance(model, mx.mod.Module), type(model)\n"
        "    return model.predict(data)\n"
        "def output_fn(prediction, accept):\n"
        "    assert isinstance(prediction, mx.nd.NDArray)\n"
        "    return json.dumps({accept: prediction.asnumpy().tolist()}), 'application/json'\n"
    )
    ready = service(tmp_path, script)
    assert not ready.batchable
    for rows in range(1, 10):
        array = random(rows)
        for content_type in (JSON, CSV, NPY):
            (response,) = answer(ready, request(array, content_type, "a/b"))
            assert response.content_type == JSON
            same(np.array(json.loads(response.body)["a/b"], "float32"), reference(array))


def test_each_function_can_be_replaced_alone(tmp_path):
    reference = saved(tmp_path, 4)
    array = random(5)
    scripts = [
        "def input_fn(body, content_type):\n"
        "    return mx.io.NDArrayIter(mx.nd.array(json.loads(body)), batch_size=4)\n",
        "def input_fn(body, content_type, model):\n"
        "    assert isinstance(model, mx.mod.Module)\n"
        "    return mx.io.NDArrayIter(mx.nd.array(json.loads(body)), batch_size=4)\n",
        "def predict_fn(data, model, context):\n    return model.predict(data).asnumpy()\n",
        "def output_fn(prediction, accept):\n    return prediction.asnumpy().tolist()\n",
        "def transform_fn(model, body, content_type, accept):\n"
        "    data = mx.nd.array(json.loads(body))\n"
        "    return model.predict(mx.io.NDArrayIter(data, batch_size=4)).asnumpy().tolist()\n",
        "def transform_fn(model, body, content_type, accept, context):\n"
        "    data = mx.nd.array(json.loads(body))\n"
        "    rows = model.predict(mx.io.NDArrayIter(data, batch_size=4)).asnumpy()\n"
        "    return '\\n'.join(','.join(map(str, row)) for row in rows), 'text/csv'\n",
    ]
    for script in scripts:
        ready = service(tmp_path, DATA + script)
        same(numbers(*answer(ready, request(array))), reference(array))
        sys.modules.pop("inference")


def test_block_of_a_script_gets_an_ndarray(tmp_path):
    net = network()
    net(mx.nd.zeros((1, COLUMNS)))
    net.save_parameters(str(tmp_path / "net.params"))
    script = GLUON + (
        "def predict_fn(data, model):\n"
        "    assert type(data) is mx.nd.NDArray and data.dtype.__name__ == 'float32'\n"
        "    return model(data)\n"
    )
    ready = service(tmp_path, script)
    array = random(3)
    for content_type in (JSON, CSV, NPY):
        for accept in (JSON, CSV, NPY):
            found = numbers(*answer(ready, request(array, content_type, accept)))
            same(found, net(mx.nd.array(array)).asnumpy())


def test_bodies_are_text_for_json_and_csv(tmp_path):
    script = (
        "def model_fn(model_dir): return None\n"
        "def transform_fn(model, body, content_type, accept):\n"
        "    return [type(body).__name__, len(body), content_type, accept]\n"
    )
    ready = service(tmp_path, script)
    text = "é".encode()
    for content_type, kind, length in (
        (JSON, "str", 1),
        ("Text/CSV; charset=utf-8", "str", 1),
        (NPY, "bytes", 2),
        ("image/png", "bytes", 2),
        ("", "bytes", 2),
    ):
        (response,) = answer(ready, Request("r", text, content_type))
        assert json.loads(response.body) == [kind, length, content_type, JSON]
    (response,) = answer(ready, Request("r", b"\xff", JSON, "a/b"))
    assert (response.status, b"not valid UTF-8" in response.body) == (400, True)


@pytest.mark.parametrize("status", ["999", "100", "True"])
def test_a_status_that_is_not_valid_is_an_error(tmp_path, status):
    script = (
        "def model_fn(model_dir): return None\n"
        "def transform_fn(model, body, content_type, accept):\n"
        f"    return 'ok', 'text/plain', {status}\n"
    )
    (response,) = answer(service(tmp_path, script), Request("r", b"x", CSV))
    assert response.status == 500
    assert f"the function returned the status {status}" in response.body.decode()


def test_a_content_type_of_two_lines_is_an_error(tmp_path):
    script = (
        "def model_fn(model_dir): return None\n"
        "def transform_fn(model, body, content_type, accept):\n"
        "    return 'ok', 'text/plain\\r\\nX-Mine: 1'\n"
    )
    (response,) = answer(service(tmp_path, script), Request("r", b"x", CSV))
    assert response.status == 500
    assert b"expected one line" in response.body


def test_results_of_functions(tmp_path):
    script = (
        "import collections\n"
        "import mxnet as mx\n"
        "import numpy as np\n"
        "Pair = collections.namedtuple('Pair', 'label score')\n"
        "def model_fn(model_dir): return None\n"
        "def transform_fn(model, body, content_type, accept):\n"
        "    return eval(body)\n"
    )
    ready = service(tmp_path, script, accept=CSV)
    for text, accept, expected, content_type in (
        ("'a,b'", "", b"a,b", CSV),
        ("'a,b'", "text/plain, */*", b"a,b", "text/plain"),
        ("b'\\x00'", "image/png", b"\x00", "image/png"),
        ("bytearray(b'x')", "*/*", b"x", CSV),
        ("{'a': [1, 0.5]}", "text/csv", b'{"a":[1,0.5]}', JSON),
        ("np.array([[1.5]])", "", b"[[1.5]]", JSON),
        ("('<p>', 'text/html')", "", b"<p>", "text/html"),
        ("({'a': 1}, 'application/x')", "", b'{"a":1}', "application/x"),
        ("(1, 2)", "", b"[1,2]", JSON),
        ("('a,b', None)", "", b"a,b", CSV),
        ("([1], None)", "", b"[1]", JSON),
        ("(b'x', None)", "image/png", b"x", "image/png"),
        ("Pair('cat', 0.5)", "", b'["cat",0.5]', JSON),
        ("Pair('cat', 'dog')", "", b'["cat","dog"]', JSON),
        ("Pair('cat', None)", "", b'["cat",null]', JSON),
        ("Pair('<p>', 'text/html')", "", b"<p>", "text/html"),
        ("('<p>', 'text/html', 200)", "", b"<p>", "text/html"),
        ("('a', 'b', 200)", "", b'["a","b",200]', JSON),
        ("2**70", "", b"1180591620717411303424", JSON),
        ("type('F', (float,), {})(1.5)", "", b"1.5", JSON),
        ("type('S', (str,), {})('a')", "", b"a", CSV),
        ("np.float32(0.1)", "", b"0.10000000149011612", JSON),
        ("{'a': mx.nd.ones(2), 'b': mx.np.ones(1)}", "", b'{"a":[1.0,1.0],"b":[1.0]}', JSON),
        ("[mx.nd.ones(1), mx.nd.ones(2)]", "", b"[[1.0],[1.0,1.0]]", JSON),
        ("(i for i in range(3))", "", b"[0,1,2]", JSON),
        ("(i for i in 'ab')", "", b"ab", CSV),
        ("iter([b'a', b'b'])", "image/png", b"ab", "image/png"),
        ("iter([])", "", b"[]", JSON),
        ("None", "", b"null", JSON),
    ):
        (response,) = answer(ready, Request("r", text.encode(), CSV, accept))
        assert (response.status, response.body) == (200, expected)
        assert response.content_type == content_type


@pytest.mark.parametrize(
    "functions",
    [
        "async def input_fn(body, content_type):\n"
        "    await asyncio.sleep(0)\n"
        "    return mx.nd.array(json.loads(body))\n",
        "async def predict_fn(data, model):\n"
        "    await asyncio.sleep(0)\n"
        "    return model.predict(data)\n",
        "lock = asyncio.Lock()\n"
        "async def output_fn(prediction, accept):\n"
        "    async with lock:\n"
        "        return json.dumps(prediction.asnumpy().tolist())\n",
        "async def transform_fn(model, body, content_type, accept):\n"
        "    return model.predict(mx.nd.array(json.loads(body)))\n",
        "def output_fn(prediction, accept):\n"
        "    yield '['\n"
        "    yield ','.join(str(row.asnumpy().tolist()) for row in prediction)\n"
        "    yield ']'\n",
        "def predict_fn(data, model):\n    yield from model.predict(data).asnumpy().tolist()\n",
        "async def predict_fn(data, model):\n"
        "    for row in model.predict(data).asnumpy():\n"
        "        yield row.tolist()\n",
    ],
)
def test_async_functions_and_generators(tmp_path, functions):
    reference = saved(tmp_path)
    ready = service(tmp_path, "import asyncio, json\nimport mxnet as mx\n" + functions)
    for rows in (1, 3):
        array = random(rows)
        same(numbers(*answer(ready, request(array))), reference(array))


def test_async_model_fn(tmp_path):
    script = (
        "async def model_fn(model_dir): return 'model'\n"
        "async def transform_fn(model, body, content_type, accept): 1 / (model != body)\n"
    )
    ready = service(tmp_path, script)
    assert answer(ready, Request("r", b"other", JSON))[0].body == b"null"
    (response,) = answer(ready, Request("r", b"model", JSON))
    assert response.body.startswith(b"transform_fn raised ZeroDivisionError")


def test_headers_of_the_context(tmp_path):
    script = (
        "def model_fn(model_dir, context): return context.model_dir\n"
        "def transform_fn(model, body, content_type, accept, context):\n"
        "    context.set_custom_attributes(context.custom_attributes.upper())\n"
        "    context.open_session('s-1')\n"
        "    return context.request_id + model\n"
    )
    headers = {"x-amzn-sagemaker-custom-attributes": "trace"}
    ready = service(tmp_path, script)
    (response,) = answer(ready, Request("r-9", b"", "", "", headers))
    assert response.body.decode() == "r-9" + str(tmp_path)
    assert response.headers == {
        "X-Amzn-SageMaker-Custom-Attributes": "TRACE",
        "X-Amzn-SageMaker-New-Session-Id": "s-1",
    }


def test_functions_of_the_start_are_called_in_order(tmp_path):
    saved(tmp_path)
    script = (
        "calls = []\n"
        "def pre_model_fn(model_dir): calls.append('pre_model_fn')\n"
        "def model_fn(model_dir):\n"
        "    calls.append('model_fn')\n"
        "    return 'model'\n"
        "def model_warmup_fn(model_dir, model): calls.append('model_warmup_fn ' + model)\n"
        "def predict_fn(data, model): return calls\n"
    )
    ready = service(tmp_path, script)
    for _ in range(2):
        (response,) = answer(ready, request(random(1)))
        assert json.loads(response.body) == ["pre_model_fn", "model_fn", "model_warmup_fn model"]


def test_warm_up_function_gets_the_saved_model(tmp_path):
    reference = saved(tmp_path)
    script = (
        "import mxnet as mx\n"
        "def model_warmup_fn(model_dir, model):\n"
        "    assert model.predict(mx.nd.zeros((1, 6))).shape == (1, 4)\n"
    )
    array = random(3)
    same(numbers(*answer(service(tmp_path, script), request(array))), reference(array))


# Errors


def test_error_of_a_function_is_only_logged(tmp_path, capfd):
    saved(tmp_path)
    for name, arguments in (
        ("input_fn", "body, content_type"),
        ("predict_fn", "data, model"),
        ("output_fn", "prediction, accept"),
        ("transform_fn", "model, body, content_type, accept"),
    ):
        script = f"def {name}({arguments}):\n    raise KeyError('the-secret at /opt/path')\n"
        ready = service(tmp_path, script)
        capfd.readouterr()
        (response,) = answer(ready, request(random(1), name="id-7"))
        assert (response.status, response.headers) == (500, {})
        text = response.body.decode()
        assert f"{name} raised KeyError; see the container's log for request id-7" in text
        assert "secret" not in text
        assert "/" not in text
        # Without what libmxnet.so says of its own work, if it says it in this process.
        log = re.sub(r"(?m)^\[\d\d:\d\d:\d\d\] \S+\.(?:cc|h):\d+: .*\n", "", capfd.readouterr().err)
        assert log.count("the-secret") == 2  # the line of code, and the message
        assert [line for line in log.splitlines() if "id-7" not in line] == []
        assert f"in {name}" in log
        assert "sagemaker_mxnet_serving" not in log
        sys.modules.pop("inference")


def test_failing_default_is_named(tmp_path, monkeypatch):
    saved(tmp_path)
    ready = service(tmp_path, "def output_fn(prediction, accept): pass\n")

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(function_handler, "decode", fail)
    (response,) = answer(ready, request(random(1)))
    assert (response.status, response.body[:18]) == (500, b"input_fn (default)")


@pytest.mark.parametrize("status", [None, 422, 200, "422", 600])
def test_error_class_of_a_script(tmp_path, status):
    """A subclass that does not call ``super().__init__`` has the status of its class."""
    saved(tmp_path)
    script = (
        "from sagemaker_mxnet_serving import InferenceError\n"
        "class Wrong(InferenceError):\n"
        "    def __init__(self, text):\n"
        "        self.text = text\n"
        "    def __str__(self):\n"
        "        return self.text\n"
        "def input_fn(body, content_type):\n"
        "    error = Wrong('send a cat')\n"
    )
    if status is not None:
        script += f"    error.status = {status!r}\n"
    ready = service(tmp_path, script + "    raise error\n")
    (response,) = answer(ready, request(random(1)))
    expected = {None: 400, 422: 422}.get(status, 500)
    assert (response.status, response.body) == (expected, b"send a cat\n")


def test_status_of_a_script(tmp_path, capfd):
    saved(tmp_path)
    script = (
        "from sagemaker_mxnet_serving import InferenceError\n"
        "def input_fn(body, content_type):\n"
        "    raise InferenceError('send a cat', status=422)\n"
    )
    ready = service(tmp_path, script)
    capfd.readouterr()
    (response,) = answer(ready, request(random(1)))
    assert (response.status, response.body) == (422, b"send a cat\n")
    assert capfd.readouterr().err == ""


def test_result_that_cannot_be_encoded(tmp_path, capfd):
    script = (
        "def model_fn(model_dir): return None\n"
        "def transform_fn(model, body, content_type, accept): return object()\n"
    )
    (response,) = answer(service(tmp_path, script), Request("id-8", b"", ""))
    assert response.status == 500
    assert b"raised TypeError; see the container" in response.body


def test_module_predicts_after_a_failure(tmp_path):
    """MXNet leaves a Module in the shape of the batch that it could not predict."""
    reference = saved(tmp_path, 4)
    script = DATA + (
        "def input_fn(body, content_type):\n"
        "    array = mx.nd.array(json.loads(body))\n"
        "    return mx.io.NDArrayIter(array, batch_size=len(array))\n"
    )
    ready = service(tmp_path, script)
    array = random(4)
    expected = numbers(*answer(ready, request(array)))
    same(expected, reference(array))
    for wrong in (random(4, 9), random(3, 2, 2)):
        assert answer(ready, request(wrong))[0].status == 500
        assert numbers(*answer(ready, request(array))).tobytes() == expected.tobytes()


def test_status_of_errors(tmp_path):
    saved(tmp_path)
    ready = service(tmp_path)
    array = random(1)
    for asked, status in (
        (Request("r", b"[[1, 2]]", JSON), 400),
        (Request("r", b"{", JSON), 400),
        (Request("r", body(array, JSON), "text/xml"), 415),
        (Request("r", body(array, JSON), JSON, "text/xml"), 406),
        (Request("r", body(array, JSON), JSON, "text/xml, */*;q=0.1"), 200),
    ):
        assert answer(ready, asked)[0].status == status


# Models that cannot be served


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("def model_fn(model_dir): raise OSError('weights')", r"model_fn of .* raised OSError"),
        ("def model_fn(model_dir): exit(3)", r"model_fn of .* raised SystemExit"),
        ("def model_fn(model_dir): return 5", r"^int from model_fn of .* cannot predict"),
        (
            "import mxnet as mx\n"
            "def model_fn(model_dir): return mx.mod.Module(mx.sym.var('data'), label_names=None)",
            r"is not bound or has no parameters",
        ),
        (
            "def transform_fn(model, body, content_type, accept): pass\n"
            "def output_fn(prediction, accept): pass",
            r"defines transform_fn and output_fn",
        ),
        ("def pre_model_fn(model_dir): 1 / 0", r"pre_model_fn of .* raised ZeroDivisionError"),
        ("def model_warmup_fn(model_dir, model): 1 / 0", r"model_warmup_fn of .* ZeroDivision"),
    ],
)
def test_scripts_that_cannot_be_served(tmp_path, script, words):
    saved(tmp_path)
    with pytest.raises(ModelError, match=words):
        service(tmp_path, script)


@pytest.mark.parametrize(
    "error",
    [
        "MemoryError",
        "mx.base.MXNetError('Failed to allocate CPU Memory')",
        "mx.base.MXNetError('std::bad_alloc')",
        "mx.base.MXNetError('cudaMalloc retry failed: out of memory')",
    ],
)
@pytest.mark.parametrize("function", ["model_fn(model_dir)", "model_warmup_fn(model_dir, model)"])
def test_lack_of_memory(tmp_path, function, error):
    saved(tmp_path)
    script = f"import mxnet as mx\ndef {function}: raise {error}\n"
    with pytest.raises(ModelMemoryError, match="not enough memory") as caught:
        service(tmp_path, script)
    assert caught.value.kind is FailureKind.OUT_OF_MEMORY


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no saved model in .*, or a script .* defines model_fn"):
        service(tmp_path)
    saved(tmp_path)
    (tmp_path / PARAMS).unlink()
    with pytest.raises(ModelError, match=r"no model-0000.params for model-symbol.json in .*found:"):
        service(tmp_path)


def test_models_that_mxnet_saves(tmp_path):
    """Without shapes, inputs are what has no parameter, and is not the label of a loss."""
    (tmp_path / "exported").mkdir()
    net = network()
    array = random(3)
    expected = net(mx.nd.array(array)).asnumpy()
    net.export(str(tmp_path / "exported" / "resnet"), 5)
    same(numbers(*answer(service(tmp_path / "exported"), request(array))), expected)
    (tmp_path / "checkpoint").mkdir()
    data = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=CLASSES, name="fc")
    module = mx.mod.Module(mx.sym.SoftmaxOutput(data, name="softmax"))
    module.bind([("data", (8, COLUMNS))], [("softmax_label", (8,))])
    module.init_params(mx.init.Xavier())
    for epoch in (1, 2):
        module.save_checkpoint(str(tmp_path / "checkpoint" / "net"), epoch)
    (tmp_path / "checkpoint" / "net-0001.params").write_bytes(b"not read")
    args, _ = module.get_params()
    logits = array @ args["fc_weight"].asnumpy().T + args["fc_bias"].asnumpy()
    expected = mx.nd.softmax(mx.nd.array(logits)).asnumpy()
    ready = service(tmp_path / "checkpoint")
    assert ready.describe()["inputs"] == [{"name": "data", "shape": None, "dtype": "float32"}]
    for content_type in (JSON, CSV, NPY):
        same(numbers(*answer(ready, request(array, content_type))), expected)
    script = "def output_fn(prediction, accept): return prediction.asnumpy().tolist()\n"
    same(numbers(*answer(service(tmp_path / "checkpoint", script), request(array))), expected)


@pytest.mark.parametrize("shapes", ["[]", '[{"name": "data", "shape": []}]'])
def test_block_saved_without_shapes(tmp_path, shapes):
    reference = saved(tmp_path)
    (tmp_path / SHAPES).write_text(shapes)
    ready = service(tmp_path)
    for rows in (3, 1, 40):
        array = random(rows)
        same(numbers(*answer(ready, request(array))), reference(array))
    assert answer(ready, request(random(2, 7)))[0].status == 400


def test_parameters_lost_without_shapes(tmp_path):
    saved(tmp_path)
    (tmp_path / SHAPES).unlink()
    params = mx.nd.load(str(tmp_path / PARAMS))
    mx.nd.save(str(tmp_path / PARAMS), dict(list(params.items())[1:]))
    with pytest.raises(ModelError, match=r"has no values of .*weight"):
        service(tmp_path)


@pytest.mark.parametrize("name", [SYMBOL, PARAMS, SHAPES])
def test_truncated_file_is_named(tmp_path, name):
    saved(tmp_path / "whole")
    content = (tmp_path / "whole" / name).read_bytes()
    for size in (0, 1, 20, len(content) // 2, len(content) - 1):
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        (tmp_path / "cut" / name).write_bytes(content[:size])
        with pytest.raises(ModelError, match=name) as caught:
            service(tmp_path / "cut")
        assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    "shapes",
    [
        "{}",
        "[1]",
        '[{"name": "data"}]',
        '[{"name": "data", "shape": [0, 6]}]',
        '[{"name": "data", "shape": ["a", 6]}]',
        '[{"name": "data", "shape": [1, 7]}]',
        '[{"name": "other", "shape": [1, 6]}]',
    ],
)
def test_shapes_that_do_not_fit(tmp_path, shapes):
    saved(tmp_path)
    (tmp_path / SHAPES).write_text(shapes)
    with pytest.raises(ModelError, match="expected"):
        service(tmp_path)


def test_parameters_that_do_not_fit(tmp_path):
    saved(tmp_path)
    params = mx.nd.load(str(tmp_path / PARAMS))
    mx.nd.save(str(tmp_path / PARAMS), dict(list(params.items())[1:]))
    with pytest.raises(ModelError, match=r"has no values of .*weight"):
        service(tmp_path)


# The process

FORKED = """
import json, os, sys
import numpy as np
from sagemaker_mxnet_serving.inference import ModelSettings, Request
from sagemaker_mxnet_serving.worker.worker_process import load
ready = load(ModelSettings(sys.argv[1]))
readers = []
for child in range(2):
    reader, writer = os.pipe()
    if os.fork() == 0:
        bodies = [json.dumps(np.full((rows, 6), 0.5).tolist()).encode() for rows in (1, 5, 40)]
        answers = ready.predict([Request("r", body, "application/json") for body in bodies])
        os.write(writer, b"".join(each.body + b"\\n" for each in answers))
        os._exit(0)
    os.close(writer)
    readers.append(reader)
print(json.dumps([os.fdopen(reader).read().split() for reader in readers]))
for _ in readers:
    assert os.wait()[1] == 0
"""


def test_workers_forked_after_the_first_prediction(tmp_path):
    reference = saved(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    for answers in json.loads(done.stdout.splitlines()[-1]):
        for text, rows in zip(answers, (1, 5, 40)):
            expected = reference(np.full((rows, COLUMNS), 0.5))
            same(np.array(json.loads(text), "float32"), expected)


def test_loading_starts_no_thread_and_writes_no_file(tmp_path):
    saved(tmp_path)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text("def pre_model_fn(model_dir): pass\n")
    before = sorted(tmp_path.rglob("*"))
    with no_leaks():
        service(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_description_is_json(tmp_path):
    saved(tmp_path, 4)
    description = json.loads(json.dumps(service(tmp_path).describe()))
    assert description["inputs"] == [{"name": "data", "shape": [None, 6], "dtype": "float32"}]
    assert description["batchable"] is True
    assert description["script"] is None
    assert description["versions"]["mxnet"] == mx.__version__
