"""Functions for training scripts: ``save`` a model, and ``scheduler_host``.

Importing this module does not import MXNet. When MXNet is imported, it is patched to record the
inputs of Gluon blocks (``checkpoints.block_inputs``).
"""

import errno
import json
import os
import socket
import sys
import warnings
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from sagemaker_mxnet_toolkit.atomic_files import naming, replacing
from sagemaker_mxnet_toolkit.model_files import PARAMS, SHAPES, SYMBOL
from sagemaker_mxnet_toolkit.processes.child_report import print_whole
from sagemaker_mxnet_training.checkpoints import block_inputs

_Shape = Tuple[int, ...]
_Model = Tuple[Any, Dict[str, Any], List[Tuple[str, _Shape]]]

_logged_hosts: Set[str] = set()
"""Hosts or ranks on which ``save`` has already logged that it does not write."""


def save(
    model_dir: str,
    model: Any,
    current_host: Optional[str] = None,
    hosts: Optional[Sequence[str]] = None,
) -> None:
    """Save a model on the first host. With Horovod, rank 0 saves it.

    Other hosts or ranks write nothing, and log this once.

    Writes ``model-symbol.json``, ``model-0000.params`` and ``model-shapes.json`` (a JSON list with
    ``{"name", "shape"}`` for each input). ``mx.model.load_checkpoint(model_dir + "/model", 0)``
    loads a model with bit-identical outputs, also on a machine without a GPU. (If it is bound only
    for inference, MXNet 1.9.1 fuses convolutions, and the last bits may differ. Load a model with
    ``mx.np`` arrays under ``npx.set_np``.)

    Each file is written under a temporary name, flushed and renamed, in the order parameters,
    shapes, symbol. So the first save to a directory is complete or absent, since there is no model
    without a symbol. If a later save is killed between two renames, the new parameters may be left
    with the old symbol, which is a problem only if the shapes of the two models differ. The next
    save removes temporary files. Only one process at a time may save to a directory.

    The shapes of a block are those of the batch with which its graph was built. If this was before
    this module was imported, they are unknown (``[]``), and a warning is issued.

    Args:
        model_dir: the directory, ``SM_MODEL_DIR`` in a job; created if missing.
        model: a bound ``mx.mod.Module`` with parameters, a ``BucketingModule`` (its default bucket
            is saved), or a hybridized ``gluon.HybridBlock`` that has been called once, in this run
            or in the one that a ``Checkpoint`` has resumed.
        current_host: this host; default ``SM_CURRENT_HOST``.
        hosts: all hosts; default ``SM_HOSTS``, or only this host outside a job.

    Raises:
        TypeError: the model or the directory has another type.
        ValueError: the model cannot be saved yet, or the hosts are invalid.
        OSError: a file cannot be written, with the path. Existing files are unchanged, unless a
            rename has failed.
    """
    here, all_hosts = _hosts(current_host, hosts)
    first = scheduler_host(all_hosts)
    writer = f"{first}, the first host,"
    if int(os.environ.get("HOROVOD_SIZE") or 1) > 1:
        here, first, writer = f"rank {os.environ['HOROVOD_RANK']}", "rank 0", "rank 0"
    if here != first:
        if here not in _logged_hosts:
            _logged_hosts.add(here)
            print_whole(f"save: {writer} writes the model; {here} does not", sys.stdout)
        return
    described = _describe(model)
    model_dir = _path(model_dir)
    try:
        _write(model_dir, *described)
    except OSError as error:
        error.strerror = (
            f"save: the model cannot be written to {model_dir!r}: {error.strerror}; expected a "
            "writable directory with enough free space, in a job that of SM_MODEL_DIR; path"
        )
        raise


def scheduler_host(hosts: Sequence[str]) -> str:
    """Return the first host in sorted order, which runs the kvstore scheduler and saves the model.

    Raises:
        ValueError: ``hosts`` is empty.
    """
    if isinstance(hosts, str) or not hosts:
        raise ValueError(f"hosts: expected a list of at least one host name, got {hosts!r}")
    return min(hosts)


def _hosts(current: Optional[str], hosts: Optional[Sequence[str]]) -> Tuple[str, Sequence[str]]:
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
            f"current_host: {current!r} is not in {source}, {list(hosts)!r}; pass current_host or "
            "set SM_CURRENT_HOST to one of them"
        )
    return current, hosts


def _path(model_dir: Any) -> str:
    path = os.fspath(model_dir) if isinstance(model_dir, os.PathLike) else model_dir
    if not isinstance(path, str):
        raise TypeError(
            f"save: expected the path of a directory, got {model_dir!r}: pass "
            'os.environ["SM_MODEL_DIR"] in a job, or the path of another directory'
        )
    return path


def _describe(model: Any) -> _Model:
    import mxnet  # imported late, since scheduler_host does not need it

    if isinstance(model, (mxnet.mod.Module, mxnet.mod.BucketingModule)):
        return _describe_module(model)
    if isinstance(model, mxnet.gluon.HybridBlock):
        return _describe_block(model, mxnet)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    hint = ""
    if isinstance(model, mxnet.gluon.Block):
        hint = "; a Block has no graph: derive it from HybridBlock (HybridSequential)"
    if isinstance(model, str):
        hint = "; call save(model_dir, model), with the directory first"
    raise TypeError(
        f"save: cannot save a {kind}: expected a bound mx.mod.Module or a hybridized "
        f"mx.gluon.HybridBlock{hint}"
    )


def _describe_module(module: Any) -> _Model:
    if not module.binded:
        raise ValueError(
            "save: the Module is not bound, so the shapes of its inputs are unknown: call "
            "module.bind(data_shapes=...) and module.init_params(), or module.fit(...), first"
        )
    if not module.params_initialized:
        raise ValueError(
            "save: the Module has no parameters yet: call module.init_params(), "
            "module.set_params(...) or module.fit(...) first"
        )
    module = _default_bucket(module)
    args, auxs = module.get_params()
    inputs = [(desc.name, tuple(desc.shape)) for desc in module.data_shapes]
    return module.symbol, _named(args, auxs), inputs


def _default_bucket(module: Any) -> Any:
    """Return the module of a ``BucketingModule``'s default bucket, or the argument itself.

    The current bucket, that of the last batch, may lack weights of the default one.
    """
    buckets = getattr(module, "_buckets", None)
    if buckets is None:
        return module
    default = buckets[module._default_bucket_key]
    default._params_dirty = True  # the weights on devices, which buckets share, may be newer
    return default


def _describe_block(block: Any, mxnet: Any) -> _Model:
    # These attributes are private, but the public ``export`` would copy all parameters.
    if not block_inputs.build(block):
        raise ValueError(
            f"save: the {type(block).__name__} {block.name!r} has no graph yet: call "
            "block.hybridize() and then call it once, block(batch), before save"
        )
    variables, symbol = block._cached_graph
    parameters = {entry.name: entry for is_input, entry in block._cached_op_args if not is_input}
    args = {n: _on_cpu(parameters[n], mxnet) for n in symbol.list_arguments() if n in parameters}
    auxs = {n: _on_cpu(parameters[n], mxnet) for n in symbol.list_auxiliary_states()}
    shapes = block_inputs.shapes(block)
    if shapes is None:
        shapes = [()] * len(variables)
        warnings.warn(
            f"save: the input shapes of {block.name!r} are unknown, because it ran before "
            f"sagemaker_mxnet_training.training_utils was imported; {SHAPES} contains []; "
            "import it earlier, or call block.hybridize() and block(batch) again",
            stacklevel=4,
        )
    used = set(symbol.list_inputs())
    inputs = [(v.name, shape) for v, shape in zip(variables, shapes) if v.name in used]
    return symbol, _named(args, auxs), inputs


def _on_cpu(parameter: Any, mxnet: Any) -> Any:
    if parameter._stype != "default" or len(parameter.list_ctx()) > 1:
        array = parameter._reduce()  # gathers the rows, or averages the values of all devices
    else:
        array = parameter.data()
    # A view of an mx.np array without a copy, which mx.nd.save requires.
    return array.as_nd_ndarray().as_in_context(mxnet.cpu())


def _named(args: Dict[str, Any], auxs: Dict[str, Any]) -> Dict[str, Any]:
    return {
        **{f"arg:{name}": array for name, array in args.items()},
        **{f"aux:{name}": array for name, array in auxs.items()},
    }


def _write(
    model_dir: str, symbol: Any, params: Dict[str, Any], inputs: Sequence[Tuple[str, _Shape]]
) -> None:
    os.makedirs(model_dir, exist_ok=True)
    shapes = [{"name": name, "shape": list(shape)} for name, shape in inputs]
    paths = (os.path.join(model_dir, name) for name in (PARAMS, SHAPES, SYMBOL))
    with replacing(*paths) as (params_path, shapes_path, symbol_path):
        _write_params(params_path, params)
        _write_text(shapes_path, json.dumps(shapes))
        _write_text(symbol_path, symbol.tojson())


def _write_text(path: str, text: str) -> None:
    with naming(path), open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _write_params(path: str, params: Dict[str, Any]) -> None:
    import mxnet

    try:
        mxnet.nd.save(path, params)
    except mxnet.base.MXNetError as error:
        reason = _write_errno(path, params)
        if reason is None:  # an operator has failed, which MXNet reports when its result is read
            raise
        raise OSError(reason, os.strerror(reason), path) from error
    # MXNet 1.9.1 ignores errors of fclose, which writes the last 4 KB. The names are at the end.
    tail = list(params)[-1].encode() if params else bytes(8)
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - len(tail)))
        if file.read() != tail:
            reason = _write_errno(path, params) or errno.EIO
            raise OSError(reason, os.strerror(reason), path)


def _write_errno(path: str, params: Dict[str, Any]) -> Optional[int]:
    """Return why a file cannot be written, by allocating its space; MXNet does not report it."""
    import numpy

    arrays = params.values()
    size = sum(array.size * numpy.dtype(array.dtype).itemsize for array in arrays) + (1 << 20)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)  # MXNet may have failed to create it
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno
    return None
