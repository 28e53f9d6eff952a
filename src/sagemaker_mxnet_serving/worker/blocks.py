"""Predicts with a Gluon block."""

import inspect
from collections import abc
from typing import Any, List, Sequence, Tuple

import mxnet
import numpy as np

from sagemaker_mxnet_serving.inference import InferenceError
from sagemaker_mxnet_serving.worker.decoding import Input


class BlockModel:
    """A ``gluon.Block`` that a script's ``model_fn`` returned.

    A block does not declare the shapes of its inputs, so requests of any shape are tried.

    Attributes:
        inputs: its inputs, of unknown shape, with the type of the block's parameters.
    """

    joins = True
    rows = "any number, in one batch"

    def __init__(self, block: Any, ctx: Any) -> None:
        self._block = block
        self._ctx = ctx
        self.inputs = block_inputs(block)

    def warm_up(self, joins: bool = False) -> None:
        """Do nothing: the shapes of the inputs are unknown."""

    def check_joins(self) -> bool:
        """Return True: users who enable batching know that rows of the block are independent."""
        return True

    def accepts(self, shapes: Sequence[Tuple[int, ...]]) -> bool:
        """Return True: the block raises an error for shapes that it does not support."""
        return True

    def run(self, arrays: Sequence[Any]) -> List[Any]:
        """Call the block.

        Args:
            arrays: one for each input; None for an optional one that is missing.

        Returns:
            Its outputs, with NumPy arrays.

        Raises:
            InferenceError: an operator of the block does not support the shape of its input.
        """
        try:
            outputs = _call(self._block, arrays, self._ctx)
        except mxnet.base.MXNetError as error:
            # Operators check shapes when they are called; later errors are raised by asnumpy.
            shapes = " and ".join(str(tuple(each.shape)) for each in arrays if each is not None)
            raise InferenceError(f"the model does not support inputs of shape {shapes}") from error
        found = _to_numpy(outputs)
        return found if isinstance(found, list) else [found]


def block_inputs(block: Any) -> List[Input]:
    """Return the inputs of a block: ``data``, or the parameters of its ``forward``."""
    dtype = block_dtype(block)
    if isinstance(block, mxnet.gluon.SymbolBlock):
        found = [Input(each.name, dtype) for each in block._cached_graph[0]]
    else:
        found = [
            Input(each.name, dtype, optional=each.default is not each.empty)
            for each in _parameters(block)
        ]
    required = [each for each in found if not each.optional]
    return found if len(required) > 1 else [Input("data", dtype)]


def _parameters(block: Any) -> Sequence[inspect.Parameter]:
    """Return the parameters of the block's function that receives the inputs."""
    own = {mxnet.gluon.Block.__call__, mxnet.gluon.HybridBlock.__call__}
    function, skipped = block.forward, 0
    if type(block).__call__ not in own:  # for example GluonNLP's models, gluon.rnn's layers
        function = block.__call__
    elif getattr(function, "__func__", None) is mxnet.gluon.HybridBlock.forward:
        function, skipped = block.hybrid_forward, 1  # F
    parameters = list(inspect.signature(function).parameters.values())[skipped:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    weights = getattr(block, "_reg_params", ())  # which a HybridBlock passes by name
    return [each for each in parameters if each.kind in positional and each.name not in weights]


def predict(block: Any, inputs: Sequence[Input], data: Any, ctx: Any) -> Any:
    """Call a block with the result of ``input_fn``.

    Args:
        block: the block.
        inputs: its inputs, by ``block_inputs``.
        data: an array; for a block with several inputs a list, a tuple, or a mapping by name; an
            iterator or a batch of these.
        ctx: the device that predicts.
    """
    if isinstance(data, mxnet.io.DataIter):
        data.reset()
        names = [each[0] for each in data.provide_data]
        return _joined(
            [
                _without_pad(predict(block, inputs, _named(inputs, batch.data, names), ctx), batch)
                for batch in data
            ]
        )
    if isinstance(data, mxnet.io.DataBatch):
        arrays = data.data[0] if len(data.data) == 1 else data.data
        return predict(block, inputs, arrays, ctx)
    if isinstance(data, abc.Iterator):
        data = list(data)
    if isinstance(data, abc.Mapping) and (len(inputs) > 1 or len(data) == 1):
        if len(inputs) == 1:
            return _call(block, list(data.values()), ctx)
        names = [each.name for each in inputs]
        required = {each.name for each in inputs if not each.optional}
        if not required <= set(data) <= set(names):
            raise ValueError(
                f"the block expects {', '.join(names)}, and input_fn returned {', '.join(data)}"
            )
        return _call(block, [data.get(name) for name in names], ctx)
    if isinstance(data, (list, tuple)) and len(inputs) > 1:
        return _call(block, data, ctx)
    return _call(block, [data], ctx)


def _named(inputs: Sequence[Input], arrays: Sequence[Any], names: Sequence[str]) -> Any:
    """Return the arrays of a batch by name if these are the names of the block's inputs."""
    if len(arrays) == 1:
        return arrays[0]
    known = {each.name for each in inputs}
    return dict(zip(names, arrays)) if known.issuperset(names) else list(arrays)


def _without_pad(outputs: Any, batch: Any) -> Any:
    if isinstance(outputs, (list, tuple)):
        return [_without_pad(each, batch) for each in outputs]
    return outputs[: len(outputs) - batch.pad] if batch.pad else outputs


def _joined(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], list):
        return [_joined(each) for each in zip(*parts)]
    return (
        mxnet.nd.concat(*parts, dim=0)
        if type(parts[0]) is mxnet.nd.NDArray
        else (mxnet.np.concatenate(parts))
    )


def _call(block: Any, arrays: Sequence[Any], ctx: Any) -> Any:
    positional = list(arrays)
    while positional and positional[-1] is None:
        positional.pop()
    return block(*(to_mxnet(each, ctx) for each in positional))


def _to_numpy(outputs: Any) -> Any:
    if isinstance(outputs, (list, tuple)):
        return [_to_numpy(each) for each in outputs]
    if isinstance(outputs, abc.Mapping):
        return {name: _to_numpy(each) for name, each in outputs.items()}
    return outputs.asnumpy() if hasattr(outputs, "asnumpy") else outputs


def block_dtype(block: Any) -> Any:
    """Return the common floating type of a block's parameters, or float32."""
    dtypes = {np.dtype(each.dtype) for each in block.collect_params().values()}
    floating = {dtype for dtype in dtypes if dtype.kind == "f"}
    return floating.pop() if len(floating) == 1 else np.dtype(np.float32)


def to_mxnet(array: Any, ctx: Any) -> Any:
    """Convert a NumPy array to MXNet: to an array of ``mx.np`` if ``npx.set_np`` was called.

    This applies to MXNet's arrays too. Other values are returned unchanged.
    """
    if isinstance(array, mxnet.nd.NDArray):
        return array.as_np_ndarray() if mxnet.util.is_np_array() else array
    if not isinstance(array, np.ndarray):
        return array
    if mxnet.util.is_np_array():
        return mxnet.np.array(array, dtype=array.dtype, ctx=ctx)
    result = mxnet.nd.empty(array.shape, ctx, dtype=array.dtype)
    result._sync_copyfrom(array)
    return result
