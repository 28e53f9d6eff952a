"""Predicts with a Gluon block."""

from typing import Any, List, Sequence

import mxnet
import numpy as np

from sagemaker_mxnet_serving.messages import InferenceError
from sagemaker_mxnet_serving.signature import Input


class BlockModel:
    """A ``gluon.Block`` that a script's ``model_fn`` returned.

    A block does not say what it takes, so the shape of a request is found out by trying.

    Attributes:
        inputs: one input of unknown shape, in the type of the block's parameters.
    """

    joins = True
    rows = "any number, as they come"

    def __init__(self, block: Any, ctx: Any) -> None:
        self._block = block
        self._ctx = ctx
        self.inputs = [Input("data", block_dtype(block))]

    def warm_up(self, joins: bool = False) -> None:
        """Do nothing: what a block can be tried with is unknown."""

    def check_joins(self) -> bool:
        """Say that rows may be joined: whoever switches batching on says that of the block."""
        return True

    def run(self, arrays: Sequence[Any]) -> List[Any]:
        """Call the block.

        Raises:
            InferenceError: when an operator of the block refuses the shape of its input.
        """
        data = to_mxnet(arrays[0], self._ctx)
        try:
            outputs = self._block(data)
        except mxnet.base.MXNetError as error:
            # Shapes are checked as operators are called; what fails later does so in asnumpy.
            raise InferenceError(
                f"the model does not take an input of shape {tuple(data.shape)}"
            ) from error
        if not isinstance(outputs, (list, tuple)):
            outputs = [outputs]
        return [output.asnumpy() for output in outputs]


def block_dtype(block: Any) -> Any:
    """Return the type of a block's parameters, float32 unless all are of another."""
    dtypes = {np.dtype(each.dtype) for each in block.collect_params().values()}
    floating = {dtype for dtype in dtypes if dtype.kind == "f"}
    return floating.pop() if len(floating) == 1 else np.dtype(np.float32)


def to_mxnet(array: Any, ctx: Any) -> Any:
    """Make an MXNet array: one of ``mx.np`` where ``npx.set_np`` was called."""
    if mxnet.util.is_np_array():
        return mxnet.np.array(array, dtype=array.dtype, ctx=ctx)
    result = mxnet.nd.empty(array.shape, ctx, dtype=array.dtype)
    result._sync_copyfrom(array)
    return result
