"""A symbolic network: graph, parameters, inputs; and the three files it is saved in."""

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Sequence, Set, Tuple

import mxnet
import numpy as np

from sagemaker_mxnet_serving.errors import ModelError
from sagemaker_mxnet_serving.signature import Input
from sagemaker_mxnet_toolkit.model_files import EPOCH, PARAMS, PREFIX, SHAPES, SYMBOL

FILES = (SYMBOL, PARAMS, SHAPES)

_SAVED_BY = "expected the three files that sagemaker_mxnet_training.training_utils.save writes"

# Losses whose second input is a label, which they ignore when they predict.
_LOSSES = frozenset(
    {"SoftmaxOutput", "Softmax", "SVMOutput", "LinearRegressionOutput", "MAERegressionOutput"}
    | {"LogisticRegressionOutput"}
)


@dataclass(frozen=True)
class Network:
    """A graph that is ready to be bound.

    Attributes:
        symbol: the graph, an ``mx.sym.Symbol``.
        args: its parameters by name, on the device that predicts.
        auxs: its auxiliary states by name, there too.
        inputs: what it takes.
        first: the first dimension of its inputs, as saved or as configured.
        labels: names of arguments that a prediction ignores.
        ctx: the device, an ``mx.Context``.
    """

    symbol: Any
    args: Mapping[str, Any]
    auxs: Mapping[str, Any]
    inputs: Sequence[Input]
    first: Mapping[str, int]
    ctx: Any
    labels: Sequence[str] = field(default=())

    def shapes(self, rows: Optional[int] = None) -> Dict[str, Tuple[int, ...]]:
        """Return the shape of each input with a number of rows; default: the model's own."""
        return {
            each.name: (self.first[each.name] if rows is None else rows, *(each.row or ()))
            for each in self.inputs
        }

    def infer(self, rows: Optional[int] = None) -> Optional[Tuple[Dict[str, Any], Sequence[Any]]]:
        """Return the shapes of labels and of outputs for a number of rows.

        None where the graph or its parameters allow no such number.
        """
        known = {**self.shapes(rows), **{name: array.shape for name, array in self.args.items()}}
        try:
            found, outputs, _ = self.symbol.infer_shape(**known)
            if found is None or any(0 in shape for shape in outputs):
                return None
            if not _reshapes_keep_size(self.symbol, known):
                return None
        except mxnet.base.MXNetError:
            return None
        arguments = dict(zip(self.symbol.list_arguments(), found))
        return {name: arguments[name] for name in self.labels}, outputs


def _reshapes_keep_size(symbol: Any, known: Mapping[str, Any]) -> bool:
    """Tell whether each reshape has as many numbers before as after.

    MXNet 1.9.1 does not check that. A graph with its batch size built in, ``reshape((4, -1))``,
    would run with three rows, and read memory beyond them.
    """
    nodes = json.loads(symbol.tojson())["nodes"]
    reshapes = [node for node in nodes if "reshape" in node["op"].lower()]
    if not reshapes:
        return True
    internals = symbol.get_internals()
    _, shapes, _ = internals.infer_shape(**known)
    sizes = {name: math.prod(shape) for name, shape in zip(internals.list_outputs(), shapes)}
    for node in reshapes:
        index, output, *_ = node["inputs"][0]
        source = nodes[index]["name"]
        names = [source, f"{source}_output", f"{source}_output{output}"]
        before = [sizes[name] for name in names if name in sizes]
        after = sizes.get(f"{node['name']}_output")
        if after is not None and before and after not in before:
            return False
    return True


def network_in(model_dir: str, ctx: Any, first_dimension: Optional[int] = None) -> Network:
    """Read the three files of a saved model.

    Args:
        model_dir: where they are.
        ctx: the device that predicts.
        first_dimension: exchanges the first dimension of every input.

    Raises:
        ModelError: when a file is missing, cannot be read, or does not fit the others.
    """
    missing = [name for name in FILES if not os.path.isfile(os.path.join(model_dir, name))]
    if missing:
        found = ", ".join(sorted(os.listdir(model_dir))[:20]) if os.path.isdir(model_dir) else ""
        raise ModelError(
            f"there is no {' and no '.join(missing)} in {model_dir} (found: {found or 'nothing'}); "
            f"{_SAVED_BY}, or a script in {os.path.join(model_dir, 'code')} that defines model_fn"
        )
    shapes = _read_shapes(os.path.join(model_dir, SHAPES))
    _read_graph(os.path.join(model_dir, SYMBOL))
    try:
        symbol, args, auxs = mxnet.model.load_checkpoint(os.path.join(model_dir, PREFIX), EPOCH)
    except Exception as error:
        raise ModelError(
            f"{SYMBOL} and {PARAMS} in {model_dir} cannot be read: {first_line(error)}; "
            f"{_SAVED_BY}, complete: is one cut short?"
        ) from error
    return make_network(symbol, args, auxs, shapes, ctx, first_dimension)


def network_of(module: Any, ctx: Any, first_dimension: Optional[int] = None) -> Network:
    """Take the network out of a bound ``mx.mod.Module``.

    Raises:
        ModelError: when the Module is not bound or has no parameters.
    """
    if not (module.binded and module.params_initialized):
        raise ModelError(
            "model_fn returned a Module that is not ready: expected one that is bound and has its "
            "parameters; call module.bind(for_training=False, data_shapes=...) and "
            "module.set_params(...) in model_fn"
        )
    args, auxs = module.get_params()
    shapes = [(desc.name, tuple(desc.shape)) for desc in module.data_shapes]
    return make_network(module.symbol, args, auxs, shapes, ctx, first_dimension)


def as_module(network: Network) -> Any:
    """Return a ``mx.mod.Module``, bound for inference: what a script's functions get."""
    descriptions = [
        mxnet.io.DataDesc(each.name, shape, dtype=each.dtype)
        for each, shape in zip(network.inputs, network.shapes().values())
    ]
    names = [each.name for each in network.inputs]
    module = mxnet.mod.Module(
        network.symbol, data_names=names, label_names=None, context=network.ctx
    )
    module.bind(for_training=False, data_shapes=descriptions)
    module.set_params(network.args, network.auxs, allow_missing=bool(network.labels))
    return module


def make_network(
    symbol: Any,
    args: Mapping[str, Any],
    auxs: Mapping[str, Any],
    shapes: Sequence[Tuple[str, Tuple[int, ...]]],
    ctx: Any,
    first_dimension: Optional[int] = None,
) -> Network:
    """Put a network together and check that its parts fit.

    Raises:
        ModelError: when they do not.
    """
    names = [name for name, _ in shapes]
    arguments = symbol.list_arguments()
    labels = sorted(set(arguments) - set(names) - set(args))
    lost = [name for name in labels if name not in _labels(symbol)]
    lost += sorted(set(symbol.list_auxiliary_states()) - set(auxs))
    unknown = sorted(set(names) - set(arguments))
    if lost or unknown:
        what = f"has no values of {', '.join(lost[:10])}" if lost else ""
        what = what or f"and {SHAPES} name an input {', '.join(unknown)} that the graph has not"
        raise ModelError(
            f"the parameters of the model do not fit its graph: {PARAMS} {what}; {_SAVED_BY}"
        )
    network = Network(
        symbol=symbol,
        args={n: _on(ctx, array) for n, array in args.items() if n in set(arguments)},
        auxs={n: _on(ctx, auxs[n]) for n in symbol.list_auxiliary_states()},
        inputs=[
            Input(n, dtype, shape[1:])
            for (n, shape), dtype in zip(shapes, _dtypes(symbol, args, names))
        ],
        first={name: first_dimension or shape[0] for name, shape in shapes},
        ctx=ctx,
        labels=labels,
    )
    if network.infer() is None:
        raise ModelError(
            f"the model cannot take inputs of {network.shapes()}, the shapes in {SHAPES}"
            + (" with SAGEMAKER_DEFAULT_MODEL_FIRST_DIMENSION_SIZE" if first_dimension else "")
            + ": its graph and its parameters ask for others; "
            + ("leave the variable out" if first_dimension else _SAVED_BY)
        )
    return network


def _read_shapes(path: str) -> Sequence[Tuple[str, Tuple[int, ...]]]:
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)
        shapes = [(str(entry["name"]), tuple(entry["shape"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path} cannot be read: {first_line(error)}; "
            'expected a JSON list of {"name": "data", "shape": [1, 784]}'
        ) from error
    for name, shape in shapes:
        if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
            raise ModelError(
                f"{path}: the shape of the input {name!r} is {list(shape)}; expected positive "
                "numbers, the rows of a batch first. A block that ran before training_utils was "
                "imported is saved without shapes: import it earlier, or put the shape in the file"
            )
    if not shapes:
        raise ModelError(f"{path} names no input; expected at least one")
    return shapes


def _read_graph(path: str) -> None:
    """Check that the graph is whole, and use the shapes of ``mx.np`` if its operators are."""
    try:
        with open(path, encoding="utf-8") as file:
            operators = [node["op"] for node in json.load(file)["nodes"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}; {_SAVED_BY}") from error
    if any(name.startswith("_np") for name in operators):  # _np_, _npi_ and _npx_
        mxnet.npx.set_np()  # in the whole process, as MXNet has it


def _labels(symbol: Any) -> Set[str]:
    nodes = json.loads(symbol.tojson())["nodes"]
    return {
        nodes[node["inputs"][1][0]]["name"]
        for node in nodes
        if node["op"] in _LOSSES and len(node["inputs"]) > 1
    }


def _dtypes(symbol: Any, args: Mapping[str, Any], names: Sequence[str]) -> Sequence[Any]:
    """Return the inputs' types: those that follow from the parameters, or else that of them all."""
    known = {name: np.dtype(array.dtype) for name, array in args.items()}
    floating = {dtype for dtype in known.values() if dtype.kind == "f"}
    common = floating.pop() if len(floating) == 1 else np.dtype(np.float32)
    for guess in (common, np.dtype(np.float32)):
        try:
            found, _, _ = symbol.infer_type_partial(**known)
            types = dict(zip(symbol.list_arguments(), found or ()))
            dtypes = {name: np.dtype(types.get(name) or guess) for name in names}
            symbol.infer_type_partial(**known, **dtypes)
        except mxnet.base.MXNetError:
            continue
        return [dtypes[name] for name in names]
    return [np.dtype(np.float32) for _ in names]


def _on(ctx: Any, array: Any) -> Any:
    return array.as_nd_ndarray().as_in_context(ctx)


def first_line(error: BaseException) -> str:
    """Return the line of an error that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # MXNet's errors begin with a C++ stack.
    return lines[-1] if lines else type(error).__name__
