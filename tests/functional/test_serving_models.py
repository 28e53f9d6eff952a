"""Models of real MXNet behind requests: each row's answer is the one that MXNet gives."""

import gc
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import psutil
import pytest

mx = pytest.importorskip("mxnet", reason="MXNet is not installed")
import numpy as np  # noqa: E402
from mxnet.gluon import nn  # noqa: E402

from sagemaker_mxnet_serving import function_handler  # noqa: E402
from sagemaker_mxnet_serving.errors import ModelMemoryError  # noqa: E402
from sagemaker_mxnet_serving.executors import SIZES, split  # noqa: E402
from sagemaker_mxnet_serving.loading import device  # noqa: E402
from sagemaker_mxnet_serving.media_types import CSV, JSON, NPY  # noqa: E402
from sagemaker_mxnet_serving.messages import Request  # noqa: E402
from sagemaker_mxnet_serving.service import ModelError, ModelSettings, load  # noqa: E402
from sagemaker_mxnet_toolkit.failure import FailureKind  # noqa: E402
from sagemaker_mxnet_toolkit.model_files import PARAMS, SHAPES, SYMBOL  # noqa: E402
from sagemaker_mxnet_training.training_utils import save  # noqa: E402

COLUMNS, CLASSES = 6, 4


@pytest.fixture(autouse=True)
def alone(monkeypatch):
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
    ready = load(ModelSettings(str(directory), **settings))
    ready.warm_up()
    return ready


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
def test_any_number_of_rows_comes_back_whole_and_in_order(tmp_path, first):
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
def test_rows_are_split_into_batches_with_little_padding(sizes):
    for rows in range(1, 150):
        batches = split(rows, sizes)
        assert sum(count for count, _ in batches) == rows
        assert all(0 < count <= size and size in sizes for count, size in batches)
        assert all(count == size for count, size in batches[:-1])
        count, size = batches[-1]
        assert size - count <= size / 4 or size == min(sizes)


@pytest.mark.parametrize("first", [1, 4, 8])
def test_images_take_their_shape_in_every_content_type(tmp_path, first):
    net = network(nn.Conv2D(4, 3), nn.BatchNorm(), nn.Activation("relu"), nn.Dense(3))
    reference = saved(tmp_path, first, (3, 8, 8), net)
    ready = service(tmp_path)
    for rows in range(1, 10):
        array = random(rows, 3, 8, 8)
        for content_type in (JSON, CSV, NPY):
            (response,) = answer(ready, request(array, content_type))
            same(numbers(response), reference(array))


def test_the_first_dimension_can_be_set(tmp_path):
    reference = saved(tmp_path, 1)
    ready = service(tmp_path, first_dimension=4)
    assert ready.describe()["rows"] == "any number, in batches of 4"
    for rows in range(1, 10):
        array = random(rows)
        same(numbers(*answer(ready, request(array))), reference(array))


def test_a_graph_with_its_batch_size_built_in(tmp_path):
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
        assert (response.status, b"cannot take" in response.body) == (400, True)


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
def test_outputs_that_do_not_belong_to_rows(tmp_path, block):
    net = block()
    net.hybridize()
    reference = saved(tmp_path, 3, net=net)
    ready = service(tmp_path, max_batch=8)
    assert not ready.batchable
    assert "as they come" in ready.describe()["rows"]
    for rows in (1, 2, 3, 5, 40):
        array = random(rows)
        same(numbers(*answer(ready, request(array))), reference(array))
    many = [random(2), random(3)]
    for response, array in zip(answer(ready, *map(request, many)), many):
        same(numbers(response), reference(array))
    assert answer(ready, request(random(5000)))[0].status == 400


@pytest.mark.parametrize("block", [OverRows, FirstToAll])
def test_rows_that_depend_on_each_other_are_noticed_without_batching_too(tmp_path, block):
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


def test_tokens_that_depend_on_each_other_are_noticed(tmp_path):
    net = Tokens()
    net.initialize(mx.init.Uniform(1))
    net.hybridize()
    reference = saved(tmp_path, 5, (1,), net)
    for rows in (5, 3, 8):
        array = np.random.randint(0, 10, (rows, 1)).astype("float32")
        (response,) = answer(service(tmp_path), request(array))
        same(np.array(json.loads(response.body), "float32"), reference(array))


# Models


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


def test_a_module_with_a_label(tmp_path):
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
import sys
import mxnet as mx
from sagemaker_mxnet_training.training_utils import save
mx.npx.set_np()

class Block(mx.gluon.HybridBlock):
    def __init__(self):
        super().__init__()
        self.dense = mx.gluon.nn.Dense(4)

    def hybrid_forward(self, F, x):
        return F.np.tanh(self.dense(x))

net = Block()
net.initialize(mx.init.Xavier())
net.hybridize()
print(net(mx.np.full((3, 6), 0.5)).asnumpy().tolist())
save(sys.argv[1], net)
"""

ANSWERING = """
import json, sys
from sagemaker_mxnet_serving.messages import Request
from sagemaker_mxnet_serving.service import ModelSettings, load
ready = load(ModelSettings(sys.argv[1]))
ready.warm_up()
body = json.dumps([[0.5] * 6] * 3).encode()
print(ready.predict([Request("r", body, "application/json")])[0].body.decode())
"""


def test_a_model_of_numpy_arrays(tmp_path):
    lines = []
    for program in (NUMPY, ANSWERING):  # set_np holds for a whole process
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            timeout=120,
            check=True,
        )
        lines.append(np.array(json.loads(done.stdout.splitlines()[-1]), "float32"))
    same(lines[1], lines[0])


def test_a_gluon_block_of_the_scripts(tmp_path):
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


@pytest.mark.parametrize("first", [1, 4, 8])
def test_a_module_of_the_scripts(tmp_path, first):
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


def test_requests_that_are_there_together_get_their_own_rows(tmp_path):
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


def test_a_bad_request_changes_nothing_for_the_next(tmp_path):
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


def test_an_operator_that_fails_harms_no_other_request(tmp_path, capfd):
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


def test_the_pickle_in_an_npy_body_is_not_read(tmp_path):
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


def test_bad_requests_leave_no_memory_behind(tmp_path):
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


def test_a_gpu_is_used_where_there_is_one(tmp_path):
    """Defect 19 of the peer: it never is."""
    assert device(ModelSettings(str(tmp_path), use_gpu=True)) == mx.gpu(0)
    assert device(ModelSettings(str(tmp_path))) == mx.cpu()


# The user's functions

DATA = "import json, mxnet as mx, numpy as np\n"


def test_functions_get_what_the_documents_say(tmp_path):
    reference = saved(tmp_path, 4)
    script = DATA + (
        "def predict_fn(data, model):\n"
        "    assert type(data) is mx.io.NDArrayIter, type(data)\n"
        "    assert type(model) is mx.mod.Module, type(model)\n"
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


def test_each_function_can_be_exchanged_alone(tmp_path):
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


def test_a_block_of_the_scripts_gets_an_ndarray(tmp_path):
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


def test_bodies_are_text_for_json_and_csv_and_bytes_otherwise(tmp_path):
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
    assert (response.status, b"not UTF-8" in response.body) == (400, True)


def test_results_of_functions(tmp_path):
    script = (
        "import numpy as np\n"
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
        ("None", "", b"null", JSON),
    ):
        (response,) = answer(ready, Request("r", text.encode(), CSV, accept))
        assert (response.status, response.body) == (200, expected)
        assert response.content_type == content_type


def test_a_context_carries_headers_both_ways(tmp_path):
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


def test_functions_of_the_start_are_called_once_and_in_order(tmp_path):
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


def test_a_warm_up_function_gets_the_saved_model(tmp_path):
    reference = saved(tmp_path)
    script = (
        "import mxnet as mx\n"
        "def model_warmup_fn(model_dir, model):\n"
        "    assert model.predict(mx.nd.zeros((1, 6))).shape == (1, 4)\n"
    )
    array = random(3)
    same(numbers(*answer(service(tmp_path, script), request(array))), reference(array))


# Errors


def test_an_error_of_a_function_is_told_to_the_log_and_not_to_the_caller(tmp_path, capfd):
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
        assert f"{name} raised KeyError; request id-7" in text
        assert "secret" not in text
        assert "/" not in text
        # Without what libmxnet.so says of its own work, if it says it in this process.
        log = re.sub(r"(?m)^\[\d\d:\d\d:\d\d\] \S+\.(?:cc|h):\d+: .*\n", "", capfd.readouterr().err)
        assert log.count("the-secret") == 2  # the line of code, and the message
        assert [line for line in log.splitlines() if "id-7" not in line] == []
        assert f"in {name}" in log
        assert "sagemaker_mxnet_serving" not in log
        sys.modules.pop("inference")


def test_a_default_that_fails_is_named(tmp_path, monkeypatch):
    saved(tmp_path)
    ready = service(tmp_path, "def output_fn(prediction, accept): pass\n")

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(function_handler, "decode", fail)
    (response,) = answer(ready, request(random(1)))
    assert (response.status, response.body[:18]) == (500, b"input_fn (default)")


@pytest.mark.parametrize("status", [None, 422, 200, "422", 600])
def test_an_error_of_the_scripts_own_kind(tmp_path, status):
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


def test_a_script_can_answer_with_its_own_status(tmp_path, capfd):
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


def test_a_result_that_cannot_be_written(tmp_path, capfd):
    script = (
        "def model_fn(model_dir): return None\n"
        "def transform_fn(model, body, content_type, accept): return object()\n"
    )
    (response,) = answer(service(tmp_path, script), Request("id-8", b"", ""))
    assert response.status == 500
    assert b"raised TypeError; request id-8" in response.body


def test_a_module_that_failed_predicts_again(tmp_path):
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


def test_mistakes_have_their_own_status(tmp_path):
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
        ("def model_fn(model_dir): return 5", r"nothing predicts with a int"),
        (
            "import mxnet as mx\n"
            "def model_fn(model_dir): return mx.mod.Module(mx.sym.var('data'), label_names=None)",
            r"expected one that is bound",
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
def test_want_of_memory_is_told_apart(tmp_path, function, error):
    saved(tmp_path)
    script = f"import mxnet as mx\ndef {function}: raise {error}\n"
    with pytest.raises(ModelMemoryError, match="not enough memory") as caught:
        service(tmp_path, script)
    assert caught.value.kind is FailureKind.OUT_OF_MEMORY


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no model-symbol.json and no model-0000.params"):
        service(tmp_path)
    saved(tmp_path)
    (tmp_path / SHAPES).unlink()
    with pytest.raises(ModelError, match=r"no model-shapes.json in .*found: model-0000.params"):
        service(tmp_path)


@pytest.mark.parametrize("name", [SYMBOL, PARAMS, SHAPES])
def test_a_file_cut_short_is_named(tmp_path, name):
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
        "[]",
        "[1]",
        '[{"name": "data"}]',
        '[{"name": "data", "shape": []}]',
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
from sagemaker_mxnet_serving.messages import Request
from sagemaker_mxnet_serving.service import ModelSettings, load
ready = load(ModelSettings(sys.argv[1]))
ready.warm_up()
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


def test_workers_that_are_forked_after_the_first_prediction_answer(tmp_path):
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


def test_loading_starts_no_thread_and_writes_nothing(tmp_path):
    saved(tmp_path)
    threads = threading.active_count()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text("def pre_model_fn(model_dir): pass\n")
    before = sorted(tmp_path.rglob("*"))
    service(tmp_path)
    assert threading.active_count() == threads
    assert sorted(tmp_path.rglob("*")) == before


def test_a_description_is_json(tmp_path):
    saved(tmp_path, 4)
    description = json.loads(json.dumps(service(tmp_path).describe()))
    assert description["inputs"] == [{"name": "data", "shape": [None, 6], "dtype": "float32"}]
    assert description["batchable"] is True
    assert description["script"] is None
    assert description["versions"]["mxnet"] == mx.__version__
