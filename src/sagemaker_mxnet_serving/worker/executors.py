"""Predicts with a network that is bound once for each of a few batch sizes.

All executors share the parameters and, since only one runs at a time, the memory of intermediate
results. Rows are copied directly into the arrays that an executor reads. An executor never changes
after it was bound, so a request cannot affect the next one.
"""

import ctypes
import functools
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

import mxnet
import numpy as np
from mxnet.base import _LIB, check_call

from sagemaker_mxnet_serving.inference import InferenceError
from sagemaker_mxnet_serving.worker.decoding import Input
from sagemaker_mxnet_serving.worker.saved_network import Network

SIZES = (1, 2, 4, 8, 16, 32)
"""The batch sizes of a network that supports any number of rows."""

_MOST_PADDING = 0.25
"""The largest share of padding in a batch; with more, smaller batches are faster."""

_UNSPLIT_EXECUTORS = 4
"""Executors to keep, for different numbers of rows, of a network without one output per row."""

_UNSPLIT_ROWS = 1024
"""The most rows that such a network is bound for: an executor needs memory for each row."""

_CACHED_FORMS = 64
"""Shapes of rows whose ``_Form`` is cached."""

_Shapes = Tuple[Tuple[int, ...], ...]
"""The shape of each input, or of one row of each."""


@functools.lru_cache(maxsize=1024)
def split(rows: int, sizes: Tuple[int, ...]) -> Sequence[Tuple[int, int]]:
    """Split rows into batches: return the number of rows and the size of each.

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


@dataclass
class _Form:
    """Properties of the network for inputs of one shape.

    Attributes:
        per_row: whether each output has one row for each input row, independent of other rows.
        sizes: the batch sizes to which rows are padded and split.
        independent: whether a test run showed this independence; None before the test run.
    """

    per_row: bool
    sizes: Tuple[int, ...]
    independent: Optional[bool] = None


class Executors:
    """A network that predicts.

    Args:
        network: the network.
        only_first: whether to run only batches of the network's first dimension.

    Attributes:
        inputs: the network's inputs.
    """

    def __init__(self, network: Network, only_first: bool = False) -> None:
        self._network = network
        self._only_first = only_first
        self._bound: OrderedDict[_Shapes, _Bound] = OrderedDict()
        firsts = set(network.first.values())
        self._fixed = len(firsts) > 1
        self._first = firsts.pop() if len(firsts) == 1 else None
        self.inputs = [
            Input(e.name, e.dtype, e.row, network.first[e.name] if self._fixed else None)
            for e in network.inputs
        ]
        self._form = functools.lru_cache(maxsize=_CACHED_FORMS)(self._find_form)
        known = [each.row for each in self.inputs if each.row is not None]
        # The shapes of the rows that the model was saved with, if any.
        self._rows = tuple(known) if len(known) == len(self.inputs) else None

    @property
    def joins(self) -> bool:
        """Whether rows of several requests may be joined to a batch, as far as is known."""
        return self._rows is not None and self._form(self._rows).per_row

    def check_joins(self) -> bool:
        """Return whether rows of several requests may be joined; test it if necessary."""
        if self._rows is not None and self.joins:
            form = self._form(self._rows)
            self._check_independence(form, self._rows, max(form.sizes[0], 2))
        return self.joins

    @property
    def rows(self) -> str:
        """How rows are batched, for the description."""
        if self._rows is None:
            return "any number"
        form = self._form(self._rows)
        if not form.per_row:
            return "in one batch: the model does not have one output per row"
        return f"any number, in batches of {', '.join(map(str, form.sizes))}"

    def accepts(self, shapes: Sequence[Tuple[int, ...]]) -> bool:
        """Return whether the graph and the parameters support inputs of these shapes."""
        form = self._form(tuple(shape[1:] for shape in shapes))
        return form.per_row or self._infer(shapes) is not None

    def warm_up(self, joins: bool = False) -> None:
        """Predict zeros, unless the model was saved without shapes.

        Args:
            joins: whether to test here, and not at the first batch, if rows may be joined.
        """
        if self._rows is None:
            return
        form = self._form(self._rows)
        if not form.per_row:
            shapes = self._network.shapes().values()
            self._run_unsplit([np.zeros(s, each.dtype) for s, each in zip(shapes, self.inputs)])
            return
        self._run_bound(form, form.sizes[0], self._zeros(form.sizes[0], self._rows))
        if joins:
            self.check_joins()

    def run(self, arrays: Sequence[Any]) -> List[Any]:
        """Predict.

        Args:
            arrays: one for each input, of its type, all with the same number of rows.

        Returns:
            One NumPy array for each output.

        Raises:
            InferenceError: the network does not support these shapes.
        """
        rows = len(arrays[0])
        shapes = tuple([array.shape[1:] for array in arrays])
        form = self._form(shapes)
        batches = split(rows, form.sizes) if form.per_row else ()
        if batches and batches != ((rows, rows),):
            self._check_independence(form, shapes, batches[0][1])
        if not form.per_row:
            return self._run_unsplit(arrays)
        parts, start = [], 0
        for count, size in batches:
            piece = [array[start : start + count] for array in arrays]
            parts.append(self._run_bound(form, size, piece))
            start += count
        return parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts)]

    def _find_form(self, shapes: _Shapes) -> _Form:
        """Infer the form for rows of these shapes from the shapes of the outputs."""
        first = self._first
        any_size = not self._fixed and all(self._has_rows(n, shapes) for n in (1, 2, 3))
        per_row = any_size or (first is not None and self._has_rows(first, shapes))
        if first is not None and (self._only_first or not any_size):
            return _Form(per_row, (first,))
        return _Form(per_row, SIZES)

    def _has_rows(self, rows: int, shapes: _Shapes) -> bool:
        """Return whether the network supports this number of rows, and each output has as many."""
        inferred = self._infer([(rows, *shape) for shape in shapes])
        return inferred is not None and all(s[:1] == (rows,) for s in inferred[1])

    def _infer(self, shapes: Sequence[Tuple[int, ...]]) -> Optional[Any]:
        return self._network.infer({e.name: tuple(s) for e, s in zip(self.inputs, shapes)})

    def _run_unsplit(self, arrays: Sequence[Any]) -> List[Any]:
        shapes = [array.shape for array in arrays]
        own = list(self._network.shapes().values())
        free = self._fixed or (not self._only_first and len(arrays[0]) <= _UNSPLIT_ROWS)
        if shapes != own and not free:
            raise InferenceError(
                "the model does not have one output per row, so rows can be neither padded nor "
                f"split; expected inputs of shape {' and '.join(map(str, own))}"
            )
        return self._run_bound(None, len(arrays[0]), arrays)

    def _zeros(self, rows: int, shapes: _Shapes) -> List[Any]:
        return [np.zeros((rows, *shape), e.dtype) for shape, e in zip(shapes, self.inputs)]

    def _check_independence(self, form: _Form, shapes: _Shapes, size: int) -> None:
        """Test, once, whether the outputs of a row are independent of the other rows.

        The shapes do not show this: a softmax over the wrong axis, or a recurrent network whose
        first dimension is time, also has as many outputs as rows. The test runs the first row, and
        then the last row, with different other rows, and compares their outputs. The last row shows
        the dependence on earlier rows that a recurrent network has.

        The inputs are fractions, and then the numbers 0 and 1, because an embedding and an input of
        integers truncate fractions to 0.
        """
        if form.independent is not None:
            return
        if size not in form.sizes:  # rows that run one by one are independent
            return
        numbers = np.random.RandomState(0)
        zeros = self._zeros(size, shapes)
        fractions, others = (
            [numbers.uniform(size=each.shape).astype(each.dtype) for each in zeros]
            for _ in range(2)
        )
        indices = [numbers.randint(2, size=each.shape).astype(each.dtype) for each in zeros]
        flipped = [(each == 0).astype(each.dtype) for each in indices]
        form.independent = self._stands_alone(form, fractions, others) and self._stands_alone(
            form, indices, flipped
        )
        form.per_row = form.independent

    def _stands_alone(self, form: _Form, arrays: Sequence[Any], exchanged: Sequence[Any]) -> bool:
        """Return whether the outputs of a row stay the same if all other rows are replaced."""
        size = len(arrays[0])
        expected = self._run_bound(form, size, arrays)
        for row, others in ((0, slice(1, None)), (-1, slice(None, -1))):
            changed = [array.copy() for array in arrays]
            for array, replacement in zip(changed, exchanged):
                array[others] = replacement[others]
            for one, other in zip(expected, self._run_bound(form, size, changed)):
                # A GPU may sum in a different order.
                if not np.allclose(one[row], other[row], rtol=1e-4, atol=1e-6, equal_nan=True):
                    return False
        return True

    def _run_bound(self, form: Optional[_Form], rows: int, arrays: Sequence[Any]) -> List[Any]:
        """Run an executor for this number of rows; without a form, for the arrays as they are."""
        if form is None:
            key, kept = tuple([array.shape for array in arrays]), _UNSPLIT_EXECUTORS
        else:
            key, kept = tuple([(rows, *array.shape[1:]) for array in arrays]), len(SIZES) + 1
        try:
            return self._executor(key, kept).run(arrays)
        except mxnet.base.MXNetError:
            # An array keeps the error of the operator that failed to write it, and raises it again.
            self._bound.clear()
            raise

    def _executor(self, shapes: _Shapes, kept: int) -> "_Bound":
        bound = self._bound.get(shapes)
        if bound is None:
            shared = max(self._bound.values(), key=lambda each: each.volume, default=None)
            bound = self._bound[shapes] = _Bound(self._network, shapes, shared)
            while len(self._bound) > kept:
                self._bound.popitem(last=False)
        else:
            self._bound.move_to_end(shapes)
        return bound


class _Bound:
    """An executor of MXNet, and the arrays that it reads and writes.

    It calls MXNet's C functions, because ``Executor.forward`` creates new output arrays each time,
    and ``asnumpy`` asks for their shapes. This takes longer than a small network.
    """

    def __init__(self, network: Network, shapes: _Shapes, shared: Optional["_Bound"]) -> None:
        named_shapes = {each.name: shape for each, shape in zip(network.inputs, shapes)}
        inferred = network.infer(named_shapes)
        if inferred is None:
            raise InferenceError(f"the model does not support inputs of shape {named_shapes}")
        ctx = network.ctx
        self._shapes = shapes
        self._dtypes = [each.dtype for each in network.inputs]
        self._inputs = [
            mxnet.nd.zeros(shape, ctx, dtype=each.dtype)
            for each, shape in zip(network.inputs, shapes)
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
        """Predict at most as many rows as it is bound for."""
        rows, full = len(arrays[0]), True
        for target, shape, dtype, array in zip(self._inputs, self._shapes, self._dtypes, arrays):
            if array.shape[1:] != shape[1:] or len(array) > shape[0]:
                raise ValueError(f"an array of shape {array.shape} for an input of {shape}")
            # A slice is a view: the other rows keep their values, and their outputs are ignored.
            fits = shape == array.shape
            _write(target if fits else target[: len(array)], np.ascontiguousarray(array, dtype))
            full = full and fits
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
