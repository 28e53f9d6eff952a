"""Changes to single modules of MXNet that NumPy's and Python's releases since made necessary.

And one for a fault of MXNet's own, which trained wrong models in silence (``_repair_trainer``).
"""

import functools
import sys
from types import FunctionType
from typing import Any, Callable, Dict


class _Rendering(type):
    """Takes the place of ``str`` where MXNet turns operator parameters into text for its library.

    NumPy 2 writes the elements of a tuple as ``np.int64(3)`` (NEP 51), which the library cannot
    read, although numbers on their own are written as they always were.
    """

    def __call__(cls, value: Any = "") -> str:
        text = str(value)
        # Nearly every parameter ends here: this runs several times for each operator.
        if "np." not in text or not isinstance(value, (tuple, list)):
            return text
        return str(_plain(value))

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, str)


class Rendered(metaclass=_Rendering):
    """``str``, in the modules of ``RENDERING_MODULES``."""


RENDERING_MODULES = frozenset(
    (
        "mxnet._ctypes.ndarray",
        "mxnet._ctypes.symbol",
        "mxnet.io.io",
        "mxnet.symbol.symbol",
    )
)


def _plain(value: Any) -> Any:
    """Return ``value`` with NumPy's scalars in tuples and lists made Python's."""
    if isinstance(value, (tuple, list)):
        plain = [_plain(element) for element in value]
        return tuple(plain) if isinstance(value, tuple) else plain
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.floating):
        return float(str(value))  # float32(0.1) was written as 0.1, not as 0.10000000149011612
    return value.item() if isinstance(value, numpy.generic) else value


def _repair_recordio(module: Any) -> None:
    """``ndarray.tostring`` is ``tobytes`` since NumPy 1.9, and nothing else since 2.3."""
    for function in (module.pack, module.pack_img):
        _recode(function, "co_names", lambda name: "tobytes" if name == "tostring" else name)


def _repair_metric(module: Any) -> None:
    """Keep the running sums of metrics in double precision, as they were before NumPy 2.

    ``0.0 + numpy.float32(x)`` was a float64 and is a float32 now (NEP 50): the sum of many
    batches would lose its digits, and above 2**24 stop growing.
    """
    numpy = sys.modules["numpy"]
    sums = frozenset(("sum_metric", "global_sum_metric", "num_inst", "global_num_inst"))

    def set_attribute(metric: Any, name: str, value: Any) -> None:
        if name in sums and isinstance(value, numpy.floating):
            value = numpy.float64(value)
        object.__setattr__(metric, name, value)

    module.EvalMetric.__setattr__ = set_attribute

    # Sums in local variables, `0.` and `0` at first: NumPy's own zeros keep their precision.
    def strong(constant: Any) -> Any:
        zeros = {int: numpy.int64(0), float: numpy.float64(0)}
        return zeros.get(type(constant), constant) if constant == 0 else constant

    _recode(module.Perplexity.update, "co_consts", strong)


def _repair_dispatch(module: Any) -> None:
    """``numpy.divide`` was named ``true_divide`` up to NumPy 1.22, and is looked up by name.

    Without this MXNet hands the division to NumPy, and refuses to do that in ``autograd.record``.
    """
    ufuncs = module._NUMPY_ARRAY_UFUNC_DICT
    ufuncs.setdefault("divide", ufuncs["true_divide"])


def _repair_multiarray(module: Any) -> None:
    """``numpy.linalg.qr`` gives a named tuple since NumPy 1.25, which takes no list as argument."""
    convert = module._as_mx_np_array

    def function(object: Any, ctx: Any = None) -> Any:
        return convert(tuple(object) if isinstance(object, tuple) else object, ctx)

    module._as_mx_np_array = function


def _repair_trainer(module: Any) -> None:
    """Have a worker read the first weights before it pushes gradients.

    With the optimizer on the workers of a distributed kvstore, a server keeps the sum of gradients
    in the place of the weights, as soon as all workers have pushed. In MXNet 1.9.1 nothing makes a
    push wait for the pull of the weights before it (``KVStoreDist::PushPullDefault`` takes another
    buffer than ``PullDefault``): a worker that was late began to train with gradients as weights.
    On two busy CPUs that were 7 of 46 jobs on two hosts; with this wait it was none of 24.
    """
    init = module.Trainer._init_params

    @functools.wraps(init)
    def init_params(trainer: Any) -> None:
        init(trainer)
        if trainer._distributed and not trainer._update_on_kvstore:
            sys.modules["mxnet.ndarray"].waitall()

    module.Trainer._init_params = init_params


REPAIRS: Dict[str, Callable[[Any], None]] = {
    "mxnet.gluon.trainer": _repair_trainer,
    "mxnet.metric": _repair_metric,
    "mxnet.numpy.multiarray": _repair_multiarray,
    "mxnet.numpy_dispatch_protocol": _repair_dispatch,
    "mxnet.recordio": _repair_recordio,
}


def _recode(function: FunctionType, part: str, exchange: Callable[[Any], Any]) -> None:
    """Exchange the names (``co_names``) or constants (``co_consts``) of a function's code."""
    code: Any = function.__code__
    function.__code__ = code.replace(**{part: tuple(map(exchange, getattr(code, part)))})
