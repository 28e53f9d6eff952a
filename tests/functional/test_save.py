"""Models saved and loaded with real MXNet compute exactly the same numbers."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

mx = pytest.importorskip("mxnet", reason="MXNet is not installed")
import numpy as np  # noqa: E402
from mxnet.gluon import nn  # noqa: E402

from sagemaker_mxnet_toolkit.model_files import PARAMS, SHAPES, SYMBOL  # noqa: E402
from sagemaker_mxnet_training.training_utils import save  # noqa: E402

FILES = sorted([SYMBOL, PARAMS, SHAPES])


@pytest.fixture(autouse=True)
def outside_a_job(monkeypatch):
    monkeypatch.delenv("SM_CURRENT_HOST", raising=False)
    monkeypatch.delenv("SM_HOSTS", raising=False)
    mx.random.seed(7)


def random(*shape, dtype="float32"):
    return mx.nd.random.uniform(-1, 1, shape=shape).astype(dtype)


def shapes(directory):
    with open(os.path.join(directory, SHAPES)) as file:
        return {entry["name"]: tuple(entry["shape"]) for entry in json.load(file)}


def load_as_block(directory, names):
    """Read the files as a Gluon user does who has only them."""
    symbol, args, auxs = mx.model.load_checkpoint(os.path.join(directory, "model"), 0)
    block = mx.gluon.SymbolBlock(symbol, [mx.sym.var(name) for name in names])
    parameters = block.collect_params()
    loaded = {**args, **auxs}
    assert set(parameters.keys()) == set(loaded)
    for name, array in loaded.items():
        parameters[name].cast(array.dtype)
        parameters[name]._load_init(array, mx.cpu())
    return block


def load_as_module(directory, labels=(), for_training=False):
    """Read the files as the inference toolkit does: shapes from the file, then bind.

    Bound for training as the model was: MXNet fuses operators in a binding that is only for
    inference, and the last bits of a convolution differ between the two, saved or not.
    """
    symbol, args, auxs = mx.model.load_checkpoint(os.path.join(directory, "model"), 0)
    inputs = shapes(directory)
    module = mx.mod.Module(symbol, data_names=list(inputs), label_names=list(labels))
    module.bind(for_training=for_training, data_shapes=list(inputs.items()))
    module.set_params(args, auxs, allow_missing=False)
    return module


def outputs_of(module, *inputs):
    module.forward(mx.io.DataBatch(list(inputs)), is_train=False)
    return [array.asnumpy() for array in module.get_outputs()]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        one, other = np.asarray(one), np.asarray(other)  # noqa: PLW2901
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def hybridized(block, *inputs):
    block.initialize(mx.init.Xavier())
    block.hybridize()
    return block, block(*inputs)


class Siamese(mx.gluon.HybridBlock):
    """Two inputs of different shapes, two outputs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.left, self.right, self.both = nn.Dense(6), nn.Dense(6), nn.Dense(2)

    def hybrid_forward(self, F, x, y):
        x, y = self.left(x), self.right(y)
        return self.both(x * y), F.relu(x - y)


class Nested(mx.gluon.HybridBlock):
    """Takes a list of arrays, as recurrent networks take their states."""

    def hybrid_forward(self, F, x, states):
        return F.dot(x, states[0]) + states[1]


class Scale(mx.gluon.HybridBlock):
    """MXNet's layers have no half precision on a CPU; a product has."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.weight = self.params.get("weight", shape=(7,))

    def hybrid_forward(self, F, x, weight):
        return F.broadcast_mul(x, weight)


def test_convolution_and_batch_norm_round_trip_bit_identical(tmp_path):
    net = nn.HybridSequential(prefix="mynet_")
    with net.name_scope():
        net.add(nn.Conv2D(4, 3), nn.BatchNorm(), nn.Activation("relu"), nn.Dense(5))
    x = random(2, 3, 8, 8)
    hybridized(net, x)
    for _ in range(3):  # so that the running averages are no longer their initial values
        with mx.autograd.record():
            loss = net(random(2, 3, 8, 8) + 1)
        loss.backward()
    expected = net(x)
    save(str(tmp_path), net)
    assert sorted(os.listdir(tmp_path)) == FILES
    assert shapes(tmp_path) == {"data": (2, 3, 8, 8)}
    assert_same([load_as_block(tmp_path, ["data"])(x).asnumpy()], [expected.asnumpy()])
    _, args, auxs = mx.model.load_checkpoint(str(tmp_path / "model"), 0)
    assert all(name.startswith("mynet_") for name in args)
    assert sorted(name.rsplit("_", 1)[1] for name in auxs) == ["mean", "var"]
    assert auxs["mynet_batchnorm0_running_mean"].asnumpy().any()


def test_dense_block_also_loads_as_a_module(tmp_path):
    net = nn.HybridSequential()
    net.add(nn.Dense(16, activation="tanh"), nn.Dense(3))
    x = random(4, 7)
    net, expected = hybridized(net, x)
    save(str(tmp_path), net)
    assert_same(outputs_of(load_as_module(tmp_path), x), [expected.asnumpy()])


def test_block_with_two_inputs_and_outputs_round_trips(tmp_path):
    x, y = random(4, 7), random(4, 3)
    net, expected = hybridized(Siamese(), x, y)
    save(str(tmp_path), net)
    assert shapes(tmp_path) == {"data0": (4, 7), "data1": (4, 3)}
    expected = [array.asnumpy() for array in expected]
    assert_same(outputs_of(load_as_module(tmp_path), x, y), expected)
    found = load_as_block(tmp_path, ["data0", "data1"])(x, y)
    assert_same([array.asnumpy() for array in found], expected)


def test_inputs_in_lists_are_named_and_shaped_in_their_order(tmp_path):
    x, states = random(2, 3), [random(3, 4), random(2, 4)]
    net, expected = hybridized(Nested(), x, states)
    save(str(tmp_path), net)
    assert shapes(tmp_path) == {"data0": (2, 3), "data1": (3, 4), "data2": (2, 4)}
    found = load_as_block(tmp_path, ["data0", "data1", "data2"])(x, *states)
    assert_same([found.asnumpy()], [expected.asnumpy()])


def test_half_precision_is_kept(tmp_path):
    net = Scale()
    net.initialize(mx.init.Uniform(1))
    net.cast("float16")
    net.hybridize()
    x = random(4, 7, dtype="float16")
    expected = net(x)
    save(str(tmp_path), net)
    _, args, _ = mx.model.load_checkpoint(str(tmp_path / "model"), 0)
    assert {np.dtype(array.dtype) for array in args.values()} == {np.dtype("float16")}
    assert_same([load_as_block(tmp_path, ["data"])(x).asnumpy()], [expected.asnumpy()])


def test_numpy_block_round_trips(tmp_path):
    """Under ``npx.set_np`` on both sides: MXNet refuses to read a file of the other kind."""
    mx.npx.set_np()
    try:
        net = nn.HybridSequential()
        net.add(nn.Dense(16, activation="relu"), nn.BatchNorm(), nn.Dense(3))
        x = mx.np.random.uniform(size=(4, 7))
        net, expected = hybridized(net, x)
        save(str(tmp_path), net)
        assert shapes(tmp_path) == {"data": (4, 7)}
        symbol, args, auxs = mx.model.load_checkpoint(str(tmp_path / "model"), 0)
        executor = symbol.bind(
            mx.cpu(), {"data": x.as_nd_ndarray(), **args}, aux_states=auxs, grad_req="null"
        )
        assert_same([executor.forward()[0].asnumpy()], [expected.asnumpy()])
    finally:
        mx.npx.reset_np()


def test_a_block_on_two_devices_saves_the_mean_as_mxnet_does(tmp_path):
    net = nn.Dense(3, in_units=2)
    net.initialize(ctx=[mx.cpu(0), mx.cpu(1)])
    net.hybridize()
    for device in (mx.cpu(0), mx.cpu(1)):
        net(random(1, 2).as_in_context(device))
    net.weight.list_data()[1][:] += 1
    expected = sum(array.asnumpy() for array in net.weight.list_data()) / 2
    save(str(tmp_path), net)
    _, args, _ = mx.model.load_checkpoint(str(tmp_path / "model"), 0)
    assert_same([args[net.weight.name].asnumpy()], [expected])


def test_a_model_read_back_can_be_saved_again(tmp_path):
    net = nn.Dense(3)
    x = random(4, 7)
    net, expected = hybridized(net, x)
    save(str(tmp_path / "one"), net)
    block = load_as_block(tmp_path / "one", ["data"])
    block.hybridize()
    with pytest.raises(ValueError, match="no graph yet"):
        save(str(tmp_path / "two"), block)
    block(x)
    save(str(tmp_path / "two"), block)
    assert_same(outputs_of(load_as_module(tmp_path / "two"), x), [expected.asnumpy()])


def convolutional_symbol():
    data = mx.sym.var("image")
    net = mx.sym.Convolution(data, num_filter=4, kernel=(3, 3), name="conv")
    net = mx.sym.BatchNorm(net, name="norm", fix_gamma=False)
    net = mx.sym.FullyConnected(mx.sym.Activation(net, act_type="relu"), num_hidden=5)
    return mx.sym.SoftmaxOutput(net, name="softmax")


def test_fitted_module_round_trips(tmp_path):
    images = random(16, 1, 8, 8)
    batches = mx.io.NDArrayIter({"image": images}, mx.nd.zeros((16,)), batch_size=4)
    module = mx.mod.Module(convolutional_symbol(), data_names=["image"])
    module.fit(batches, num_epoch=2, optimizer_params={"learning_rate": 0.1})
    expected = outputs_of(module, images[:4])
    save(str(tmp_path), module)
    assert sorted(os.listdir(tmp_path)) == FILES
    assert shapes(tmp_path) == {"image": (4, 1, 8, 8)}
    again = load_as_module(tmp_path, labels=["softmax_label"], for_training=True)
    assert_same(outputs_of(again, images[:4]), expected)


def test_module_with_two_inputs_and_outputs_round_trips(tmp_path):
    left, right = mx.sym.var("left"), mx.sym.var("right")
    hidden = mx.sym.FullyConnected(left, num_hidden=6) * mx.sym.FullyConnected(right, num_hidden=6)
    symbol = mx.sym.Group([mx.sym.relu(hidden), mx.sym.FullyConnected(hidden, num_hidden=2)])
    module = mx.mod.Module(symbol, data_names=["left", "right"], label_names=[])
    module.bind(data_shapes=[("left", (4, 7)), ("right", (4, 3))], for_training=False)
    module.init_params(mx.init.Xavier())
    x, y = random(4, 7), random(4, 3)
    expected = outputs_of(module, x, y)
    save(str(tmp_path), module)
    assert shapes(tmp_path) == {"left": (4, 7), "right": (4, 3)}
    assert_same(outputs_of(load_as_module(tmp_path), x, y), expected)


def test_bucketing_module_saves_its_default_bucket(tmp_path):
    """With all weights as they are now, also those that the last batch's bucket lacks."""

    def symbol_of(length):
        hidden = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=4, flatten=False)
        output = mx.sym.sum(hidden, axis=1)
        if length == 10:
            output = mx.sym.broadcast_add(output, mx.sym.var("long_bias", shape=(1, 4)))
        return mx.sym.MakeLoss(output), ["data"], []

    module = mx.mod.BucketingModule(symbol_of, default_bucket_key=10)
    module.bind([("data", (2, 10, 3))])
    module.init_params(mx.init.One())
    module.init_optimizer(optimizer_params={"learning_rate": 1.0})

    def forward(length, train):
        x = mx.nd.ones((2, length, 3))
        shapes = [("data", x.shape)]
        batch = mx.io.DataBatch([x], bucket_key=length, provide_data=shapes)
        module.forward(batch, is_train=train)
        return x

    for length in (10, 4):
        forward(length, True)
        module.backward()
        module.update()
    module.get_params()  # which thereafter count as those of all buckets
    save(str(tmp_path), module)
    assert shapes(tmp_path) == {"data": (2, 10, 3)}
    assert mx.nd.load(str(tmp_path / PARAMS))["arg:long_bias"].asnumpy().tolist() == [[-1.0] * 4]
    assert module.symbol.list_arguments().count("long_bias") == 0, "the bucket stays the last one"
    x = forward(10, False)
    assert_same(outputs_of(load_as_module(tmp_path), x), [module.get_outputs()[0].asnumpy()])


def unbound():
    return mx.mod.Module(convolutional_symbol(), data_names=["image"])


def without_parameters():
    module = unbound()
    module.bind([("image", (4, 1, 8, 8))], for_training=False)
    return module


def never_ran():
    net = nn.Dense(3)
    net.initialize()
    net.hybridize()
    return net


def not_hybridized():
    net = nn.Dense(3)
    net.initialize()
    net(random(4, 7))
    return net


@pytest.mark.parametrize(
    ("make", "error", "what_to_do"),
    [
        (unbound, ValueError, r"not bound.*call module\.bind\(data_shapes=\.\.\.\)"),
        (without_parameters, ValueError, r"no parameters.*call module\.init_params\(\)"),
        (never_ran, ValueError, r"no graph yet: call block\.hybridize\(\) and then call it once"),
        (not_hybridized, ValueError, r"no graph yet: call block\.hybridize\(\)"),
        (nn.Sequential, TypeError, r"gluon.*Sequential: expected.*derive it from HybridBlock"),
        (str, TypeError, r"cannot save a builtins\.str.*with the directory first"),
        (dict, TypeError, r"cannot save a builtins\.dict: expected a bound mx\.mod\.Module"),
    ],
)
def test_unready_model_error_says_what_to_do(tmp_path, make, error, what_to_do):
    with pytest.raises(error, match=what_to_do):
        save(str(tmp_path / "model"), make())
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("mxnet as mx", "sagemaker_mxnet_training.training_utils"),
        ("sagemaker_mxnet_training.training_utils", "mxnet as mx"),
    ],
)
def test_shapes_are_known_whichever_module_is_imported_first(tmp_path, first, second):
    program = f"import {first}\nimport {second}\n" + SAVE_DENSE
    done = run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert shapes(tmp_path) == {"data": (4, 7)}


SAVE_DENSE = """
import sys
net = mx.gluon.nn.Dense(3)
net.initialize()
net.hybridize()
net(mx.nd.ones((4, 7)))
from sagemaker_mxnet_training.training_utils import save
save(sys.argv[1], net)
"""


def run(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_unknown_shapes_are_empty_with_a_warning(tmp_path):
    done = run("import mxnet as mx\n" + SAVE_DENSE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert shapes(tmp_path) == {"data": ()}
    assert "<string>:9: UserWarning: save: the input shapes of 'dense0' are unknown" in done.stderr
    assert "import it earlier, or call block.hybridize() and block(batch) again" in done.stderr
    assert mx.model.load_checkpoint(str(tmp_path / "model"), 0)[1]


def dense(value, units=1000):
    net = nn.Dense(units, in_units=300)
    net.initialize(mx.init.Constant(value))
    net.hybridize()
    net(mx.nd.ones((1, 300)))
    return net


def value_of(directory):
    _, args, _ = mx.model.load_checkpoint(os.path.join(directory, "model"), 0)
    (weight,) = (array for name, array in args.items() if name.endswith("weight"))
    return weight.asnumpy().reshape(-1)[0], weight.shape, shapes(directory)


def test_saving_again_replaces_only_the_model(tmp_path):
    (tmp_path / "labels.txt").write_text("cat")
    save(str(tmp_path), dense(1.0, 10))
    save(tmp_path, dense(2.0, 20))
    assert value_of(tmp_path)[:2] == (2.0, (20, 300))
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "labels.txt"])


# Saves one model after another, and dies at its `last` step on a path in the model directory.
KILLED = """
import os, signal, sys
import mxnet as mx
from sagemaker_mxnet_training.training_utils import save
taken = 0

def dense(value):
    net = mx.gluon.nn.Dense(UNITS, in_units=300)
    net.initialize(mx.init.Constant(value))
    net.hybridize()
    net(mx.nd.ones((1, 300)))
    return net

def attempt(directory, last, which):
    def step(event, arguments):
        global taken
        if any(directory in str(argument) for argument in arguments):
            taken += 1
            if taken == int(last):
                os.kill(os.getpid(), signal.SIGKILL)

    if which == "second":
        save(directory, dense(1))
    new = dense(2)
    sys.addaudithook(step)
    print("saving", flush=True)
    save(directory, new)
    print(taken, flush=True)

first, *others = zip(*[iter(sys.argv[1:])] * 3)
for each in others:  # in child processes: importing MXNet takes longer than all the rest
    child = os.fork()
    if not child:
        attempt(*each)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, each
attempt(*first)
"""


@pytest.mark.parametrize("which", ["first", "second"])
def test_killed_save_leaves_whole_files(tmp_path, which):
    """A first save is complete or absent; of a second one the parameters come first."""
    program = KILLED.replace("UNITS", "10")
    total = int(run(program, tmp_path / "whole", 0, which).stdout.split()[-1])
    steps = list(range(1, total + 1, max(1, total // 8)))
    words = [word for last in steps for word in (tmp_path / str(last), last, which)]
    done = run(program, *words)
    assert done.returncode == -signal.SIGKILL, done.stderr
    seen = set()
    for last in steps:
        directory = tmp_path / str(last)
        if (directory / SYMBOL).exists():
            value, *rest = value_of(directory)
            assert rest == [(10, 300), {"data": (1, 300)}], f"step {last}"
            seen.add(value)
        else:
            seen.add(None)
        save(str(directory), dense(3.0, 30))
        assert value_of(directory)[0] == 3.0
        assert sorted(os.listdir(directory)) == FILES
    assert seen == ({None, 2.0} if which == "first" else {1.0, 2.0})


def test_save_killed_while_mxnet_writes_leaves_the_old_model(tmp_path):
    program = KILLED.replace("UNITS", "400000")
    save(str(tmp_path), dense(1.0))
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), "0", "first"],
        stdout=subprocess.PIPE,
        text=True,
    )
    guard = threading.Timer(100, child.kill)
    guard.start()
    try:
        assert child.stdout.readline() == "saving\n"
        while child.poll() is None and not any(
            path.stat().st_size for path in tmp_path.glob(f".{PARAMS}.*")
        ):
            pass
        assert child.poll() is None, "the save was over before it could be killed"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        guard.cancel()
    assert value_of(tmp_path) == (1.0, (1000, 300), {"data": (1, 300)})
    save(str(tmp_path), dense(3.0))
    assert sorted(os.listdir(tmp_path)) == FILES


def test_save_replaces_links_that_lead_nowhere(tmp_path):
    for name in FILES:
        (tmp_path / name).symlink_to(tmp_path / ".replacing" / "current" / name)
    save(str(tmp_path), dense(3.0))
    assert value_of(tmp_path)[0] == 3.0


@pytest.mark.parametrize("missing", [500_000, 100])
def test_full_disk_error_names_the_path_and_keeps_the_old_model(tmp_path, missing):
    """The last 4 KB are a case of their own: MXNet does not notice that they are not written."""
    save(str(tmp_path / "probe"), dense(2.0))
    room = os.path.getsize(tmp_path / "probe" / PARAMS) - missing
    save(str(tmp_path), dense(1.0, 10))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match=PARAMS) as caught:
            save(str(tmp_path), dense(2.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert value_of(tmp_path) == (1.0, (10, 300), {"data": (1, 300)})
    assert sorted(os.listdir(tmp_path)) == [*FILES, "probe"]


@pytest.fixture
def small_disk(tmp_path):
    directory = tmp_path / "disk"
    directory.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("this machine does not let root mount a file system")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("filler", [0, 1_000_000])
def test_full_disk_is_reported(small_disk, filler):
    save(str(small_disk / "model"), dense(1.0, 10))
    (small_disk / "filler").write_bytes(bytes(filler))
    with pytest.raises(OSError, match=r"No space left on device; .*; path: '.*model-") as caught:
        save(str(small_disk / "model"), dense(2.0, 2000))
    assert caught.value.errno == errno.ENOSPC
    assert value_of(small_disk / "model")[0] == 1.0
    assert sorted(os.listdir(small_disk / "model")) == FILES
    (small_disk / "filler").unlink()
    save(str(small_disk / "model"), dense(3.0, 100))
    assert value_of(small_disk / "model")[0] == 3.0


def test_an_operator_that_failed_is_reported_as_itself(tmp_path):
    net = dense(1.0, 10)
    net.weight.data()[:] = mx.nd.linalg.potrf(-mx.nd.ones((300, 300)))[:10]
    with pytest.raises(mx.base.MXNetError, match=r"potrf|positive"):
        save(str(tmp_path), net)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("file", FileExistsError, "File exists"),
        ("file/model", NotADirectoryError, "Not a directory"),
        ("/proc/model", FileNotFoundError, "No such file or directory"),
        ("/proc/self", OSError, ""),  # exists, but MXNet cannot create a file in it
    ],
)
def test_directory_that_cannot_be_written_is_reported(tmp_path, name, error, reason):
    (tmp_path / "file").write_text("a file")
    path = os.path.join(tmp_path, name)
    message = f"save: the model cannot be written to '{path}': {reason}.*; expected a writable "
    with pytest.raises(error, match=message) as caught:
        save(path, dense(1.0, 10))
    assert caught.value.errno and caught.value.filename.startswith(path)
    assert "SM_MODEL_DIR" in str(caught.value)


@pytest.mark.parametrize("model_dir", [None, 5, b"model"])
def test_directory_of_the_wrong_type_is_reported(model_dir):
    with pytest.raises(TypeError) as caught:
        save(model_dir, dense(1.0, 10))
    assert str(caught.value) == (
        f"save: expected the path of a directory, got {model_dir!r}: pass "
        'os.environ["SM_MODEL_DIR"] in a job, or the path of another directory'
    )


def test_directory_may_be_a_path_object(tmp_path):
    save(tmp_path / "model", dense(1.0, 10))
    assert value_of(tmp_path / "model") == (1.0, (10, 300), {"data": (1, 300)})


@pytest.mark.root
def test_read_only_directory_is_reported(small_disk):
    model = small_disk / "model"
    save(str(model), dense(1.0, 10))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for directory in (model, small_disk / "new"):
        with pytest.raises(OSError, match="Read-only file system; expected a writable ") as caught:
            save(str(directory), dense(2.0, 20))
        assert caught.value.errno == errno.EROFS
    assert value_of(model) == (1.0, (10, 300), {"data": (1, 300)})
