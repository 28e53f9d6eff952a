"""Predicts with a network that is bound once for each of a few batch sizes.

All of them share the parameters and, since only one runs at a time, the memory of intermediate
results. Rows go straight into the memory that an executor reads. Nothing about an executor changes
after it was bound: a request cannot change what the next one gets.
"""

import ctypes
import functools
from collections import OrderedDict
from typing import Any, List, Optional, Sequence, Tuple

import mxnet
import numpy as np
from mxnet.base import _LIB, check_call

from sagemaker_mxnet_serving.messages import InferenceError
from sagemaker_mxnet_serving.network import Network
from sagemaker_mxnet_serving.signature import Input

SIZES = (1, 2, 4, 8, 16, 32)
"""The batch sizes of a network that can take any number of rows."""

_MOST_PADDING = 0.25
"""The share of a batch that may be padding; for more than that smaller batches cost less."""

_BOUND_WHOLE = 4
"""Executors of a network whose outputs are not one per row, kept for different numbers of rows."""

_LARGEST_WHOLE = 1024
"""Rows that such a network is bound for at most: an executor needs memory for each."""


@functools.lru_cache(maxsize=1024)
def split(rows: int, sizes: Tuple[int, ...]) -> Sequence[Tuple[int, int]]:
    """Split rows into batches: how many rows each holds, and its size, which is never less.

    >>> split(7, (1, 2, 4, 8)), split(5, (1, 2, 4, 8)), split(9, (4,))
    (((7, 8),), ((4, 4), (1, 1)), ((4, 4), (4, 4), (1, 4)))
    """
    batches: List[Tuple[int, int]] = []
    while rows:
        fitting = [size for size in sizes if size >= rows]
        smaller = [size for size in sizes if size <= rows]
        if fitting and (not smaller or 1 - rows / min(fitting) <= _MOST_PADDING):
            batches.append((rows, min(fitting)))
            break
        batches.append((max(smaller), max(smaller)))
        rows -= max(smaller)
    return tuple(batches)


class Executors:
    """A network that predicts.

    Args:
        network: what is predicted with.
        only_first: whether to run batches of the network's first dimension and no others.

    Attributes:
        inputs: what it takes.
        per_row: whether each row of an input has its row in each output, whatever the other rows
            are. If not, a request is predicted as it is, without padding, splitting or company.
        sizes: the batch sizes that rows are padded and split to.
    """

    def __init__(self, network: Network, only_first: bool = False) -> None:
        self._network = network
        self._only_first = only_first
        self._bound: OrderedDict[Optional[int], _Bound] = OrderedDict()
        self._independent: Optional[bool] = None
        firsts = set(network.first.values())
        self._first = firsts.pop() if len(firsts) == 1 else None
        fixed = {} if self._first is not None else network.first
        self.inputs = [Input(e.name, e.dtype, e.row, fixed.get(e.name)) for e in network.inputs]
        any_size = self._first is not None and all(map(self._has_rows, (1, 2, 3)))
        self.per_row = any_size or (self._first is not None and self._has_rows(self._first))
        self.sizes: Tuple[int, ...] = SIZES
        if self._first is not None and (only_first or not any_size):
            self.sizes = (self._first,)

    @property
    def joins(self) -> bool:
        """Whether rows of several requests may be one batch, as far as is known."""
        return self.per_row

    def check_joins(self) -> bool:
        """Find out whether they may, unless that is known."""
        if self.per_row:
            self._check_independence(max(self.sizes[0], 2))
        return self.per_row

    @property
    def rows(self) -> str:
        """How rows become batches, in words."""
        if not self.per_row:
            return "predicted as they come: outputs do not belong to rows"
        return f"any number, in batches of {', '.join(map(str, self.sizes))}"

    def warm_up(self, joins: bool = False) -> None:
        """Predict zeros.

        Args:
            joins: whether rows of several requests are to be one batch: then it is found out here
                and not at the first such batch whether they may.
        """
        size = self.sizes[0]
        if not self.per_row:
            self._run_whole([np.zeros(shape, each.dtype) for shape, each in self._own()])
            return
        self._run_bound(size, self._zeros(size))
        if joins:
            self.check_joins()

    def run(self, arrays: Sequence[Any]) -> List[Any]:
        """Predict.

        Args:
            arrays: one for each input, of its type and shape, all with the same number of rows.

        Returns:
            One NumPy array for each output.

        Raises:
            InferenceError: when the network cannot take this number of rows.
        """
        rows = len(arrays[0])
        batches = split(rows, self.sizes) if self.per_row else ()
        if batches and batches != ((rows, rows),):
            self._check_independence(batches[0][1])
        if not self.per_row:
            return self._run_whole(arrays)
        parts, start = [], 0
        for count, size in batches:
            piece = [array[start : start + count] for array in arrays]
            parts.append(self._run_bound(size, piece))
            start += count
        return parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts)]

    def _run_whole(self, arrays: Sequence[Any]) -> List[Any]:
        rows = len(arrays[0])
        own = [shape for shape, _ in self._own()]
        if [array.shape for array in arrays] == own:
            return self._run_bound(None, arrays)
        if self._first is not None and not self._only_first and rows <= _LARGEST_WHOLE:
            return self._run_bound(rows, arrays)
        raise InferenceError(
            "the outputs of this model do not belong to rows of its input, so rows are neither "
            f"added nor split: expected {' and '.join(map(str, own))}"
        )

    def _own(self) -> List[Tuple[Tuple[int, ...], Input]]:
        return list(zip(self._network.shapes().values(), self.inputs))

    def _zeros(self, rows: int) -> List[Any]:
        return [np.zeros((rows, *(each.row or ())), each.dtype) for each in self.inputs]

    def _has_rows(self, rows: int) -> bool:
        """Tell whether the network can be bound for some rows, and each output has as many."""
        inferred = self._network.infer(rows)
        return inferred is not None and all(s[:1] == (rows,) for s in inferred[1])

    def _check_independence(self, size: int) -> None:
        """Find out, once, whether a row's outputs are the same whatever rows are beside it.

        Shapes do not tell: a softmax over the wrong axis, or a recurrent network whose first
        dimension is time, has as many outputs as rows. The first row runs beside other rows, then
        the last one does, which a recurrent network tells from the rows before it. In the same
        executor, a row that does not depend on others has the same outputs.

        They do so with fractions, and with the numbers 0 and 1: an embedding, and an input of
        integers, take every fraction for a 0.
        """
        if self._independent is not None:
            return
        if size not in self.sizes:  # rows that run one by one have nothing beside them
            return
        numbers = np.random.RandomState(0)
        zeros = self._zeros(size)
        fractions, others = (
            [numbers.uniform(size=each.shape).astype(each.dtype) for each in zeros]
            for _ in range(2)
        )
        indices = [numbers.randint(2, size=each.shape).astype(each.dtype) for each in zeros]
        flipped = [(each == 0).astype(each.dtype) for each in indices]
        self._independent = self._stands_alone(fractions, others) and self._stands_alone(
            indices, flipped
        )
        self.per_row = self._independent

    def _stands_alone(self, arrays: Sequence[Any], exchanged: Sequence[Any]) -> bool:
        """Tell whether a row's outputs stay what they are when all other rows are exchanged."""
        size = len(arrays[0])
        expected = self._run_bound(size, arrays)
        for row, others in ((0, slice(1, None)), (-1, slice(None, -1))):
            changed = [array.copy() for array in arrays]
            for array, replacement in zip(changed, exchanged):
                array[others] = replacement[others]
            for one, other in zip(expected, self._run_bound(size, changed)):
                # A GPU may add in another order.
                if not np.allclose(one[row], other[row], rtol=1e-4, atol=1e-6, equal_nan=True):
                    return False
        return True

    def _run_bound(self, rows: Optional[int], arrays: Sequence[Any]) -> List[Any]:
        try:
            return self._executor(rows).run(arrays)
        except mxnet.base.MXNetError:
            # An array that an operator failed to write keeps the error, and raises it again.
            self._bound.clear()
            raise

    def _executor(self, rows: Optional[int]) -> "_Bound":
        """Return the executor for so many rows; None for the network's own shapes."""
        if rows is not None and rows == self._first:
            rows = None
        bound = self._bound.get(rows)
        if bound is None:
            shared = max(self._bound.values(), key=lambda each: each.volume, default=None)
            bound = self._bound[rows] = _Bound(self._network, rows, shared)
            limit = len(SIZES) + 1 if self.per_row else _BOUND_WHOLE
            while len(self._bound) > limit:
                self._bound.popitem(last=False)
        else:
            self._bound.move_to_end(rows)
        return bound


class _Bound:
    """An executor of MXNet with the arrays it reads and writes.

    It runs by MXNet's C functions: ``Executor.forward`` makes its outputs anew each time, and
    ``asnumpy`` asks for their shapes, which takes longer than a small network does.
    """

    def __init__(self, network: Network, rows: Optional[int], shared: Optional["_Bound"]) -> None:
        shapes = network.shapes(rows)
        inferred = network.infer(rows)
        if inferred is None:
            raise InferenceError(f"the model cannot take inputs of {shapes}")
        ctx = network.ctx
        self._shapes = [shapes[each.name] for each in network.inputs]
        self._dtypes = [each.dtype for each in network.inputs]
        self._inputs = [
            mxnet.nd.zeros(shapes[each.name], ctx, dtype=each.dtype) for each in network.inputs
        ]
        labels = {name: mxnet.nd.zeros(shape, ctx) for name, shape in inferred[0].items()}
        named = {each.name: array for each, array in zip(network.inputs, self._inputs)}
        self._executor: Any = network.symbol.bind(
            ctx,
            args={**network.args, **named, **labels},
            aux_states=dict(network.auxs),
            grad_req="null",
            shared_exec=None if shared is None else shared._executor,
        )
        self._outputs = [
            (output, output.shape, output.dtype) for output in self._executor._get_outputs()
        ]
        self.volume = sum(array.size for array in self._inputs)

    def run(self, arrays: Sequence[Any]) -> List[Any]:
        """Predict rows, at most as many as it is bound for."""
        rows, full = len(arrays[0]), True
        for target, shape, dtype, array in zip(self._inputs, self._shapes, self._dtypes, arrays):
            if array.shape[1:] != shape[1:] or len(array) > shape[0]:
                raise ValueError(f"an array of shape {array.shape} for an input of {shape}")
            # A slice is a view: rows beyond stay what they were, and nobody reads their outputs.
            whole = shape == array.shape
            _write(target if whole else target[: len(array)], np.ascontiguousarray(array, dtype))
            full = full and whole
        check_call(_LIB.MXExecutorForward(self._executor.handle, ctypes.c_int(0)))
        outputs = [_read(*output) for output in self._outputs]
        return outputs if full else [output[:rows] for output in outputs]


def _write(target: Any, array: Any) -> None:
    check_call(_LIB.MXNDArraySyncCopyFromCPU(target.handle, _address(array), _size(array)))


def _read(source: Any, shape: Tuple[int, ...], dtype: Any) -> Any:
    array = np.empty(shape, dtype)
    check_call(_LIB.MXNDArraySyncCopyToCPU(source.handle, _address(array), _size(array)))
    return array


def _address(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.__array_interface__["data"][0])


def _size(array: Any) -> ctypes.c_size_t:
    return ctypes.c_size_t(array.size)
