"""Answers requests without a function of the user's: bytes to arrays, a prediction, and back.

Requests that are there together are one prediction. Each gets its own rows, and one that cannot be
read, or whose rows the model refuses, gets its own error and harms no other.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple, Union

import numpy as np

from sagemaker_mxnet_serving.answers import failure, refusal
from sagemaker_mxnet_serving.blocks import BlockModel
from sagemaker_mxnet_serving.decoding import decode
from sagemaker_mxnet_serving.encoding import encode
from sagemaker_mxnet_serving.executors import Executors
from sagemaker_mxnet_serving.media_types import JSON, SUPPORTED, choose, parse_media_type
from sagemaker_mxnet_serving.messages import InferenceError, Request, Response

PREDICTION = "predict_fn (default)"
"""What a failing prediction is called."""


@dataclass(frozen=True)
class _Work:
    """A request that could be read: what it asks, and in which content type."""

    request: Request
    arrays: List[Any]
    accept: str

    @property
    def rows(self) -> int:
        return len(self.arrays[0])

    @property
    def kind(self) -> Tuple[Any, ...]:
        """Requests of one kind can be one batch."""
        return tuple((array.shape[1:], array.dtype) for array in self.arrays)


class ArrayHandler:
    """Answers requests with a model that takes arrays and returns arrays.

    Args:
        model: what predicts.
        accept: the content type of an answer whose request leaves the choice.
    """

    def __init__(self, model: Union[Executors, BlockModel], accept: str) -> None:
        self._model = model
        self._accept = accept
        self.inputs = model.inputs

    def handle(self, requests: Sequence[Request]) -> List[Response]:
        """Answer requests, in their order."""
        if len(requests) == 1:
            return [self._handle_one(requests[0])]
        answers: Dict[int, Response] = {}
        batches: Dict[Tuple[Any, ...], Dict[int, _Work]] = {}
        joins = self._joins()
        for index, request in enumerate(requests):
            work = self._read(request)
            if isinstance(work, Response):
                answers[index] = work
            else:
                key = work.kind if joins else (index,)
                batches.setdefault(key, {})[index] = work
        for batch in batches.values():
            answers.update(zip(batch, self._predict(list(batch.values()))))
        return [answers[index] for index in range(len(requests))]

    def _handle_one(self, request: Request) -> Response:
        work = self._read(request)
        return work if isinstance(work, Response) else self._predict_one(work)

    def _joins(self) -> bool:
        try:
            return self._model.check_joins()
        except Exception:  # what is wrong is told to the request that meets it
            return False

    def _read(self, request: Request) -> Union[_Work, Response]:
        """Read a request; return the answer to one that cannot be read."""
        try:
            accept = choose(request.accept, self._accept)
            if accept is None:
                raise InferenceError(
                    f"Accept {request.accept[:100]!r}: this model answers in "
                    f"{', '.join(SUPPORTED)}",
                    406,
                )
            media_type = parse_media_type(request.content_type)
            return _Work(request, decode(request.body, media_type, self._model.inputs), accept)
        except InferenceError as error:
            return refusal(error)
        except Exception as error:
            return failure(request, "input_fn (default)", error)

    def _predict(self, works: Sequence[_Work]) -> List[Response]:
        if len(works) == 1:
            return [self._predict_one(works[0])]
        try:
            joined = [np.concatenate(arrays) for arrays in zip(*(work.arrays for work in works))]
            outputs = self._model.run(joined)
            per_row = all(len(output) == len(joined[0]) for output in outputs)
        except Exception:
            per_row = False
        if not per_row:  # each on its own: the fault is told to whom it belongs
            return [self._predict_one(work) for work in works]
        answers, start = [], 0
        for work in works:
            rows = slice(start, start + work.rows)
            answers.append(_written(work, [output[rows] for output in outputs]))
            start += work.rows
        return answers

    def _predict_one(self, work: _Work) -> Response:
        try:
            outputs = self._model.run(work.arrays)
        except InferenceError as error:
            return refusal(error)
        except Exception as error:
            return failure(work.request, PREDICTION, error)
        return _written(work, outputs)


def _written(work: _Work, outputs: Sequence[Any]) -> Response:
    if len(outputs) > 1 and work.accept != JSON:
        text = f"Accept {work.accept}: a model of {len(outputs)} outputs answers in {JSON} only"
        return refusal(InferenceError(text, 406))
    try:
        return Response(200, encode(outputs, work.accept), work.accept)
    except Exception as error:
        return failure(work.request, "output_fn (default)", error)
