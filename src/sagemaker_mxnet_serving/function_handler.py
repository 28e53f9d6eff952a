"""Answers requests with the functions of the user's script, and defaults for those it lacks.

The functions get what the documents of SageMaker's MXNet containers say: a ``Module`` predicts on
an ``NDArrayIter``, a Gluon block, or anything else, on an ``NDArray``.
"""

from typing import Any, List, Optional, Sequence, Tuple

import mxnet
import numpy as np

from sagemaker_mxnet_serving.answers import failure, refusal
from sagemaker_mxnet_serving.blocks import block_dtype, to_mxnet
from sagemaker_mxnet_serving.context import Context
from sagemaker_mxnet_serving.decoding import decode, utf8
from sagemaker_mxnet_serving.encoding import encode, to_json
from sagemaker_mxnet_serving.media_types import (
    JSON,
    SUPPORTED,
    TEXT,
    choose,
    parse_media_type,
    preferred,
)
from sagemaker_mxnet_serving.messages import InferenceError, Request, Response
from sagemaker_mxnet_serving.script import Function, Script
from sagemaker_mxnet_serving.signature import Input


class _Failed(Exception):
    """A function failed: carries its name, and what it raised as the cause."""


class FunctionHandler:
    """Answers requests one by one.

    Args:
        script: the user's functions.
        model: what ``model_fn`` returned.
        accept: the content type of an answer whose request leaves the choice.
        ctx: the device that predicts.
        model_dir: where the model's files are, for the context.
    """

    def __init__(self, script: Script, model: Any, accept: str, ctx: Any, model_dir: str) -> None:
        self._script = script
        self._model = model
        self._accept = accept
        self._ctx = ctx
        self._model_dir = model_dir
        bound = isinstance(model, mxnet.mod.BaseModule) and model.binded
        self._module = model if bound else None
        self._bound_as = list(self._module.data_shapes) if self._module is not None else []
        self.inputs = self._describe_inputs()

    def handle(self, requests: Sequence[Request]) -> List[Response]:
        """Answer requests, in their order."""
        return [self._handle(request) for request in requests]

    def _handle(self, request: Request) -> Response:
        context = Context(request, self._model_dir, self._ctx.device_type == "gpu")
        try:
            result = self._transform(request, context)
            return _response(result, context, preferred(request.accept, self._accept))
        except InferenceError as error:
            return refusal(error)
        except _Failed as error:
            self._restore()
            return failure(request, str(error), error.__cause__ or error)
        except Exception as error:  # such as a result that cannot be written
            name = "transform_fn" if self._script["transform_fn"] else "output_fn"
            return failure(request, f"writing the result of {name}", error)

    def _transform(self, request: Request, context: Context) -> Any:
        accept = request.accept
        if not accept.strip() or accept.strip() == "*/*":
            accept = self._accept
        transform = self._script["transform_fn"]
        if transform is not None:
            arguments = (self._model, _body(request), request.content_type, accept)
            return _call(transform, *arguments, context=context)
        read, predict = self._script["input_fn"], self._script["predict_fn"]
        write = self._script["output_fn"]
        if read is None:
            data = _call(Function("input_fn (default)", self._read), request)
        else:
            known = {"context": context, "model": self._model}
            data = _call(read, _body(request), request.content_type, **known)
        if predict is None:
            prediction = _call(Function("predict_fn (default)", self._predict), data)
        else:
            prediction = _call(predict, data, self._model, context=context)
        if write is None:
            return _write(prediction, accept, self._accept)
        return _call(write, prediction, accept, context=context)

    def _read(self, request: Request) -> Any:
        arrays = decode(request.body, parse_media_type(request.content_type), self.inputs)
        data = [to_mxnet(array, self._ctx) for array in arrays]
        if self._module is None:
            return data[0]
        # By position: NDArrayIter would sort the names of a dict.
        size = self._bound_as[0].shape[0]
        return mxnet.io.NDArrayIter(data[0] if len(data) == 1 else data, batch_size=size)

    def _predict(self, data: Any) -> Any:
        if self._module is not None:
            return self._module.predict(data)
        if isinstance(data, np.ndarray):
            data = to_mxnet(data, self._ctx)
        return self._model(data)

    def _describe_inputs(self) -> List[Input]:
        if self._module is not None:
            return [
                Input(desc.name, np.dtype(desc.dtype), tuple(desc.shape[1:]))
                for desc in self._bound_as
            ]
        if isinstance(self._model, mxnet.gluon.Block):
            return [Input("data", block_dtype(self._model))]
        return [Input("data", np.dtype(np.float32))]

    def _restore(self) -> None:
        """Bind a Module as it was: one that failed in between stays in a shape of its own."""
        module = self._module
        if isinstance(module, mxnet.mod.Module) and not module.for_training:
            labels = module.label_shapes or None
            module.bind(self._bound_as, labels, for_training=False, force_rebind=True)


def _call(function: Function, *arguments: Any, **known: Any) -> Any:
    try:
        return function(*arguments, **known)
    except InferenceError:
        raise
    except Exception as error:
        raise _Failed(function.name) from error


def _body(request: Request) -> Any:
    """Return the body as a function gets it: text for JSON and CSV, bytes otherwise."""
    media_type = parse_media_type(request.content_type)
    if media_type.name not in TEXT:
        return request.body
    try:
        return utf8(request.body, media_type).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InferenceError(
            f"the body is not UTF-8 (at byte {error.start}); expected text for {media_type.name}"
        ) from None


def _write(prediction: Any, accept: str, default: str) -> Tuple[bytes, str]:
    """Write what a prediction returned in a content type that the caller accepts."""
    outputs = [_numbers(each) for each in _outputs(prediction)]
    numeric = outputs and all(output is not None for output in outputs)
    offered = SUPPORTED if numeric and len(outputs) == 1 else (JSON,)
    name = choose(accept, default, offered)
    if name is None:
        text = f"Accept {accept[:100]!r}: this prediction can be answered in {', '.join(offered)}"
        raise InferenceError(text, 406)
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
    """Make an answer of what ``output_fn`` or ``transform_fn`` returned."""
    content_type = context.response_content_type
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str):
        result, content_type = result
    if isinstance(result, str):
        body = result.encode("utf-8")
    elif isinstance(result, (bytes, bytearray, memoryview)):
        body = bytes(result)
    else:
        body, accept = to_json(result), JSON
    return Response(200, body, content_type or accept, context.response_headers)
