"""Exports a saved model to ONNX, and compares the result with MXNet.

``mxnet.onnx`` (1.9.1) converts the model. ONNX Runtime runs it on random inputs, and the file is
only written if the outputs agree. This requires the extra ``onnx``: MXNet 1.9.1 imports
``onnx.mapping``, which onnx 1.19 has removed.
"""

import json
import os
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Set, Tuple

from sagemaker_mxnet_toolkit import compatibility, tracebacks
from sagemaker_mxnet_toolkit.atomic_files import replacing
from sagemaker_mxnet_toolkit.failure import JobError
from sagemaker_mxnet_toolkit.model_files import (
    SAVED_BY,
    ModelFiles,
    ModelFilesError,
    find,
    has_numpy_shapes,
)

TOLERANCE = 1e-5
"""Maximum difference between outputs of MXNet and ONNX Runtime, relative for values above 1."""

_SEED = 5
_SHAPES = 'expected a JSON list with an object for each input: {"name": "data", "shape": [1, 784]}'


class ExportError(JobError):
    """The model cannot be exported, or the exported model computes other outputs than MXNet."""


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        path: the ONNX file.
        inputs: name and shape of each input; ``None`` for a batch of any size.
        difference: the largest difference between outputs of MXNet and ONNX Runtime.
        any_batch: whether the batch size is dynamic.
    """

    path: str
    inputs: Tuple[Tuple[str, Tuple[Any, ...]], ...]
    difference: float
    any_batch: bool


def export(model_dir: str, path: str) -> Exported:
    """Export a saved model.

    The batch size is dynamic if the model supports this; otherwise it is that of the saved shapes.

    Args:
        model_dir: the directory with the model (see ``model_files.find``).
        path: the ONNX file to write, atomically.

    Raises:
        ExportError: a file or a package is missing, MXNet cannot convert an operator, or the
            outputs differ by more than ``TOLERANCE``.
    """
    compatibility.install()
    try:
        files = find(model_dir)
    except ModelFilesError as error:
        raise ExportError(str(error)) from None
    inputs = _inputs(files)
    if os.path.isdir(path):
        raise ExportError(f"{path} is a directory; expected a file, such as model.onnx")
    _require_packages()
    import mxnet

    with mxnet.util.np_shape(has_numpy_shapes(files.params)):
        return _export(files, inputs, path)


def _export(files: ModelFiles, inputs: Mapping[str, Tuple[int, ...]], path: str) -> Exported:
    try:
        with replacing(path, flush=False) as (partial,):
            any_batch = True
            try:
                difference = _convert_and_check(files, inputs, partial, any_batch)
            except ExportError:
                any_batch = False
                difference = _convert_and_check(files, inputs, partial, any_batch)
    except OSError as error:
        raise ExportError(
            f"{path} cannot be written: {error.strerror}; expected a path in an existing "
            "directory, on a disk with enough space"
        ) from error
    free = (None,) if any_batch else ()
    shapes = tuple((name, free + shape[len(free) :]) for name, shape in inputs.items())
    return Exported(path, shapes, difference, any_batch)


def _inputs(files: ModelFiles) -> Dict[str, Tuple[int, ...]]:
    """Return the model's inputs and their shapes."""
    path = files.shapes
    if path is None:
        raise ExportError(
            f"{files.prefix}-shapes.json does not exist, so the shapes of the inputs are unknown; "
            f"{_SHAPES}, as training_utils.save writes it"
        )
    try:
        with open(path, encoding="utf-8") as file:
            described = json.load(file)
        inputs = {str(each["name"]): tuple(map(int, each["shape"])) for each in described}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} cannot be read: {error!r}; {_SHAPES}") from error
    unknown = [name for name, shape in inputs.items() if not shape]
    if unknown or not inputs:
        raise ExportError(
            f"{path} has no shape for {', '.join(unknown) or 'any input'}; add it to the file, or "
            "import training_utils before the model first runs, and save the model again"
        )
    return inputs


def _require_packages() -> None:
    try:
        import onnxruntime  # noqa: F401
        from onnx import mapping  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"{error}; expected onnx 1.13 to 1.18 and onnxruntime: "
            "pip install 'sagemaker-mxnet-training[onnx]'"
        ) from error


def _convert_and_check(
    files: ModelFiles, inputs: Mapping[str, Tuple[int, ...]], path: str, any_batch: bool
) -> float:
    _convert(files, inputs, path, any_batch)
    return _check(files, inputs, path, any_batch)


def _convert(
    files: ModelFiles, inputs: Mapping[str, Tuple[int, ...]], path: str, any_batch: bool
) -> None:
    import mxnet
    import onnx

    try:
        symbol, params = _load(mxnet, files)
        dtype = _dtype(params)
        # A loss layer has a label as input, which becomes a constant.
        shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(**inputs)[0]))
        labels = [name for name in shapes if name not in params and name not in inputs]
        params.update({name: mxnet.nd.zeros(shapes[name], dtype=dtype) for name in labels})
        input_shapes = [inputs[name] for name in symbol.list_arguments() if name in inputs]
        dynamic_shapes = [("batch", *shape[1:]) for shape in input_shapes]
        mxnet.onnx.export_model(
            symbol,
            params,
            input_shapes,
            [dtype] * len(input_shapes),
            path,
            dynamic=any_batch,
            dynamic_input_shapes=dynamic_shapes if any_batch else None,
        )
    except (OSError, ExportError):
        raise
    except Exception as error:
        raise ExportError(
            f"MXNet cannot convert the model {files.symbol}: {_reason(mxnet, error)}; "
            "expected operators that mxnet.onnx (1.9.1) supports"
        ) from error
    model = onnx.load(path)
    # Parameters that are not inputs can be folded into the graph.
    _keep(model.graph.input, set(inputs))
    _keep(model.graph.initializer, {name for node in model.graph.node for name in node.input})
    model.ir_version = max(model.ir_version, 4)  # older versions require constants to be inputs
    onnx.save(model, path)


def _keep(entries: Any, names: Set[str]) -> None:
    """Remove entries of a repeated field, except those with the given names."""
    kept = [entry for entry in entries if entry.name in names]
    del entries[:]
    entries.extend(kept)


def _load(mxnet: Any, files: ModelFiles) -> Tuple[Any, Dict[str, Any]]:
    """Return the graph, and the parameters by name."""
    try:
        symbol = mxnet.sym.load(files.symbol)
        params = mxnet.nd.load(files.params) or {}  # an empty list if there are no parameters
    except mxnet.base.MXNetError as error:
        raise ExportError(
            f"{files.symbol} and {os.path.basename(files.params)} cannot be read: "
            f"{tracebacks.cause_line(error)}; {SAVED_BY}; one of them may be truncated"
        ) from error
    return symbol, {name.partition(":")[2]: array for name, array in params.items()}


def _dtype(params: Mapping[str, Any]) -> Any:
    """Return the data type of a model's parameters."""
    return next((array.dtype for array in params.values()), "float32")


def _check(
    files: ModelFiles, inputs: Mapping[str, Tuple[int, ...]], path: str, any_batch: bool
) -> float:
    """Return the largest difference between MXNet and ONNX Runtime on random inputs."""
    import mxnet
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; the warnings are about speed
    largest = 0.0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for extra in (0, 1) if any_batch else (0,):
            shapes = {name: (shape[0] + extra, *shape[1:]) for name, shape in inputs.items()}
            data = _random(numpy, files, shapes, _dtype(_load(mxnet, files)[1]))
            expected = _predict(mxnet, files, data)
            for ours, theirs in zip(expected, session.run(None, data)):
                if ours.shape != theirs.shape:
                    raise ExportError(f"an output has shape {theirs.shape}, in MXNet {ours.shape}")
                largest = max(largest, _difference(numpy, ours, theirs))
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime cannot run the exported model: {tracebacks.summary(error)}; expected "
            "operators and types that it supports on a CPU: try another version of onnxruntime"
        ) from error
    if not largest <= TOLERANCE:
        raise ExportError(
            f"the exported model computes other outputs than MXNet: they differ by {largest:.2g}, "
            f"expected at most {TOLERANCE:g}; nothing was written"
        )
    return largest


def _difference(numpy: Any, ours: Any, theirs: Any) -> float:
    """Return the largest relative difference of finite numbers; infinity if others differ."""
    finite = numpy.isfinite(ours)
    if ours.size and not finite.any():
        raise ExportError(
            "the outputs of the model are NaN or infinite on random inputs, in MXNet too, so they "
            "cannot be compared; check the parameters; nothing was written"
        )
    if (finite != numpy.isfinite(theirs)).any():
        return float("inf")
    ours, theirs = ours[finite], theirs[finite]
    scale = numpy.maximum(1.0, numpy.abs(ours))
    return float(numpy.max(numpy.abs(ours - theirs) / scale, initial=0.0))


def _random(
    numpy: Any, files: ModelFiles, shapes: Mapping[str, Sequence[int]], dtype: Any
) -> Dict[str, Any]:
    """Return random inputs: indices for an embedding, else normally distributed numbers."""
    with open(files.symbol, encoding="utf-8") as file:
        nodes = json.load(file)["nodes"]
    indices = {
        nodes[node["inputs"][0][0]]["name"]: int(node["attrs"]["input_dim"])
        for node in nodes
        if node["op"] == "Embedding"
    }
    random = numpy.random.RandomState(_SEED)
    return {
        name: (
            random.randint(0, indices[name], shape)
            if name in indices
            else random.standard_normal(shape)
        ).astype(dtype)
        for name, shape in shapes.items()
    }


def _predict(mxnet: Any, files: ModelFiles, data: Mapping[str, Any]) -> List[Any]:
    """Return the model's outputs in MXNet.

    Raises:
        ExportError: MXNet cannot run it on a CPU.
    """
    try:
        return _run(mxnet, files, data)
    except mxnet.base.MXNetError as error:
        expected = "expected a model that runs on a CPU with inputs of the shapes that it has saved"
        if any(array.dtype == "float16" for array in data.values()):
            expected = (
                "MXNet runs most float16 operators on GPUs only, and export compares outputs on a "
                'CPU: call net.cast("float32") and net(batch), and save the model again'
            )
        raise ExportError(
            f"MXNet cannot run the model {files.symbol}: {_reason(mxnet, error)}; {expected}"
        ) from error


def _reason(mxnet: Any, error: Exception) -> str:
    """Return an error in one line, without the C++ stack of an error of MXNet."""
    if isinstance(error, mxnet.base.MXNetError):
        return tracebacks.cause_line(error).rstrip(".")
    return tracebacks.summary(error)


def _run(mxnet: Any, files: ModelFiles, data: Mapping[str, Any]) -> List[Any]:
    symbol, named = _load(mxnet, files)
    types = {name: array.dtype for name, array in {**named, **data}.items()}
    executor = symbol.simple_bind(
        mxnet.cpu(),
        grad_req="null",
        type_dict={name: types[name] for name in symbol.list_arguments() if name in types},
        **{name: array.shape for name, array in data.items()},
    )
    executor.copy_params_from(
        {name: named[name] for name in symbol.list_arguments() if name in named},
        {name: named[name] for name in symbol.list_auxiliary_states()},
    )
    outputs = executor.forward(
        is_train=False, **{name: mxnet.nd.array(x, dtype=x.dtype) for name, x in data.items()}
    )
    return [output.asnumpy() for output in outputs]
