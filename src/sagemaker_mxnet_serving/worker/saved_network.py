"""A symbolic network, graph, parameters and inputs, and its three files."""

import functools
import json
import math
import os
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

import mxnet
import numpy as np

from sagemaker_mxnet_serving.inference import ModelError
from sagemaker_mxnet_serving.worker.decoding import Input
from sagemaker_mxnet_toolkit.model_files import (
    SAVED_BY,
    ModelFilesError,
    find,
    has_numpy_shapes,
)
from sagemaker_mxnet_toolkit.tracebacks import cause_line

# Losses whose second input is a label, which a prediction ignores.
_LOSSES = frozenset(
    {"SoftmaxOutput", "Softmax", "SVMOutput", "LinearRegressionOutput", "MAERegressionOutput"}
    | {"LogisticRegressionOutput"}
)

_PARAMETERS = ("_weight", "_bias", "_gamma", "_beta")


@dataclass(frozen=True)
class Network:
    """A graph with its parameters, ready to be bound.

    Attributes:
        symbol: the graph, an ``mx.sym.Symbol``.
        args: its parameters by name, on the device that predicts.
        auxs: its auxiliary states by name, on the same device.
        inputs: its inputs.
        first: the first dimension of its inputs, as saved or configured; empty if neither.
        labels: the names of arguments that a prediction ignores.
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
        """Return the shape of each input for a number of rows; default: the saved shapes.

        Empty if the model was saved without shapes.
        """
        return {
            each.name: (self.first[each.name] if rows is None else rows, *each.row)
            for each in self.inputs
            if each.row is not None
        }

    def infer(
        self, shapes: Mapping[str, Tuple[int, ...]]
    ) -> Optional[Tuple[Dict[str, Any], Sequence[Any]]]:
        """Return the shapes of labels and of outputs for the shapes of inputs.

        None if the graph or its parameters do not support these.
        """
        known = {**{name: array.shape for name, array in self.args.items()}, **shapes}
        inferred = infer(self.symbol, known)
        if inferred is None:
            return None
        return {name: inferred[0][name] for name in self.labels}, inferred[1]


def infer(
    symbol: Any, known: Mapping[str, Tuple[int, ...]]
) -> Optional[Tuple[Dict[str, Any], Sequence[Any]]]:
    """Return the shapes of all arguments and of the outputs; None if the graph has none.

    Args:
        symbol: the graph.
        known: the shapes of its inputs and parameters.
    """
    try:
        # Not infer_shape, which prints all arguments if the shapes do not fit.
        found, outputs, _ = symbol._infer_shape_impl(False, **known)
        if found is None or any(0 in shape for shape in outputs):
            return None
        if not _reshapes_keep_size(symbol, known):
            return None
    except mxnet.base.MXNetError:
        return None
    return dict(zip(symbol.list_arguments(), found)), outputs


def _reshapes_keep_size(symbol: Any, known: Mapping[str, Any]) -> bool:
    """Return whether each reshape keeps the number of elements.

    MXNet 1.9.1 does not check this. A graph with a constant batch size, ``reshape((4, -1))``, would
    run with three rows, and read memory beyond them.
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
    """Load the files of a saved model.

    Args:
        model_dir: their directory; ``model_files.find`` finds them.
        ctx: the device that predicts.
        first_dimension: replaces the first dimension of every input.

    Raises:
        ModelError: a file is missing, cannot be read, or does not fit the others.
    """
    try:
        files = find(model_dir)
    except ModelFilesError as error:
        script = os.path.join(model_dir, "code", "inference.py")
        raise ModelError(f"{error}, or a script {script} that defines model_fn") from None
    operators = _read_graph(files.symbol)
    try:
        numpy_operators = any(name.startswith("_np") for name in operators)  # also _npi_ and _npx_
        if numpy_operators or has_numpy_shapes(files.params):
            mxnet.npx.set_np()  # for the whole process
        symbol, args, auxs = mxnet.model.load_checkpoint(files.prefix, files.epoch)
    except Exception as error:
        raise ModelError(
            f"{files.symbol} and {os.path.basename(files.params)} cannot be read: "
            f"{cause_line(error)}; {SAVED_BY}; one of them may be truncated"
        ) from error
    shapes = _read_shapes(files.shapes, _inputs(symbol, args))
    return make_network(symbol, args, auxs, shapes, ctx, first_dimension)


def network_of(module: Any, ctx: Any, first_dimension: Optional[int] = None) -> Network:
    """Return the network of a bound ``mx.mod.Module``.

    Raises:
        ModelError: the Module is not bound or has no parameters.
    """
    if not (module.binded and module.params_initialized):
        raise ModelError(
            "model_fn returned a Module that is not bound or has no parameters: call in it "
            "module.bind(for_training=False, data_shapes=...) and module.set_params(...)"
        )
    args, auxs = module.get_params()
    shapes = [(desc.name, tuple(desc.shape)) for desc in module.data_shapes]
    return make_network(module.symbol, args, auxs, shapes, ctx, first_dimension)


class ServedModule(mxnet.mod.Module):  # type: ignore[misc]
    """The ``Module`` that a script's functions get. It predicts any number of rows.

    It is bound for one row, as in SageMaker's MXNet inference toolkit, unless the graph or the
    configuration requires another number. Without saved shapes, the first batch binds it.

    Args:
        network: the network.
        only_first: whether to bind it only for the network's first dimension.
    """

    def __init__(self, network: Network, only_first: bool = False) -> None:
        super().__init__(
            network.symbol,
            data_names=[each.name for each in network.inputs],
            label_names=None,
            context=network.ctx,
        )
        # Otherwise MXNet treats a label as a parameter of a fixed shape.
        self._param_names = [n for n in network.symbol.list_arguments() if n in network.args]
        self.network = network
        self._arg_params, self._aux_params = dict(network.args), dict(network.auxs)
        self.params_initialized = True
        shapes, one_row = network.shapes(), network.shapes(1)
        free = not only_first and len(set(network.first.values())) == 1
        self._only_first = not (free and network.infer(one_row) is not None)
        if not self._only_first:
            shapes = one_row
        if shapes:
            self._bind_for(shapes.values())

    def batch_size(self, rows: int) -> int:
        """Return the batch size for a number of rows: at most the model's first dimension."""
        first = next(iter(self.network.first.values()), rows)
        return first if self._only_first else min(first, rows)

    def accepts(self, shapes: Sequence[Tuple[int, ...]]) -> bool:
        """Return whether the graph and the parameters support inputs of these shapes."""
        size = self.batch_size(shapes[0][0])
        named = {e.name: (size, *s[1:]) for e, s in zip(self.network.inputs, shapes)}
        return self.network.infer(named) is not None

    def reshape(self, data_shapes: Any, label_shapes: Any = None) -> None:
        """Bind for other shapes. The shape of a label changes too, which MXNet 1.9.1 rejects."""
        shapes = {name: tuple(shape) for name, shape, *_ in data_shapes}
        if not self.binded:
            self._bind_for(shapes.values())
            return
        if self.network.infer(shapes) is None:
            raise ValueError(f"the model does not support inputs of shape {shapes}")
        for executor in self._exec_group.execs:
            executor.reshape = functools.partial(
                type(executor).reshape, executor, partial_shaping=True
            )
        super().reshape(data_shapes, label_shapes)

    def forward(self, data_batch: Any, is_train: Optional[bool] = None) -> None:
        """Predict a batch."""
        if not self.binded:
            self._bind_for([array.shape for array in data_batch.data])
        if getattr(data_batch, "label", None):  # ignored by a prediction
            provided = getattr(data_batch, "provide_data", None)
            data_batch = mxnet.io.DataBatch(data_batch.data, provide_data=provided)
        super().forward(data_batch, is_train)

    def get_outputs(self, merge_multi_context: bool = True) -> Any:
        """Return the outputs of the last batch, as arrays of ``mx.np`` after ``npx.set_np``."""
        outputs = super().get_outputs(merge_multi_context)
        if merge_multi_context and mxnet.util.is_np_array():
            return [each.as_np_ndarray() for each in outputs]
        return outputs

    def predict(
        self,
        eval_data: Any,
        num_batch: Optional[int] = None,
        merge_batches: bool = True,
        reset: bool = True,
        always_output_list: bool = False,
        sparse_row_id_fn: Any = None,
    ) -> Any:
        """Predict an array or an iterator."""
        batches = isinstance(eval_data, mxnet.io.DataIter)
        if not self.binded:
            shapes = [each.shape for each in eval_data.provide_data] if batches else []
            self._bind_for(shapes or [eval_data.shape])
        # MXNet 1.9.1 cannot merge arrays of mx.np.
        merge = batches and merge_batches and mxnet.util.is_np_array()
        as_list = always_output_list or merge
        outputs = super().predict(
            eval_data, num_batch, merge_batches and not merge, reset, as_list, sparse_row_id_fn
        )
        if not merge:
            return outputs
        merged = [mxnet.np.concatenate(each) for each in zip(*outputs)]
        return merged[0] if len(merged) == 1 and not always_output_list else merged

    def _bind_for(self, shapes: Iterable[Tuple[int, ...]]) -> None:
        self.bind(
            for_training=False,
            data_shapes=[
                mxnet.io.DataDesc(each.name, shape, dtype=each.dtype)
                for each, shape in zip(self.network.inputs, shapes)
            ],
        )


def make_network(
    symbol: Any,
    args: Mapping[str, Any],
    auxs: Mapping[str, Any],
    shapes: Sequence[Tuple[str, Optional[Tuple[int, ...]]]],
    ctx: Any,
    first_dimension: Optional[int] = None,
) -> Network:
    """Return a network; check that its parts fit together.

    Args:
        symbol: the graph.
        args: its parameters.
        auxs: its auxiliary states.
        shapes: name and shape of each input; None for an unknown shape.
        ctx: the device that predicts.
        first_dimension: replaces the first dimension of every input.

    Raises:
        ModelError: they do not.
    """
    names = [name for name, _ in shapes]
    arguments = symbol.list_arguments()
    labels = sorted(set(arguments) - set(names) - set(args))
    lost = [name for name in labels if name not in _labels(symbol)]
    lost += sorted(set(symbol.list_auxiliary_states()) - set(auxs))
    unknown = sorted(set(names) - set(arguments))
    if lost or unknown:
        if lost:
            what = f"the .params file has no values of {', '.join(lost[:10])}"
        else:
            what = f"the graph has no input {', '.join(unknown)}, which the shapes file lists"
        raise ModelError(f"the files of the model do not belong together: {what}; {SAVED_BY}")
    network = Network(
        symbol=symbol,
        args={n: _on(ctx, array) for n, array in args.items() if n in set(arguments)},
        auxs={n: _on(ctx, auxs[n]) for n in symbol.list_auxiliary_states()},
        inputs=[
            Input(n, dtype, None if shape is None else shape[1:])
            for (n, shape), dtype in zip(shapes, _dtypes(symbol, args, names))
        ],
        first=(
            dict.fromkeys(names, first_dimension)
            if first_dimension
            else {name: shape[0] for name, shape in shapes if shape is not None}
        ),
        ctx=ctx,
        labels=labels,
    )
    known = all(shape is not None for _, shape in shapes)
    if known and network.infer(network.shapes()) is None:
        remedy = (
            "unset SAGEMAKER_DEFAULT_MODEL_FIRST_DIMENSION_SIZE" if first_dimension else SAVED_BY
        )
        raise ModelError(
            f"the graph and its parameters do not support inputs of shape {network.shapes()}; "
            f"{remedy}"
        )
    return network


def _inputs(symbol: Any, args: Mapping[str, Any]) -> List[str]:
    """Return the names of a graph's inputs: arguments without a value, except labels of a loss.

    A name of a parameter, such as ``fc1_weight``, is not an input: the file lacks its value.
    """
    found = [name for name in symbol.list_arguments() if name not in args]
    found = [name for name in found if not name.endswith(_PARAMETERS)]
    labels = _labels(symbol)
    # The label of an autoencoder is its input.
    return [name for name in found if name not in labels] or found


def _read_shapes(
    path: Optional[str], inputs: Sequence[str]
) -> Sequence[Tuple[str, Optional[Tuple[int, ...]]]]:
    """Return the name and the shape of each input; None for an unknown shape."""
    if path is None:
        return [(name, None) for name in inputs]
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)
        if not isinstance(entries, list):
            raise TypeError(f"it contains a {type(entries).__name__}")
        shapes = [(str(entry["name"]), tuple(entry["shape"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path} cannot be read: {cause_line(error)}; "
            'expected a JSON list of {"name": "data", "shape": [1, 784]}'
        ) from error
    for name, shape in shapes:
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise ModelError(
                f"{path}: the shape of the input {name!r} is {list(shape)}; expected positive "
                "integers, the rows of a batch first, or [] if it is unknown"
            )
    return [(name, shape or None) for name, shape in shapes] or [(name, None) for name in inputs]


def _read_graph(path: str) -> Sequence[str]:
    """Check that the graph is valid JSON; return the names of its operators."""
    try:
        with open(path, encoding="utf-8") as file:
            return [node["op"] for node in json.load(file)["nodes"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} cannot be read: {cause_line(error)}; {SAVED_BY}") from error


def _labels(symbol: Any) -> Set[str]:
    nodes = json.loads(symbol.tojson())["nodes"]
    return {
        nodes[node["inputs"][1][0]]["name"]
        for node in nodes
        if node["op"] in _LOSSES and len(node["inputs"]) > 1
    }


def _dtypes(symbol: Any, args: Mapping[str, Any], names: Sequence[str]) -> Sequence[Any]:
    """Return the inputs' types, inferred from the parameters, or else their common type."""
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
