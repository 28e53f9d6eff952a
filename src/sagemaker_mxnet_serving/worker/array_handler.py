"""Answers requests without functions of a script: decode, predict, encode.

The requests of a batch are one prediction. Each gets its own rows. A request that cannot be read,
or whose rows the model rejects, gets its own error and does not affect the others.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple, Union

import numpy as np

from sagemaker_mxnet_serving.inference import (
    InferenceError,
    Request,
    Response,
    check_not_compressed,
    error_response,
)
from sagemaker_mxnet_serving.worker.blocks import BlockModel
from sagemaker_mxnet_serving.worker.decoding import decode
from sagemaker_mxnet_serving.worker.encoding import (
    encode,
    failure_response,
    to_json,
)
from sagemaker_mxnet_serving.worker.executors import Executors
from sagemaker_mxnet_serving.worker.media_types import JSON, choose, parse_media_type

PREDICTION = "predict_fn (default)"
"""The name of the prediction in errors."""


@dataclass(frozen=True)
class _DecodedRequest:
    """A request whose body could be read, with the content type of its response."""

    request: Request
    arrays: List[Any]
    accept: str

    @property
    def rows(self) -> int:
        return len(self.arrays[0])

    @property
    def kind(self) -> Tuple[Any, ...]:
        """Shapes and types of its rows: requests that have the same can be one batch."""
        return tuple(None if a is None else (a.shape[1:], a.dtype) for a in self.arrays)


class ArrayHandler:
    """Answers requests with a model that takes arrays and returns arrays.

    Args:
        model: predicts.
        accept: the content type of a response if the request has no Accept.
    """

    def __init__(self, model: Union[Executors, BlockModel], accept: str) -> None:
        self._model = model
        self._accept = accept
        self.inputs = model.inputs

    def handle(self, requests: Sequence[Request]) -> List[Response]:
        """Return the responses to requests, in the same order."""
        if len(requests) == 1:
            return [self._handle_one(requests[0])]
        answers: Dict[int, Response] = {}
        batches: Dict[Tuple[Any, ...], Dict[int, _DecodedRequest]] = {}
        join = self._can_join()
        for index, request in enumerate(requests):
            decoded = self._read(request)
            if isinstance(decoded, Response):
                answers[index] = decoded
            else:
                key = decoded.kind if join else (index,)
                batches.setdefault(key, {})[index] = decoded
        for batch in batches.values():
            answers.update(zip(batch, self._predict(list(batch.values()))))
        return [answers[index] for index in range(len(requests))]

    def _handle_one(self, request: Request) -> Response:
        decoded = self._read(request)
        return decoded if isinstance(decoded, Response) else self._predict_one(decoded)

    def _can_join(self) -> bool:
        try:
            return self._model.check_joins()
        except Exception:  # the request that meets it reports it
            return False

    def _read(self, request: Request) -> Union[_DecodedRequest, Response]:
        """Decode a request; return the response to one that cannot be decoded."""
        try:
            accept = choose(request.accept, self._accept)
            check_not_compressed(request.headers)
            media_type = parse_media_type(request.content_type)
            arrays = decode(request.body, media_type, self._model.inputs, self._model.accepts)
            return _DecodedRequest(request, arrays, accept)
        except InferenceError as error:
            return error_response(error)
        except Exception as error:
            return failure_response(request, "input_fn (default)", error)

    def _predict(self, requests: Sequence[_DecodedRequest]) -> List[Response]:
        if len(requests) == 1:
            return [self._predict_one(requests[0])]
        try:
            columns = zip(*(decoded.arrays for decoded in requests))
            joined = [None if each[0] is None else np.concatenate(each) for each in columns]
            outputs = self._model.run(joined)
            total = sum(decoded.rows for decoded in requests)
            per_row = all(isinstance(e, np.ndarray) and len(e) == total for e in outputs)
        except Exception:
            per_row = False
        if not per_row:  # one by one, so that the right request gets the error
            return [self._predict_one(decoded) for decoded in requests]
        answers, start = [], 0
        for decoded in requests:
            rows = slice(start, start + decoded.rows)
            answers.append(_encoded(decoded, [output[rows] for output in outputs]))
            start += decoded.rows
        return answers

    def _predict_one(self, decoded: _DecodedRequest) -> Response:
        try:
            outputs = self._model.run(decoded.arrays)
        except InferenceError as error:
            return error_response(error)
        except Exception as error:
            return failure_response(decoded.request, PREDICTION, error)
        return _encoded(decoded, outputs)


def _encoded(decoded: _DecodedRequest, outputs: Sequence[Any]) -> Response:
    arrays = all(isinstance(each, np.ndarray) for each in outputs)
    if (len(outputs) > 1 or not arrays) and decoded.accept != JSON:
        text = f"Accept {decoded.accept}: {len(outputs)} outputs can be encoded in {JSON} only"
        return error_response(InferenceError(text, 406))
    try:
        if not arrays:  # a block may return nested lists, or nothing
            return Response(200, to_json(outputs if len(outputs) > 1 else outputs[0]), JSON)
        return Response(200, encode(outputs, decoded.accept), decoded.accept)
    except Exception as error:
        return failure_response(decoded.request, "output_fn (default)", error)
