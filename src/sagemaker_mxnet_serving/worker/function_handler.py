"""Answers requests with the functions of the script, and defaults for missing ones.

As documented for SageMaker's MXNet containers, a ``Module`` predicts on an ``NDArrayIter``, and a
Gluon block or any other model on an ``NDArray``.
"""

import sys
from collections import abc
from typing import Any, List, Optional, Sequence, Set, Tuple

import mxnet
import numpy as np

from sagemaker_mxnet_serving.inference import (
    InferenceError,
    Request,
    Response,
    check_not_compressed,
    error_response,
)
from sagemaker_mxnet_serving.worker.blocks import block_inputs, predict, to_mxnet
from sagemaker_mxnet_serving.worker.context import Context
from sagemaker_mxnet_serving.worker.decoding import Input, decode, utf8
from sagemaker_mxnet_serving.worker.encoding import (
    encode,
    failure_response,
    to_json,
)
from sagemaker_mxnet_serving.worker.media_types import (
    JSON,
    SUPPORTED,
    TEXT,
    choose,
    parse_media_type,
    preferred,
)
from sagemaker_mxnet_serving.worker.saved_network import ServedModule, infer
from sagemaker_mxnet_serving.worker.script import Function, Script


class _Failed(Exception):
    """A function failed. The message is its name, and ``__cause__`` what it raised."""


class FunctionHandler:
    """Answers requests one by one.

    Args:
        script: the script's functions.
        model: the result of ``model_fn``.
        accept: the content type of a response if the request has no Accept.
        ctx: the device that predicts.
        model_dir: the directory of the model's files, for the context.
    """

    def __init__(self, script: Script, model: Any, accept: str, ctx: Any, model_dir: str) -> None:
        self._script = script
        self._model = model
        self._accept = accept
        self._ctx = ctx
        self._model_dir = model_dir
        bound = isinstance(model, mxnet.mod.BaseModule) and (
            model.binded or isinstance(model, ServedModule)
        )
        self._module = model if bound else None
        self._bound_as = list(model.data_shapes) if bound and model.binded else []
        self.inputs = self._describe_inputs()
        self._returned_none: Set[str] = set()

    def handle(self, requests: Sequence[Request]) -> List[Response]:
        """Return the responses to requests, in the same order."""
        return [self._handle(request) for request in requests]

    def _handle(self, request: Request) -> Response:
        context = Context(request, self._model_dir, self._ctx.device_type == "gpu")
        try:
            result = self._transform(request, context)
            return _response(result, context, preferred(request.accept, self._accept))
        except InferenceError as error:
            return error_response(error)
        except _Failed as error:
            self._restore()
            return failure_response(request, str(error), error.__cause__ or error)
        except Exception as error:  # for example a result that cannot be encoded
            name = "transform_fn" if self._script["transform_fn"] else "output_fn"
            return failure_response(request, f"encoding the result of {name}", error)

    def _transform(self, request: Request, context: Context) -> Any:
        accept = request.accept
        if not accept.strip() or accept.strip() == "*/*":
            accept = self._accept
        transform = self._script["transform_fn"]
        if transform is not None:
            arguments = (self._model, _body(request), request.content_type, accept)
            return self._call_script(transform, *arguments, context=context)
        read, predict = self._script["input_fn"], self._script["predict_fn"]
        write = self._script["output_fn"]
        if read is None:
            data = _call(Function("input_fn (default)", self._read), request)
        else:
            known = {"context": context, "model": self._model}
            data = self._call_script(read, _body(request), request.content_type, **known)
        if predict is None:
            prediction = _call(Function("predict_fn (default)", self._predict), data)
        else:
            prediction = self._call_script(predict, data, self._model, context=context)
        if write is None:
            return _write(prediction, accept, self._accept)
        return self._call_script(write, prediction, accept, context=context)

    def _call_script(self, function: Function, *arguments: Any, **known: Any) -> Any:
        """Call a function of the script; log once that it returns ``None``."""
        result = _call(function, *arguments, **known)
        if result is None and function.name not in self._returned_none:
            self._returned_none.add(function.name)
            text = f"{function.name} returned None; does it end without a return statement?"
            print(text, file=sys.stderr)
        return result

    def _read(self, request: Request) -> Any:
        check_not_compressed(request.headers)
        media_type = parse_media_type(request.content_type)
        arrays = decode(request.body, media_type, self.inputs, self._accepts)
        data = [to_mxnet(array, self._ctx) for array in arrays]
        if self._module is None:
            return data[0] if len(data) == 1 else data
        if isinstance(self._module, ServedModule):
            size = self._module.batch_size(len(arrays[0]))
        else:
            size = self._bound_as[0].shape[0]
        # By position, since NDArrayIter sorts the names of a dict. It does not pad mx.np arrays.
        data = [array.as_nd_ndarray() for array in data]
        return mxnet.io.NDArrayIter(data[0] if len(data) == 1 else data, batch_size=size)

    def _accepts(self, shapes: Sequence[Tuple[int, ...]]) -> bool:
        """Return whether a Module supports inputs of these shapes; True for other models."""
        module = self._module
        if isinstance(module, ServedModule):
            return module.accepts(shapes)
        if not isinstance(module, mxnet.mod.Module):
            return module is None
        rows = self._bound_as[0].shape[0]
        named = {name: (rows, *shape[1:]) for name, shape in zip(module.data_names, shapes)}
        args = {name: array.shape for name, array in module.get_params()[0].items()}
        return infer(module.symbol, {**args, **named}) is not None

    def _predict(self, data: Any) -> Any:
        if self._module is not None:
            return self._module.predict(data)
        if isinstance(self._model, mxnet.gluon.Block):
            return predict(self._model, self.inputs, data, self._ctx)
        return self._model(to_mxnet(data, self._ctx))

    def _describe_inputs(self) -> List[Input]:
        if isinstance(self._module, ServedModule):
            return list(self._module.network.inputs)
        if self._module is not None:
            return [
                Input(desc.name, np.dtype(desc.dtype), tuple(desc.shape[1:]))
                for desc in self._bound_as
            ]
        if isinstance(self._model, mxnet.gluon.Block):
            return block_inputs(self._model)
        return [Input("data", np.dtype(np.float32))]

    def _restore(self) -> None:
        """Bind a Module to its first shapes again: a failed prediction may have changed them."""
        module = self._module
        if isinstance(module, mxnet.mod.Module) and self._bound_as and not module.for_training:
            labels = module.label_shapes or None
            module.bind(self._bound_as, labels, for_training=False, force_rebind=True)


def _call(function: Function, *arguments: Any, **known: Any) -> Any:
    try:
        return function(*arguments, **known)
    except InferenceError:
        raise
    except Exception as error:
        converted = _convert_toolkit_error(error)
        if converted is not None:
            raise converted from error
        raise _Failed(function.name) from error


def _convert_toolkit_error(error: Exception) -> Optional[InferenceError]:
    """Return the ``InferenceError`` for an error of ``sagemaker_inference``; None for others."""
    errors = sys.modules.get("sagemaker_inference.errors")
    if errors is None:
        return None
    if isinstance(error, errors.UnsupportedFormatError):
        return InferenceError(" ".join(str(error).split()), 415)
    if not isinstance(error, errors.BaseInferenceToolkitError):
        return None
    converted = InferenceError(error.message)
    converted.status = error.status_code
    return converted


def _body(request: Request) -> Any:
    """Return the body for a function: text for JSON and CSV, otherwise a bytearray."""
    media_type = parse_media_type(request.content_type)
    if media_type.name not in TEXT:
        return request.body
    check_not_compressed(request.headers)
    try:
        return utf8(request.body, media_type).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InferenceError(
            f"the body is not valid UTF-8 at byte {error.start}; send {media_type.name} in UTF-8"
        ) from None


def _write(prediction: Any, accept: str, default: str) -> Tuple[bytes, str]:
    """Encode a prediction in a content type that the client accepts."""
    if isinstance(prediction, abc.Iterator):  # for example a generator of rows
        prediction = list(prediction)
    outputs = [_numbers(each) for each in _outputs(prediction)]
    numeric = outputs and all(output is not None for output in outputs)
    offered = SUPPORTED if numeric and len(outputs) == 1 else (JSON,)
    name = choose(accept, default, offered)
    return (encode(outputs, name) if numeric else to_json(prediction)), name


def _outputs(prediction: Any) -> Sequence[Any]:
    arrays = (mxnet.nd.NDArray, np.ndarray)
    several = isinstance(prediction, (list, tuple)) and bool(prediction)
    return (
        prediction if several and all(isinstance(e, arrays) for e in prediction) else [prediction]
    )


def _numbers(value: Any) -> Optional[Any]:
    if isinstance(value, mxnet.nd.NDArray):
        value = value.asnumpy()
    numeric = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    return value if numeric else None


def _response(result: Any, context: Context, accept: str) -> Response:
    """Return the response for the result of ``output_fn`` or ``transform_fn``.

    The result may be a pair of data and content type, as documented for SageMaker's MXNet
    containers; the type may be None. A status may follow, as in Flask. Any other tuple is data.

    Raises:
        InferenceError: the status or the content type is not valid.
    """
    status = 200
    if _has_content_type(result):
        result, given, *rest = result
        if given:
            try:
                context.set_response_content_type(0, given)
            except ValueError as error:
                raise InferenceError(f"the function's content type: {error}", 500) from None
        status = rest[0] if rest else status
        if not 200 <= status <= 599:
            text = f"the function returned the status {status}; expected 200 to 599"
            raise InferenceError(text, 500)
    if isinstance(result, abc.Iterator):  # a generator of the response
        result = list(result)
        for empty in ("", b""):
            if result and all(isinstance(each, type(empty)) for each in result):
                result = empty.join(result)
    if isinstance(result, str):
        body = result.encode("utf-8")
    elif isinstance(result, (bytes, bytearray, memoryview)):
        body = bytes(result)
    else:
        body, accept = to_json(result), JSON
    return Response(status, body, context.response_content_type or accept, context.response_headers)


def _has_content_type(result: Any) -> bool:
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        return False
    if type(result) is tuple and len(result) == 2:
        return result[1] is None or isinstance(result[1], str)
    # A namedtuple, or a tuple of three, may be data.
    status = result[2] if len(result) == 3 else 200
    named = isinstance(result[1], str) and "/" in result[1]
    return named and isinstance(status, int)
