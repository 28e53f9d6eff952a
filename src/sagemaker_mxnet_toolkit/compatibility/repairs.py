"""Patches for single modules of MXNet.

Most are for later releases of NumPy and Python. Others are for defects of MXNet 1.9.1 that silently
trained wrong models (``_repair_trainer``, ``kvstore``), and for errors that hid their cause
(``_repair_errors``).
"""

import functools
import sys
from types import FunctionType
from typing import Any, Callable, Dict, List

from sagemaker_mxnet_toolkit import tracebacks
from sagemaker_mxnet_toolkit.compatibility import kvstore


class _Rendering(type):
    """Replaces ``str`` where MXNet formats the parameters of operators for its library.

    NumPy 2 formats the elements of a tuple as ``np.int64(3)`` (NEP 51), which the library cannot
    parse.
    """

    def __call__(cls, value: Any = "") -> str:
        text = str(value)
        # The fast path: this runs several times for each operator.
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
    """Convert NumPy's scalars in tuples and lists to Python's."""
    if isinstance(value, (tuple, list)):
        plain = [_plain(element) for element in value]
        return tuple(plain) if isinstance(value, tuple) else plain
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.floating):
        return float(str(value))  # float32(0.1) as 0.1, not as 0.10000000149011612
    return value.item() if isinstance(value, numpy.generic) else value


def _repair_recordio(module: Any) -> None:
    """Replace ``ndarray.tostring``, which NumPy 2.3 removed, by ``tobytes``."""
    for function in (module.pack, module.pack_img):
        _recode(function, "co_names", lambda name: "tobytes" if name == "tostring" else name)


def _repair_metric(module: Any) -> None:
    """Keep the running sums of metrics in double precision, as they were before NumPy 2.

    ``0.0 + numpy.float32(x)`` was a float64 and is a float32 now (NEP 50): the sum of many
    batches would lose precision, and stop growing at 2**24.
    """
    numpy = sys.modules["numpy"]
    sums = frozenset(("sum_metric", "global_sum_metric", "num_inst", "global_num_inst"))

    def set_attribute(metric: Any, name: str, value: Any) -> None:
        if name in sums and isinstance(value, numpy.floating):
            value = numpy.float64(value)
        object.__setattr__(metric, name, value)

    module.EvalMetric.__setattr__ = set_attribute

    # Sums in local variables start with `0.` or `0`. NumPy's own zeros keep their precision.
    def strong(constant: Any) -> Any:
        zeros = {int: numpy.int64(0), float: numpy.float64(0)}
        return zeros.get(type(constant), constant) if constant == 0 else constant

    _recode(module.Perplexity.update, "co_consts", strong)


def _repair_dispatch(module: Any) -> None:
    """Register ``numpy.divide``, which was named ``true_divide`` up to NumPy 1.22.

    Otherwise MXNet passes the division to NumPy, which is an error in ``autograd.record``.
    """
    ufuncs = module._NUMPY_ARRAY_UFUNC_DICT
    ufuncs.setdefault("divide", ufuncs["true_divide"])


def _repair_multiarray(module: Any) -> None:
    """Support the named tuple that ``numpy.linalg.qr`` returns since NumPy 1.25."""
    convert = module._as_mx_np_array

    def function(object: Any, ctx: Any = None) -> Any:
        return convert(tuple(object) if isinstance(object, tuple) else object, ctx)

    module._as_mx_np_array = function


def _repair_trainer(module: Any) -> None:
    """Make a worker wait for the initial weights before it pushes gradients.

    If the optimizer is on the workers, a server replaces the weights by the sum of gradients when
    all workers have pushed. In MXNet 1.9.1 a push does not wait for an earlier pull
    (``KVStoreDist::PushPullDefault`` and ``PullDefault`` use different buffers), so a slow worker
    could start with gradients as weights. On two busy CPUs this happened in 7 of 46 jobs on two
    hosts, and in none of 24 with this wait.
    """
    init = module.Trainer._init_params

    @functools.wraps(init)
    def init_params(trainer: Any) -> None:
        init(trainer)
        if trainer._distributed and not trainer._update_on_kvstore:
            sys.modules["mxnet.ndarray"].waitall()

    module.Trainer._init_params = init_params
    check = module.Trainer._check_and_rescale_grad

    @functools.wraps(check)
    def check_and_rescale_grad(trainer: Any, scale: float) -> None:
        # MXNet rejects a changed batch size, since it would not reach the servers. Here it does.
        if kvstore.forwards_changes(trainer._kvstore):
            trainer._optimizer.rescale_grad = scale
        else:
            check(trainer, scale)

    module.Trainer._check_and_rescale_grad = check_and_rescale_grad


class _Recorder:
    """Replaces the module ``traceback`` where MXNet prints an exception of a callback."""

    @staticmethod
    def format_exc() -> str:
        """Return the result of ``traceback.format_exc``, and record the exception."""
        _raised[:] = [sys.exc_info()[1]]
        import traceback

        return traceback.format_exc()


_raised: List[Any] = []
"""The last exception in a custom operator that MXNet has not reported yet."""


def _repair_callbacks(module: Any) -> None:
    """Record exceptions of ``CustomOp``, ``CustomOpProp`` and ``autograd.Function``."""
    module.traceback = _Recorder


class _Unconstructed:
    """Replaces a ``CustomOpProp`` whose constructor failed; any use raises the exception."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error


def _repair_operator(module: Any) -> None:
    """Record exceptions of callbacks, including those of a ``CustomOpProp``'s constructor.

    With MXNet's own ``register`` they end the process with SIGSEGV.
    """
    _repair_callbacks(module)
    register = module.register

    @functools.wraps(register)
    def register_kept(reg_name: str) -> Callable[[Any], Any]:
        def decorate(prop: Any) -> Any:
            def create(**options: Any) -> Any:
                try:
                    return prop(**options)
                except Exception as error:
                    return _Unconstructed(error)

            register(reg_name)(create)
            return prop

        return decorate

    module.register = register_kept


def _repair_errors(module: Any) -> None:
    """Add the original exception to the error of a custom operator.

    MXNet's error is ``Check failed: reinterpret_cast<CustomOpFBFunc>(...)``.
    """
    last_error = module.get_last_ffi_error

    @functools.wraps(last_error)
    def get_last_ffi_error() -> Any:
        error = last_error()
        if not _raised or "Custom" not in str(error):
            return error
        cause = _raised.pop()
        named = type(error)(f"{tracebacks.summary(cause)} (in an operator written in Python)")
        named.__cause__ = cause
        return named

    module.get_last_ffi_error = get_last_ffi_error


_LOSSES = {
    "SoftmaxOutput": "SoftmaxOutput",
    "LogisticRegressionOutput": "LogisticRegressionOutput",
    # Their outputs are their inputs, and MXNet cannot convert them.
    "LinearRegressionOutput": "MakeLoss",
    "MAERegressionOutput": "MakeLoss",
}
"""Operators with a label as input, and the operators as which they are converted."""


def _repair_onnx_export(module: Any) -> None:
    """Convert losses without their label, which is not part of the exported graph.

    ``mxnet.onnx`` skips the label's node, but its converter of ``SoftmaxOutput`` for opset 13 looks
    it up, which raises IndexError.
    """
    convert = module.MXNetGraph.convert_layer

    def convert_layer(node: Dict[str, Any], **options: Any) -> Any:
        op = _LOSSES.get(node["op"])
        if op is not None:
            node = {**node, "op": op, "inputs": node["inputs"][:1]}
        return convert(node, **options)

    module.MXNetGraph.convert_layer = staticmethod(convert_layer)


REPAIRS: Dict[str, Callable[[Any], None]] = {
    "mxnet.autograd": _repair_callbacks,
    "mxnet.base": _repair_errors,
    "mxnet.gluon.trainer": _repair_trainer,
    "mxnet.kvstore.base": kvstore.repair_create,
    "mxnet.kvstore.kvstore": kvstore.repair_store,
    "mxnet.metric": _repair_metric,
    "mxnet.numpy.multiarray": _repair_multiarray,
    "mxnet.numpy_dispatch_protocol": _repair_dispatch,
    "mxnet.operator": _repair_operator,
    "mxnet.onnx.mx2onnx._export_onnx": _repair_onnx_export,
    "mxnet.recordio": _repair_recordio,
}


def _recode(function: FunctionType, part: str, exchange: Callable[[Any], Any]) -> None:
    """Replace names (``co_names``) or constants (``co_consts``) in a function's code."""
    code: Any = function.__code__
    function.__code__ = code.replace(**{part: tuple(map(exchange, getattr(code, part)))})
