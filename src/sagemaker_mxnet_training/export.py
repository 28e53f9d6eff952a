"""Exports a saved model to ONNX, and checks the result against MXNet before it counts.

MXNet is retired, and models outlive it. ``mxnet.onnx`` (1.9.1) does the conversion; what it writes
is run by ONNX Runtime on random inputs, and the file appears only where both agree. It needs the
extra ``onnx``: MXNet 1.9.1 imports ``onnx.mapping``, which onnx 1.19 no longer has.
"""

import json
import os
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Set, Tuple

from sagemaker_mxnet_toolkit import compatibility
from sagemaker_mxnet_toolkit.errors import JobError
from sagemaker_mxnet_toolkit.model_files import PARAMS, SHAPES, SYMBOL

TOLERANCE = 1e-5
"""Largest difference between an output of MXNet and of ONNX Runtime, relative above 1."""

_SEED = 5
_EXPECTED = f"expected {SYMBOL}, {PARAMS} and {SHAPES}, as training_utils.save writes them"


class ExportError(JobError):
    """The model cannot be exported, or the export does not compute what MXNet computes."""


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        path: the ONNX file.
        inputs: name and shape of each input; ``None`` for a batch of any size.
        difference: the largest difference seen between MXNet and ONNX Runtime, as ``TOLERANCE``.
        any_batch: whether the first dimension of the inputs is free.
    """

    path: str
    inputs: Tuple[Tuple[str, Tuple[Any, ...]], ...]
    difference: float
    any_batch: bool


def export(model_dir: str, path: str) -> Exported:
    """Export a model that ``training_utils.save`` wrote.

    The size of a batch stays free where the model allows it; otherwise it is the one that the
    model was saved with.

    Args:
        model_dir: the directory that holds the three files.
        path: the ONNX file to write. It is replaced as a whole, or not touched.

    Raises:
        ExportError: a file or a package is missing, MXNet cannot convert an operator, or the
            outputs differ by more than ``TOLERANCE``.
    """
    compatibility.install()
    inputs = _inputs(model_dir)
    _require_packages()
    partial = f"{path}.{os.getpid()}.partial"
    troubles = []
    try:
        for any_batch in (True, False):
            try:
                _convert(model_dir, inputs, partial, any_batch)
                difference = _check(model_dir, inputs, partial, any_batch)
            except ExportError as error:
                troubles.append(error)
                continue
            os.replace(partial, path)
            free = (None,) if any_batch else ()
            shapes = tuple((name, free + shape[len(free) :]) for name, shape in inputs.items())
            return Exported(path, shapes, difference, any_batch)
    except OSError as error:
        raise ExportError(
            f"{path} cannot be written: {error.strerror}; expected a path in a directory that "
            "exists, on a disk with space"
        ) from error
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
    raise troubles[-1]


def _inputs(model_dir: str) -> Dict[str, Tuple[int, ...]]:
    """Return the model's inputs and their shapes."""
    for name in (SYMBOL, PARAMS, SHAPES):
        if not os.path.isfile(os.path.join(model_dir, name)):
            raise ExportError(f"{os.path.join(model_dir, name)} does not exist; {_EXPECTED}")
    path = os.path.join(model_dir, SHAPES)
    try:
        with open(path, encoding="utf-8") as file:
            described = json.load(file)
        inputs = {str(each["name"]): tuple(map(int, each["shape"])) for each in described}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} cannot be read: {error!r}; {_EXPECTED}") from error
    unknown = [name for name, shape in inputs.items() if not shape]
    if unknown or not inputs:
        raise ExportError(
            f"{path} has no shape for {', '.join(unknown) or 'any input'}; import training_utils "
            "before the model first runs, and save it again"
        )
    return inputs


def _require_packages() -> None:
    try:
        import onnxruntime  # noqa: F401, PLC0415
        from onnx import mapping  # noqa: F401, PLC0415
    except ImportError as error:
        raise ExportError(
            f"{error}; expected onnx 1.13 to 1.18 and onnxruntime: "
            "pip install 'sagemaker-mxnet-training[onnx]'"
        ) from error


def _convert(
    model_dir: str, inputs: Mapping[str, Tuple[int, ...]], path: str, any_batch: bool
) -> None:
    import mxnet  # noqa: PLC0415
    import onnx  # noqa: PLC0415

    try:
        symbol, params = _load(mxnet, model_dir)
        dtype = _dtype(params)
        # A loss keeps its label in the graph: as a constant it is out of the way.
        shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(**inputs)[0]))
        labels = [name for name in shapes if name not in params and name not in inputs]
        params.update({name: mxnet.nd.zeros(shapes[name], dtype=dtype) for name in labels})
        given = [inputs[name] for name in symbol.list_arguments() if name in inputs]
        mxnet.onnx.export_model(
            symbol,
            params,
            given,
            [dtype] * len(given),
            path,
            dynamic=any_batch,
            dynamic_input_shapes=[("batch", *shape[1:]) for shape in given] if any_batch else None,
        )
    except OSError:
        raise
    except Exception as error:
        raise ExportError(
            f"MXNet cannot convert the model in {model_dir}: {type(error).__name__}: {error}; "
            "expected operators that mxnet.onnx (1.9.1) knows"
        ) from error
    model = onnx.load(path)
    # Parameters are no inputs: a runtime may then fold them into the graph.
    _keep(model.graph.input, set(inputs))
    _keep(model.graph.initializer, {name for node in model.graph.node for name in node.input})
    model.ir_version = max(model.ir_version, 4)  # from which on constants need not be inputs
    onnx.save(model, path)


def _keep(entries: Any, names: Set[str]) -> None:
    """Remove the entries of a repeated field of a graph that have other names."""
    kept = [entry for entry in entries if entry.name in names]
    del entries[:]
    entries.extend(kept)


def _load(mxnet: Any, model_dir: str) -> Tuple[Any, Dict[str, Any]]:
    """Return the graph, and the parameters by name."""
    symbol = mxnet.sym.load(os.path.join(model_dir, SYMBOL))
    params = mxnet.nd.load(os.path.join(model_dir, PARAMS)) or {}  # a list, where it has none
    return symbol, {name.partition(":")[2]: array for name, array in params.items()}


def _dtype(params: Mapping[str, Any]) -> Any:
    """Return the data type of a model: that of its parameters."""
    return next((array.dtype for array in params.values()), "float32")


def _check(
    model_dir: str, inputs: Mapping[str, Tuple[int, ...]], path: str, any_batch: bool
) -> float:
    """Return the largest difference between MXNet and ONNX Runtime on random inputs."""
    import mxnet  # noqa: PLC0415
    import numpy  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about speed
    largest = 0.0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for extra in (0, 1) if any_batch else (0,):
            shapes = {name: (shape[0] + extra, *shape[1:]) for name, shape in inputs.items()}
            data = _random(numpy, model_dir, shapes, _dtype(_load(mxnet, model_dir)[1]))
            expected = _predict(mxnet, model_dir, data)
            for ours, theirs in zip(expected, session.run(None, data)):
                if ours.shape != theirs.shape:
                    raise ExportError(f"an output has shape {theirs.shape}, in MXNet {ours.shape}")
                scale = numpy.maximum(1.0, numpy.abs(ours))
                # A NaN anywhere makes the difference NaN, which is no success either.
                largest = max(largest, float(numpy.max(numpy.abs(ours - theirs) / scale)))
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime cannot run the exported model: {type(error).__name__}: {error}"
        ) from error
    if not largest <= TOLERANCE:
        raise ExportError(
            f"the exported model computes something else: outputs differ by {largest:.2g}; "
            f"expected at most {TOLERANCE:g}; nothing was written"
        )
    return largest


def _random(
    numpy: Any, model_dir: str, shapes: Mapping[str, Sequence[int]], dtype: Any
) -> Dict[str, Any]:
    """Return random inputs: indices where an embedding reads them, else normally distributed."""
    with open(os.path.join(model_dir, SYMBOL), encoding="utf-8") as file:
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


def _predict(mxnet: Any, model_dir: str, data: Mapping[str, Any]) -> List[Any]:
    """Return the model's outputs in MXNet."""
    symbol, named = _load(mxnet, model_dir)
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
