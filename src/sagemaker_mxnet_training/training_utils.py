"""What a training script calls: ``save`` a model as SageMaker expects it, name the first host.

Importing this module imports no MXNet. It does watch for MXNet: a Gluon block keeps its graph but
not the shapes of what it was called with (``mxnet/gluon/block.py``, MXNet 1.9.1), and
``model-shapes.json`` needs them, so from here on they are noted when a graph is first built. That
is once for each graph, never for a step.
"""

import errno
import functools
import json
import os
import socket
import sys
import types
import warnings
import weakref
from typing import Any, Dict, List, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit import compatibility
from sagemaker_mxnet_toolkit.fileset import naming, replacing
from sagemaker_mxnet_toolkit.model_files import PARAMS, SHAPES, SYMBOL

_Shape = Tuple[int, ...]
_Model = Tuple[Any, Dict[str, Any], List[Tuple[str, _Shape]]]

_seen_shapes: "weakref.WeakKeyDictionary[Any, List[_Shape]]" = weakref.WeakKeyDictionary()


def save(
    model_dir: str,
    model: Any,
    current_host: Optional[str] = None,
    hosts: Optional[Sequence[str]] = None,
) -> None:
    """Save a model on the first host; on any other host do nothing.

    Writes ``model-symbol.json``, ``model-0000.params`` and ``model-shapes.json`` (a JSON list of
    ``{"name", "shape"}``, one for each input). ``mx.model.load_checkpoint(model_dir + "/model",
    0)`` gives back a model with bit-identical outputs, on a machine without a GPU too. (Run the
    same way: bound for inference only, MXNet 1.9.1 fuses convolutions and their last bits change. A
    model of ``mx.np`` arrays is read under ``npx.set_np``, as MXNet's own files are.)

    An interrupted save, SIGKILL included, leaves the old three files or the new three for whoever
    reads them, never some of each (``fileset`` tells how). It may also leave a hidden directory,
    which the next save clears away.

    The shapes of a block are those of the batch that built its graph. For a block whose graph was
    built before this module was imported they are unknown, ``[]``, and a warning says so.

    Args:
        model_dir: where to save, ``SM_MODEL_DIR`` in a job; made if missing.
        model: a bound ``mx.mod.Module`` (or ``BucketingModule``) with parameters, or a hybridized
            ``gluon.HybridBlock`` that has run once.
        current_host: this host; default ``SM_CURRENT_HOST``.
        hosts: all hosts; default ``SM_HOSTS``. Outside any job this host is the only one.

    Raises:
        TypeError: when the model is of another type.
        ValueError: when the model is not ready to be saved, or the hosts make no sense.
        OSError: when the files cannot be written, with the path. The old ones are still there.
    """
    here, everyone = _place(current_host, hosts)
    if here != scheduler_host(everyone):
        return
    symbol, params, inputs = _describe(model)
    model_dir = os.fspath(model_dir)
    os.makedirs(model_dir, exist_ok=True)
    with replacing(model_dir, (SYMBOL, PARAMS, SHAPES)) as new:
        _write_text(os.path.join(new, SYMBOL), symbol.tojson())
        _write_params(os.path.join(new, PARAMS), params)
        shapes = [{"name": name, "shape": list(shape)} for name, shape in inputs]
        _write_text(os.path.join(new, SHAPES), json.dumps(shapes))


def scheduler_host(hosts: Sequence[str]) -> str:
    """Return the first host: the one that runs the kvstore's scheduler and saves the model.

    First means first in sorted order, whatever the order of ``hosts``.

    Raises:
        ValueError: when there are no hosts.
    """
    if isinstance(hosts, str) or not hosts:
        raise ValueError(f"hosts: expected a list of at least one host name, got {hosts!r}")
    return min(hosts)


def _place(current: Optional[str], hosts: Optional[Sequence[str]]) -> Tuple[str, Sequence[str]]:
    current = current or os.environ.get("SM_CURRENT_HOST")
    source = "hosts"
    if hosts is None and "SM_HOSTS" in os.environ:
        source, text = "SM_HOSTS", os.environ["SM_HOSTS"]
        try:
            hosts = json.loads(text)
        except ValueError:
            hosts = None
        if not (isinstance(hosts, list) and all(isinstance(host, str) for host in hosts)):
            raise ValueError(f"SM_HOSTS: expected a JSON list of host names, got {text!r}")
    if hosts is None:
        hosts = [current or socket.gethostname()]
    first = scheduler_host(hosts)
    if current is None and len(hosts) == 1:
        current = first
    if current is None or current not in hosts:
        raise ValueError(
            f"current_host: {current!r} is not among {source}, {list(hosts)!r}, so it is unknown "
            "whether this host saves; pass current_host or set SM_CURRENT_HOST to one of them"
        )
    return current, hosts


def _describe(model: Any) -> _Model:
    import mxnet  # noqa: PLC0415 (late: who only asks for the first host needs no MXNet)

    if isinstance(model, (mxnet.mod.Module, mxnet.mod.BucketingModule)):
        return _describe_module(model)
    if isinstance(model, mxnet.gluon.HybridBlock):
        return _describe_block(model, mxnet)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    hint = ""
    if isinstance(model, mxnet.gluon.Block):
        hint = "; a Block has no graph to save: derive it from HybridBlock (HybridSequential)"
    raise TypeError(
        f"save: cannot save a {kind}: expected a bound mx.mod.Module or a hybridized "
        f"mx.gluon.HybridBlock{hint}"
    )


def _describe_module(module: Any) -> _Model:
    if not module.binded:
        raise ValueError(
            "save: the Module is not bound, so its inputs have no shapes yet: call "
            "module.bind(data_shapes=...) and module.init_params(), or module.fit(...), first"
        )
    if not module.params_initialized:
        raise ValueError(
            "save: the Module has no parameters yet: call module.init_params(), "
            "module.set_params(...) or module.fit(...) first"
        )
    args, auxs = module.get_params()
    inputs = [(desc.name, tuple(desc.shape)) for desc in module.data_shapes]
    return module.symbol, _named(args, auxs), inputs


def _describe_block(block: Any, mxnet: Any) -> _Model:
    # These attributes are private, but public ``export`` would copy all parameters.
    if block._cached_op is None:
        raise ValueError(
            f"save: the {type(block).__name__} {block.name!r} has no graph yet: call "
            "block.hybridize() and then run it once, block(batch), first"
        )
    variables, symbol = block._cached_graph
    parameters = {entry.name: entry for is_input, entry in block._cached_op_args if not is_input}
    args = {n: _on_cpu(parameters[n], mxnet) for n in symbol.list_arguments() if n in parameters}
    auxs = {n: _on_cpu(parameters[n], mxnet) for n in symbol.list_auxiliary_states()}
    shapes = _seen_shapes.get(block)
    if shapes is None:
        shapes = [()] * len(variables)
        warnings.warn(
            f"save: the input shapes of {block.name!r} are unknown, because it ran before "
            f"sagemaker_mxnet_training.training_utils was imported; {SHAPES} says []. To have "
            "them, import it earlier, or call block.hybridize() and block(batch) again",
            stacklevel=4,
        )
    used = set(symbol.list_inputs())
    inputs = [(v.name, shape) for v, shape in zip(variables, shapes) if v.name in used]
    return symbol, _named(args, auxs), inputs


def _on_cpu(parameter: Any, mxnet: Any) -> Any:
    if parameter._stype != "default" or len(parameter.list_ctx()) > 1:
        array = parameter._reduce()  # gathers the rows, or averages what the devices hold
    else:
        array = parameter.data()
    # An mx.np array shares its memory with this view of it; mx.nd.save takes no other.
    return array.as_nd_ndarray().as_in_context(mxnet.cpu())


def _named(args: Dict[str, Any], auxs: Dict[str, Any]) -> Dict[str, Any]:
    return {
        **{f"arg:{name}": array for name, array in args.items()},
        **{f"aux:{name}": array for name, array in auxs.items()},
    }


def _write_text(path: str, text: str) -> None:
    with naming(path), open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _write_params(path: str, params: Dict[str, Any]) -> None:
    import mxnet  # noqa: PLC0415

    try:
        mxnet.nd.save(path, params)
    except mxnet.base.MXNetError as error:
        reason = _why_not(path, params)
        if reason is None:  # an operator failed: MXNet reports it when somebody reads its result
            raise
        raise OSError(reason, os.strerror(reason), path) from error
    # MXNet 1.9.1 ignores the result of fclose, which writes the last 4 KB. The names come last.
    tail = list(params)[-1].encode() if params else bytes(8)
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - len(tail)))
        if file.read() != tail:
            reason = _why_not(path, params) or errno.EIO
            raise OSError(reason, os.strerror(reason), path)


def _why_not(path: str, params: Dict[str, Any]) -> Optional[int]:
    """Ask the kernel for the room that the file needs; MXNet's message does not say why."""
    import numpy  # noqa: PLC0415

    arrays = params.values()
    size = sum(array.size * numpy.dtype(array.dtype).itemsize for array in arrays) + (1 << 20)
    try:
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        return error.errno
    return None


def _note_shapes(module: types.ModuleType) -> None:
    """Have every block of ``mxnet.gluon.block`` note its inputs' shapes when it builds a graph."""
    build = module.HybridBlock._build_cache

    @functools.wraps(build)
    def build_and_note(block: Any, *args: Any) -> None:
        build(block, *args)
        flat = [arg for arg in module._flatten(args, "input")[0] if arg is not None]
        if all(hasattr(arg, "shape") for arg in flat):  # a Symbol has none
            _seen_shapes[block] = [tuple(arg.shape) for arg in flat]

    module.HybridBlock._build_cache = build_and_note


_BLOCK_MODULE = "mxnet.gluon.block"
if _BLOCK_MODULE in sys.modules:
    _note_shapes(sys.modules[_BLOCK_MODULE])
else:
    compatibility.after_import(lambda: _note_shapes(sys.modules[_BLOCK_MODULE]))
