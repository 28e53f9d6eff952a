"""MXNet's behaviour as numbers: the program that test_mxnet_behaviour.py runs and compares.

``python tests/functional/mxnet_behaviour.py FILE`` writes one JSON object with the outcomes of each
scenario below, one on a line. ``mxnet_behaviour.json`` is its output on CPython 3.11.7 with NumPy
1.23.5, the newest that MXNet 1.9.1 works with by itself, with the compatibility layer switched off:

    SAGEMAKER_MXNET_COMPATIBILITY=0 python tests/functional/mxnet_behaviour.py \
        tests/functional/mxnet_behaviour.json
"""

import hashlib
import io
import json
import logging
import os
import pickle
import random
import sys
import tempfile
import warnings

from sagemaker_mxnet_toolkit import compatibility

compatibility.install()  # before MXNet, for checkouts whose .pth file is not installed

import mxnet as mx  # noqa: E402
import numpy as np  # noqa: E402
from mxnet import autograd, gluon, nd  # noqa: E402

SCENARIOS = {}
DTYPES = ("float16", "float32", "float64", "uint8", "int8", "int32", "int64")


def scenario(function):
    # Shapes as NumPy has them, scalars among them, where it is about mx.np.
    name = function.__name__
    SCENARIOS[name] = mx.util.use_np_shape(function) if "mx_np" in name else function
    return function


def plain(value):
    """Return value, type and shape as JSON can hold them."""
    if isinstance(value, (nd.NDArray, mx.np.ndarray)):
        return [type(value).__name__, *plain(value.asnumpy())[1:]]
    if isinstance(value, np.ndarray):
        numbers = value.astype("float64").ravel()
        if numbers.size > 64:
            numbers = np.append(numbers[:: numbers.size // 32], np.abs(numbers).sum())
        return ["array", value.dtype.name, list(value.shape), numbers.tolist()]
    if isinstance(value, np.generic):
        return [value.dtype.name, value.item()]
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (type, np.dtype)):
        return f"dtype {np.dtype(value).name}"
    return value


def attempt(function, *arguments, **options):
    """Return what the call gives, or which error it raises."""
    try:
        return plain(function(*arguments, **options))
    except Exception as error:
        return f"raises {type(error).__name__}"


def sample(*shape, seed=0, scale=1.0):
    return (np.random.RandomState(seed).randn(*shape) * scale).astype("float32")


def fixed(block, *inputs):
    """Initialize a block with weights that do not depend on MXNet's generator."""
    block.initialize()
    block(*inputs)
    for position, parameter in enumerate(block.collect_params().values()):
        parameter.set_data(nd.array(sample(*parameter.shape, seed=position, scale=0.3)))
    return block


OPERATORS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "rsub": lambda a, b: b - a,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "mod": lambda a, b: a % b,
    "pow": lambda a, b: a**b,
    "less": lambda a, b: a < b,
    "equal": lambda a, b: a == b,
}
SCALARS = {
    "int": 3,
    "float": 1.5,
    "bool": True,
    "float32": np.float32(1.5),
    "float64": np.float64(1.5),
    "int64": np.int64(3),
    "int32": np.int32(3),
}


@scenario
def ndarray_arithmetic():
    outcome = {}
    for dtype in DTYPES:
        left = nd.array([[1, 2, 3], [4, 5, 6]], dtype=dtype)
        for name, operator in OPERATORS.items():
            outcome[f"{dtype} {name} array"] = attempt(operator, left, left + 1)
            for kind, scalar in SCALARS.items():
                # NumPy's scalars are on the right: on the left NumPy itself answers first.
                if name != "rsub" or not isinstance(scalar, np.generic):
                    outcome[f"{dtype} {name} {kind}"] = attempt(operator, left, scalar)
    return outcome


@scenario
def mx_np_arithmetic():
    outcome = {}
    for dtype in DTYPES:
        left = mx.np.array([[1, 2, 3], [4, 5, 6]], dtype=dtype)
        for name, operator in OPERATORS.items():
            for other in ("float32", "float64", "int32", "int64"):
                right = mx.np.array([3, 2, 1], dtype=other)
                outcome[f"{dtype} {name} {other}"] = attempt(operator, left, right)
            for kind, scalar in SCALARS.items():
                if name != "rsub" or not isinstance(scalar, np.generic):
                    outcome[f"{dtype} {name} scalar {kind}"] = attempt(operator, left, scalar)
    return outcome


@scenario
def mx_np_functions():
    a = mx.np.array(sample(3, 4))
    square = mx.np.array(sample(3, 3, seed=1))
    functions = {
        "reductions": lambda: [
            a.sum(),
            a.mean(axis=0),
            a.std(),
            a.var(axis=1),
            a.max(),
            a.argmax(),
        ],
        "elementwise": lambda: [mx.np.exp(a), mx.np.tanh(a), mx.np.clip(a, -0.5, 0.5)],
        "shaping": lambda: [
            a.T,
            a.reshape(2, 6),
            mx.np.concatenate([a, a], axis=1),
            mx.np.vstack((a, a)),
        ],
        "einsum": lambda: mx.np.einsum("ij,kj->ik", a, a),
        "dot": lambda: mx.np.dot(a, a.T),
        "inv": lambda: mx.np.linalg.inv(square),
        "svd": lambda: mx.np.linalg.svd(square)[1],
        "norm": lambda: mx.np.linalg.norm(square),
        "qr": lambda: [mx.np.abs(part) for part in mx.np.linalg.qr(square)],
        "solve": lambda: mx.np.linalg.solve(square, square),
        "where": lambda: mx.np.where(a > 0, a, -a),
        "unique": lambda: mx.np.unique(mx.np.array([3, 1, 3, 2])),
        "percentile": lambda: mx.np.percentile(a, 50),
        "linspace": lambda: mx.np.linspace(0, 1, 5),
        "pad": lambda: mx.np.pad(a, ((1, 1), (0, 0)), mode="constant"),
        "in1d": lambda: mx.np.in1d(mx.np.array([1, 2, 5]), mx.np.array([5, 1])),
        "trapz": lambda: mx.np.trapz(mx.np.array([1.0, 2.0, 4.0])),
        "msort": lambda: mx.np.msort(a),
        "alltrue": lambda: bool(mx.np.alltrue(a > -9)),
        "nanmean": lambda: mx.np.nanmax(a),
        "cov": lambda: mx.np.cov(a),
        "histogram": lambda: mx.np.histogram(a, bins=4, range=(-2, 2)),
        "npv": lambda: mx.np.npv(0.1, [1, 2]),
        "constants": lambda: [mx.np.PZERO, mx.np.NZERO, mx.np.PINF, mx.np.NINF, mx.np.pi],
        "bool is Python's": lambda: mx.np.bool is bool,
    }
    return {name: attempt(function) for name, function in functions.items()}


@scenario
def numpy_functions_on_mx_np():
    """NumPy's functions given MXNet's arrays hand the work to MXNet."""
    a = mx.np.array([[1.0, 2.0], [3.0, 4.0]])
    names = [
        "sum",
        "prod",
        "mean",
        "std",
        "cumsum",
        "argmax",
        "transpose",
        "ravel",
        "squeeze",
        "max",
        "tril",
        "trace",
        "diff",
    ]
    outcome = {name: attempt(getattr(np, name), a) for name in names}
    for name in [
        "add",
        "subtract",
        "multiply",
        "divide",
        "true_divide",
        "power",
        "maximum",
        "arctan2",
        "less",
    ]:
        outcome[name] = attempt(getattr(np, name), a, a + 1)
    for name in ["exp", "log", "sqrt", "square", "sign", "floor", "tanh", "negative", "cbrt"]:
        outcome[name] = attempt(getattr(np, name), a)
    outcome["concatenate"] = attempt(np.concatenate, [a, a])
    outcome["stack"] = attempt(np.stack, [a, a])
    outcome["linalg.norm"] = attempt(np.linalg.norm, a)
    return outcome


@scenario
def creation():
    outcome = {}
    sources = {
        "ints": [1, 2, 3],
        "floats": [[1.5, 2.5]],
        "bools": [True, False],
        "out of range": [-1, 300],
        "float64": np.array([1.5, 2.5]),
        "int64": np.arange(3),
        "numpy scalars": [np.float32(1), np.float64(2)],
        "mixed": [np.int64(1), 2.5],
        "strided": np.arange(6).reshape(2, 3).T,
    }
    for name, source in sources.items():
        outcome[f"nd {name}"] = attempt(nd.array, source)
        outcome[f"np {name}"] = attempt(mx.np.array, source)
        for dtype in DTYPES:
            outcome[f"nd {name} {dtype}"] = attempt(nd.array, source, dtype=dtype)
            outcome[f"np {name} {dtype}"] = attempt(mx.np.array, source, dtype=dtype)
    outcome["fromlist type"] = attempt(nd.array, [1, 2], dtype=np.float16)
    outcome["full"] = attempt(nd.full, (2,), 300, dtype="uint8")
    outcome["arange"] = attempt(nd.arange, 0, 2, 0.5, dtype="float64")
    outcome["zeros"] = attempt(nd.zeros, (np.int64(2), np.int32(3)), dtype=np.dtype("int32"))
    outcome["np zeros"] = attempt(mx.np.zeros, (np.int64(2), 3))
    outcome["np full"] = attempt(mx.np.full, (2, 2), np.float64(1.5))
    outcome["bool"] = attempt(mx.np.array, [True, False], dtype=bool)
    return outcome


@scenario
def indexing():
    outcome = {}
    keys = {
        "int": 1,
        "numpy int": np.int64(1),
        "negative": -1,
        "slice": slice(0, 2),
        "numpy slice": slice(np.int64(1), None),
        "tuple": (slice(None), 2),
        "list": [0, 2],
        "array": np.array([2, 0]),
        "numpy tuple": (np.int32(1), np.int64(2)),
        "none": (None, 1),
        "bool list": [True, False, True],
        "bool array": np.array([True, False, True]),
    }
    for name, key in keys.items():
        outcome[f"nd get {name}"] = attempt(lambda key=key: nd.array(sample(3, 4))[key])
        outcome[f"np get {name}"] = attempt(lambda key=key: mx.np.array(sample(3, 4))[key])
        for kind, value in {
            "float": 7.5,
            "numpy": np.float64(7.5),
            "float32": np.float32(7.5),
        }.items():
            for module in (nd, mx.np):

                def assign(key=key, value=value, module=module):
                    array = module.array(sample(3, 4))
                    array[key] = value
                    return array

                outcome[f"{module.__name__} set {name} {kind}"] = attempt(assign)
    array = mx.np.array(sample(3, 4))
    outcome["mask"] = attempt(lambda: array[array > 0])

    def wrap(value):
        array = nd.zeros((2,), dtype="uint8")
        array[0] = value
        return array

    outcome["uint8 300"] = attempt(wrap, 300)
    outcome["uint8 numpy"] = attempt(wrap, np.float32(7))
    return outcome


@scenario
def conversions():
    a = nd.array([3.7])
    return {
        "float": float(mx.np.array(3.7)),
        "int": int(mx.np.array(3.7)),
        "bool": bool(a),
        "asscalar": plain(a.asscalar()),
        "item": plain(mx.np.array([3.5]).item()),
        "dtype": plain(a.dtype),
        "dtype is type": a.dtype is np.float32,
        "np dtype": plain(mx.np.array([1.0]).dtype),
        "casts": [
            plain(a.astype(kind)) for kind in (*DTYPES, np.float64, np.dtype("int32"), "bool")
        ],
        "np casts": [
            plain(mx.np.array([3.7]).astype(kind)) for kind in (*DTYPES, bool, int, float)
        ],
        "numpy of nd": plain(np.array(a.asnumpy())),
        "from nested": plain(np.array([x.asscalar() for x in nd.array([1, 2, 3])])),
        "repr": [repr(a), repr(mx.np.array([1.5, 2.5])), repr(mx.np.array([1], dtype="int64"))],
        "add to numpy": plain(a + nd.array(np.float32([1]))),
    }


@scenario
def parameters_as_text():
    """Operator parameters reach MXNet's library as text: NumPy's scalars among them, too."""
    n = np.int64
    data = nd.array(sample(1, 1, 4, 4))
    kernel = nd.array(sample(2, 1, 3, 3, seed=1))
    shape = (n(2), n(8))
    x = mx.sym.var("x", shape=(n(2), n(3)), lr_mult=np.float32(0.5))
    convolution = mx.sym.Convolution(x, kernel=(n(1),), num_filter=n(2), name="c")
    return {
        "reshape": attempt(lambda: data.reshape(shape)),
        "reshape op": attempt(lambda: nd.reshape(data, shape=shape)),
        "transpose": attempt(lambda: nd.transpose(data, axes=tuple(np.array([1, 0, 3, 2])))),
        "tile": attempt(lambda: nd.tile(data, reps=[n(1), n(2)])),
        "slice": attempt(lambda: nd.slice(data, begin=(n(0), None), end=(n(1), n(1)))),
        "sum axes": attempt(lambda: nd.sum(data, axis=(n(2), n(3)))),
        "convolution": attempt(
            lambda: nd.Convolution(data, kernel, kernel=(n(3), n(3)), num_filter=n(2), no_bias=True)
        ),
        "clip": attempt(lambda: nd.clip(data, a_min=np.float32(-0.5), a_max=np.float64(0.5))),
        "optimizer": attempt(
            lambda: nd.multi_sgd_update(
                *[nd.ones((2,)) for _ in range(4)],
                lrs=[np.float64(0.1), np.float32(0.5)],
                wds=(np.float64(0), np.float64(0)),
                num_weights=2,
            )
        ),
        "np reshape": attempt(lambda: mx.np.ones((4, 4)).reshape(shape)),
        "np transpose": attempt(lambda: mx.np.ones((2, 3)).transpose(*np.array([1, 0]))),
        "np sum": attempt(lambda: mx.np.ones((2, 3)).sum(axis=(n(0), n(1)))),
        "symbol": [x.attr("__shape__"), x.attr("__lr_mult__")],
        "text": mx.sym.multi_sgd_update(
            *[mx.sym.var(name) for name in "abcd"],
            lrs=(np.float32(0.1), [np.float64(0.25)][0]),
            wds=[np.float16(0.5), np.int64(0)],
            num_weights=np.int32(2),
            name="update",
        ).attr_dict()["update"],
        "symbol shape": attempt(lambda: (x.reshape((n(3), n(2)))).infer_shape()[1]),
        "symbol attributes": convolution.attr_dict()["c"],
        "random": attempt(
            lambda: nd.random.uniform(np.float64(0), np.float32(1), shape=shape).shape
        ),
    }


class Cube(autograd.Function):
    def forward(self, x):
        self.save_for_backward(x)
        return x**3

    def backward(self, dy):
        (x,) = self.saved_tensors
        return 3 * x**2 * dy


class Softplus(mx.operator.CustomOp):
    def forward(self, is_train, req, in_data, out_data, aux):
        x = in_data[0].asnumpy()
        self.assign(out_data[0], req[0], nd.array(np.log1p(np.exp(x))))

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        x = in_data[0].asnumpy()
        self.assign(in_grad[0], req[0], out_grad[0] * nd.array(1 / (1 + np.exp(-x))))


@mx.operator.register("numpy_softplus")
class SoftplusProp(mx.operator.CustomOpProp):
    def create_operator(self, ctx, in_shapes, in_dtypes):
        return Softplus()


@scenario
def gradients():
    outcome = {}
    functions = {
        "polynomial": lambda x: x**3 + 2 * x,
        "softmax": lambda x: nd.log_softmax(x)[:, 0],
        "scalar": lambda x: x * np.float64(2.5),
        "function": Cube(),
        "custom": lambda x: nd.Custom(x, op_type="numpy_softplus"),
    }
    for name, function in functions.items():
        x = nd.array(sample(3, 4))
        x.attach_grad()
        with autograd.record():
            y = function(x)
        y.backward()
        outcome[name] = plain([y, x.grad])
    x = mx.np.array(sample(3, 4))
    x.attach_grad()
    with autograd.record():
        y = np.multiply(mx.np.exp(x), np.sum(x * x, axis=0))
    y.backward()
    outcome["mx.np through NumPy"] = plain([y, x.grad])
    x = nd.array([0.5])
    x.attach_grad()
    with autograd.record():
        first = autograd.grad(nd.sin(x), x, create_graph=True)[0]
    first.backward()
    outcome["second order"] = plain(x.grad)
    return outcome


@scenario
def gluon_layers():
    nn = gluon.nn
    image, row = nd.array(sample(2, 3, 8, 8)), nd.array(sample(4, 6))
    sequence = nd.array(sample(5, 2, 3))
    layers = {
        "Dense": (nn.Dense(3, activation="relu"), row),
        "Conv2D": (nn.Conv2D(4, 3, strides=(2, 2), padding=(1, 1)), image),
        "Conv2DTranspose": (nn.Conv2DTranspose(2, 3), image),
        "MaxPool2D": (nn.MaxPool2D(2), image),
        "AvgPool2D": (nn.GlobalAvgPool2D(), image),
        "BatchNorm": (nn.BatchNorm(), image),
        "LayerNorm": (nn.LayerNorm(), row),
        "GroupNorm": (nn.GroupNorm(num_groups=1), image),
        "InstanceNorm": (nn.InstanceNorm(), image),
        "Dropout": (nn.Dropout(0.5), row),
        "Flatten": (nn.Flatten(), image),
        "PReLU": (nn.PReLU(), row),
        "GELU": (nn.GELU(), row),
        "Swish": (nn.Swish(), row),
        "Embedding": (nn.Embedding(5, 3), nd.array([0, 4, 2])),
        "Lambda": (nn.HybridLambda("tanh"), row),
        "LSTM": (gluon.rnn.LSTM(4, num_layers=2), sequence),
        "GRU": (gluon.rnn.GRU(4, bidirectional=True), sequence),
        "LSTMCell": (gluon.rnn.LSTMCell(4), None),
    }
    outcome = {}
    for name, (layer, data) in layers.items():
        if data is None:
            layer.initialize(mx.init.One())
            outputs, _ = layer.unroll(5, sequence, layout="TNC", merge_outputs=True)
            outcome[name] = plain(outputs)
            continue
        block = fixed(layer, data)
        before = block(data)
        block.hybridize()
        outcome[name] = plain([before, block(data)])
    return outcome


@scenario
def gluon_losses():
    outcome = {}
    prediction, target = nd.array(sample(4, 3)), nd.array(sample(4, 3, seed=1))
    classes, signs = nd.array([0, 2, 1, 1]), nd.sign(target)
    arguments = {
        "SoftmaxCrossEntropyLoss": (prediction, classes),
        "SoftmaxCELoss": (prediction, classes),
        "KLDivLoss": (nd.log_softmax(prediction), nd.softmax(target)),
        "CTCLoss": (nd.array(sample(2, 6, 4)), nd.array([[1, 2], [2, 2]])),
        "TripletLoss": (prediction, target, target + 1),
        "PoissonNLLLoss": (prediction, nd.abs(target)),
        "CosineEmbeddingLoss": (prediction, target, nd.array([1, -1, 1, -1])),
        "HingeLoss": (prediction, signs),
        "SquaredHingeLoss": (prediction, signs),
        "LogisticLoss": (prediction, signs),
        "SigmoidBinaryCrossEntropyLoss": (prediction, signs > 0),
        "SigmoidBCELoss": (prediction, signs > 0),
    }
    for name in gluon.loss.__all__:
        if name != "Loss":
            loss = getattr(gluon.loss, name)()
            outcome[name] = plain(loss(*arguments.get(name, (prediction, target))))
    return outcome


@scenario
def trainer_with_every_optimizer():
    outcome = {}
    data, target = nd.array(sample(8, 4)), nd.array(sample(8, 1, seed=9))
    for name in sorted(mx.optimizer.Optimizer.opt_registry):
        net = gluon.nn.HybridSequential(prefix="net_")
        with net.name_scope():
            bias = name != "groupadagrad"  # which takes matrices only
            net.add(gluon.nn.Dense(5, activation="tanh", use_bias=bias))
            net.add(gluon.nn.Dense(1, use_bias=bias))
        fixed(net, data)
        net.hybridize()
        # Rates as a user's NumPy code may give them.
        trainer = gluon.Trainer(net.collect_params(), name, {"learning_rate": np.float64(0.01)})
        losses = []
        for _ in range(4):
            with autograd.record():
                loss = gluon.loss.L2Loss()(net(data), target)
            loss.backward()
            trainer.step(np.int64(8))
            losses.append(float(loss.mean().asscalar()))
        weights = [p.data() for p in net.collect_params().values()]
        # sgld adds noise of MXNet's generator.
        outcome[name] = len(losses) if name == "sgld" else plain([losses, weights])
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "states")
            trainer.save_states(path)
            trainer.load_states(path)
    return outcome


@scenario
def optimizers_in_half_precision():
    outcome = {}
    for name in ("sgd", "nag", "adam", "lamb"):
        optimizer = mx.optimizer.create(name, learning_rate=0.1, multi_precision=True)
        weight, gradient = nd.ones((3,), dtype="float16"), nd.ones((3,), dtype="float16")
        state = optimizer.create_state_multi_precision(0, weight)
        optimizer.update_multi_precision(0, weight, gradient, state)
        outcome[name] = plain(weight)
    schedules = {
        "factor": mx.lr_scheduler.FactorScheduler(2, 0.5, base_lr=0.1),
        "multi": mx.lr_scheduler.MultiFactorScheduler([2, 4], 0.1, base_lr=1.0),
        "poly": mx.lr_scheduler.PolyScheduler(10, 0.1),
        "cosine": mx.lr_scheduler.CosineScheduler(10, 0.1, warmup_steps=2),
    }
    for name, schedule in schedules.items():
        outcome[name] = [float(schedule(np.int64(step))) for step in range(8)]
    return outcome


def network():
    hidden = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=8, name="fc1")
    hidden = mx.sym.Activation(hidden, act_type="relu")
    return mx.sym.SoftmaxOutput(
        mx.sym.FullyConnected(hidden, num_hidden=3, name="fc2"), name="softmax"
    )


def fitted():
    labels = np.random.RandomState(3).randint(0, 3, 60)
    data = sample(60, 5, seed=4) + labels[:, None]
    batches = mx.io.NDArrayIter(data, labels.astype("float32"), batch_size=10)
    module = mx.mod.Module(network(), data_names=["data"], label_names=["softmax_label"])
    module.bind(batches.provide_data, batches.provide_label)
    module.init_params(mx.init.Zero())
    shapes = {name: array.shape for name, array in module.get_params()[0].items()}
    weights = {
        name: nd.array(sample(*shapes[name], seed=position, scale=0.3))
        for position, name in enumerate(sorted(shapes))
    }
    history = []
    module.fit(
        batches,
        arg_params=weights,
        force_init=True,
        num_epoch=3,
        optimizer_params={"learning_rate": 0.1, "momentum": 0.9},
        eval_metric=["acc", "ce"],
        batch_end_callback=mx.callback.Speedometer(10, 2),
        epoch_end_callback=lambda *_: history.append("epoch"),
    )
    return module, batches, history


@scenario
def module_fit_and_predict():
    module, batches, history = fitted()
    with tempfile.TemporaryDirectory() as folder:
        prefix = os.path.join(folder, "model")
        module.save_checkpoint(prefix, 3)
        symbol, arguments, auxiliary = mx.model.load_checkpoint(prefix, 3)
        again = mx.mod.Module(symbol)
        again.bind([("data", (10, 5))], for_training=False)
        again.set_params(arguments, auxiliary)
        same = bool((again.predict(batches) == module.predict(batches)).asnumpy().all())
    return {
        "predict": plain(module.predict(batches)),
        "score": plain(module.score(batches, ["acc", "ce", "rmse"])),
        "params": {name: plain(value) for name, value in sorted(module.get_params()[0].items())},
        "epochs": history,
        "loaded predicts the same": same,
    }


@scenario
def metrics():
    outcome = {}
    metric_names = sorted(mx.registry._REGISTRY[mx.metric.EvalMetric])
    binary = ("f1", "mcc")
    for name in metric_names:
        if name in ("composite", "compositeevalmetric", "custommetric"):
            continue
        options = {"ignore_label": 0} if name == "perplexity" else {}
        options.update({"top_k": 2} if name.startswith("top") else {})
        metric = mx.metric.create(name, **options)
        for seed in range(3):
            classes = 2 if name in binary else 3
            scores = nd.softmax(nd.array(sample(6, classes, seed=seed)))
            labels = nd.array(np.random.RandomState(seed).randint(0, classes, 6))
            if name in ("mae", "mse", "rmse", "pearsonr", "pearsoncorrelation"):
                labels = nd.array(sample(6, 3, seed=seed + 7))
            metric.update([labels, labels], [scores, scores])
        outcome[name] = plain(
            [metric.get(), metric.get_global(), metric.sum_metric, metric.num_inst]
        )
    custom = mx.metric.np(lambda label, pred: np.abs(label - pred).mean(), name="custom")
    custom.update([nd.array([1, 2])], [nd.array([1.5, 2.25])])
    outcome["custom"] = plain([custom.get(), custom.sum_metric])
    scores = [nd.array(sample(5, 3, seed=seed)) for seed in range(9)]
    perplexity = mx.metric.Perplexity(ignore_label=None)
    perplexity.update([nd.zeros((5,))] * 9, [nd.softmax(score) for score in scores])
    parts = [
        nd.log(nd.maximum(1e-10, nd.softmax(score)[:, 0])).sum().asscalar() for score in scores
    ]
    exact = -sum(np.float64(part) for part in parts)
    outcome["perplexity adds in double precision"] = bool(
        abs(perplexity.sum_metric - exact) < 1e-12
    )
    losses = mx.metric.Loss()
    for _ in range(50):
        losses.update(None, [nd.array([0.1, 1e-4])])
    outcome["long loss"] = plain([losses.get(), losses.sum_metric])
    return outcome


class Squares(gluon.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return np.float32([index, index**2]), np.int32(index)


@scenario
def data_loading():
    outcome = {}
    for name, options in {
        "inline": {"num_workers": 0},
        "processes": {"num_workers": 2},
        "threads": {"num_workers": 2, "thread_pool": True},
    }.items():
        loader = gluon.data.DataLoader(Squares(), batch_size=6, last_batch="keep", **options)
        outcome[name] = plain([list(batch) for batch in loader])
    np.random.seed(5)
    shuffled = gluon.data.DataLoader(Squares(), batch_size=20, shuffle=True, num_workers=2)
    outcome["shuffled"] = plain([list(batch) for batch in shuffled])
    arrays = gluon.data.ArrayDataset(sample(6, 2), [0, 1, 2, 0, 1, 2])
    outcome["arrays"] = plain([list(batch) for batch in gluon.data.DataLoader(arrays, 4)])
    outcome["transformed"] = plain(
        [list(batch) for batch in gluon.data.DataLoader(arrays.transform_first(lambda x: x * 2), 4)]
    )
    outcome["split"] = plain(gluon.utils.split_data(nd.arange(6), 3))
    outcome["clip"] = plain(gluon.utils.clip_global_norm([nd.ones((3,)), nd.ones((2,))], 1.0))
    np.random.seed(6)
    iterator = mx.io.NDArrayIter({"a": sample(7, 2)}, np.arange(7), 3, True, "pad")
    outcome["NDArrayIter"] = plain([[*batch.data, *batch.label, batch.pad] for batch in iterator])
    sentences = [[1, 2], [3, 4, 5], [6], [1, 1]]
    np.random.seed(7)
    random.seed(7)
    buckets = mx.rnn.BucketSentenceIter(sentences, 1, buckets=[2, 4], invalid_label=0)
    outcome["buckets"] = plain([[*batch.data, *batch.label] for batch in buckets])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "table.csv")
        np.savetxt(path, sample(6, 3), delimiter=",", fmt="%.4f")
        table = mx.io.CSVIter(data_csv=path, data_shape=(np.int64(3),), batch_size=2)
        outcome["CSVIter"] = plain([batch.data[0] for batch in table])
    return outcome


@scenario
def recordio():
    with tempfile.TemporaryDirectory() as folder:
        index, path = os.path.join(folder, "a.idx"), os.path.join(folder, "a.rec")
        writer = mx.recordio.MXIndexedRecordIO(index, path, "w")
        headers = [(0, 2.5, 7, 0), (0, [1, 2, 3], 8, 0), (0, np.float64([4, 5]), 9, 0)]
        for position, header in enumerate(headers):
            record = mx.recordio.pack(mx.recordio.IRHeader(*header), b"payload %d" % position)
            writer.write_idx(position, record)
        writer.close()
        reader = mx.recordio.MXIndexedRecordIO(index, path, "r")
        records = [mx.recordio.unpack(reader.read_idx(position)) for position in (2, 0, 1)]
        with open(path, "rb") as file:
            content = file.read()
    return plain([content, [[plain(list(header)), text.decode()] for header, text in records]])


@scenario
def images():
    pixels = (np.arange(8 * 10 * 3) % 251).astype("uint8").reshape(8, 10, 3)
    image = nd.array(pixels, dtype="uint8")
    random.seed(1)
    np.random.seed(1)
    augmenters = {
        "resize": lambda: mx.image.imresize(image, 5, 4, 1),
        "crop": lambda: mx.image.center_crop(image, (4, 4))[0],
        "random crop": lambda: mx.image.random_crop(image, (4, 4))[0],
        "normalize": lambda: mx.image.color_normalize(image.astype("float32"), nd.array([1, 2, 3])),
        "brightness": lambda: mx.image.BrightnessJitterAug(0.3)(image.astype("float32")),
        "contrast": lambda: mx.image.ContrastJitterAug(0.3)(image.astype("float32")),
        "saturation": lambda: mx.image.SaturationJitterAug(0.3)(image.astype("float32")),
        "hue": lambda: mx.image.HueJitterAug(0.3)(image.astype("float32")),
        "lighting": lambda: mx.image.LightingAug(0.1, *([np.ones(3), np.eye(3)]))(
            image.astype("float32")
        ),
        "to tensor": lambda: gluon.data.vision.transforms.ToTensor()(image),
        "normalized": lambda: gluon.data.vision.transforms.Normalize((0.5,) * 3, (0.2,) * 3)(
            gluon.data.vision.transforms.ToTensor()(image)
        ),
    }
    return {name: attempt(function) for name, function in augmenters.items()}


@scenario
def saving():
    outcome = {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "file")

        def written():
            with open(path, "rb") as file:
                return plain(file.read())

        arrays = {dtype: nd.array([[1, 2], [3, 4]], dtype=dtype) for dtype in DTYPES}
        nd.save(path, arrays)
        outcome["nd.save"] = [written(), plain(dict(sorted(nd.load(path).items())))]
        nd.save(path, list(arrays.values()))
        outcome["nd.save list"] = [written(), plain(nd.load(path))]
        mx.npx.set_np()
        mx.npx.save(path, {"a": mx.np.array(sample(2, 2)), "b": mx.np.array(3.0)})
        outcome["npx.save"] = plain(dict(sorted(mx.npx.load(path).items())))
        mx.npx.reset_np()
        network().save(path)
        outcome["symbol"] = plain(mx.sym.load(path).list_arguments())
        net = fixed(gluon.nn.Dense(3, prefix="d_"), nd.array(sample(2, 4)))
        net.save_parameters(path)
        outcome["parameters"] = written()
        other = gluon.nn.Dense(3, in_units=np.int64(4))
        other.load_parameters(path)
        outcome["loaded"] = plain(other(nd.array(sample(2, 4))))
        net.hybridize()
        net(nd.array(sample(2, 4)))
        net.export(path)
        block = gluon.SymbolBlock.imports(path + "-symbol.json", ["data"], path + "-0000.params")
        outcome["exported"] = plain(block(nd.array(sample(2, 4))))
    outcome["pickle"] = plain(pickle.loads(pickle.dumps(nd.array([1.5, 2.5]))))
    outcome["pickled optimizer"] = pickle.loads(pickle.dumps(mx.optimizer.SGD(0.25))).lr
    buffer = io.BytesIO()
    np.save(buffer, nd.array([1.5]).asnumpy())
    outcome["numpy file"] = plain(buffer.getvalue())
    return outcome


@scenario
def sparse():
    dense = np.array([[0, 1, 0], [2, 0, 3], [0, 0, 0]], dtype="float32")
    csr, rows = nd.array(dense).tostype("csr"), nd.array(dense).tostype("row_sparse")
    built = nd.sparse.csr_matrix(([1.0, 2.0], [1, 0], [0, 1, 2]), shape=(np.int64(2), 3))
    return plain(
        {
            "csr": [csr.data, csr.indices, csr.indptr],
            "rows": [rows.data, rows.indices],
            "built": built.tostype("default"),
            "dot": nd.sparse.dot(csr, nd.array(dense)),
            "zeros": nd.sparse.zeros("csr", (2, 2)).tostype("default"),
            "retain": nd.sparse.retain(rows, nd.array([1])).tostype("default"),
        }
    )


@scenario
def initializers():
    outcome = {}
    for name, options in {
        "zero": {},
        "one": {},
        "constant": {"value": np.float64(2.5)},
        "bilinear": {},
        "lstmbias": {"forget_bias": np.float32(1.5)},
        "orthogonal": {},
    }.items():
        np.random.seed(2)
        array = nd.zeros((2, 2, 4, 4) if name == "bilinear" else (8, 2))
        if name == "orthogonal":
            mx.init.create(name, rand_type="uniform")._init_weight("w", array)
            continue
        mx.init.create(name, **options)._init_weight("w", array)
        outcome[name] = plain(array)
    for name in ("xavier", "msraprelu", "uniform", "normal"):
        array = nd.zeros((4, 4))
        mx.init.create(name)(mx.init.InitDesc("a_weight"), array)
        outcome[name] = bool(np.isfinite(array.asnumpy()).all())
    return outcome


@scenario
def local_kvstore():
    store = mx.kv.create("local")
    store.set_optimizer(mx.optimizer.SGD(learning_rate=np.float64(0.5)))
    store.init("w", nd.ones((2, 2)))
    store.push("w", [nd.ones((2, 2)), nd.ones((2, 2)) * 2])
    out = nd.zeros((2, 2))
    store.pull("w", out=out)
    return plain([out, store.rank, store.num_workers])


@scenario
def tools():
    """Functions that users' tests use."""
    mx.test_utils.assert_almost_equal(nd.ones((2,)), np.ones(2))
    data = mx.sym.var("data")
    mx.test_utils.check_numeric_gradient(
        mx.sym.tanh(data), [sample(2, 2)], numeric_eps=1e-3, rtol=0.05
    )
    monitor = mx.monitor.Monitor(1, pattern=".*")
    module = mx.mod.Module(network())
    module.bind([("data", (2, 5))], [("softmax_label", (2,))])
    module.init_params(mx.init.One())
    module.install_monitor(monitor)
    monitor.tic()
    module.forward(mx.io.DataBatch([nd.ones((2, 5))], [nd.zeros((2,))]))
    seen = [name for _, name, _ in monitor.toc()]
    net = gluon.nn.Dense(2)
    net.initialize()
    return {"monitor": seen, "features": bool(mx.runtime.Features().is_enabled("OPENMP"))}


def one_outcome_a_line(scenarios):
    """Return JSON in which a change of one outcome is a change of one line, sorted by name."""
    blocks = []
    for name, outcome in sorted(scenarios.items()):
        if isinstance(outcome, dict):
            rows = [f"{json.dumps(key)}: {dumped(outcome[key])}" for key in sorted(outcome)]
            text = "{\n" + ",\n".join(rows) + "\n}"
        else:
            text = dumped(outcome)
        blocks.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def dumped(outcome):
    return json.dumps(outcome, default=str, sort_keys=True)


def main():
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    outcome = {name: function() for name, function in SCENARIOS.items()}
    with open(sys.argv[1], "w") as file:
        file.write(one_outcome_a_line(outcome))


if __name__ == "__main__":
    main()
