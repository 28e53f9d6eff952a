"""One model, whose processes and workers are not there."""

import asyncio
from typing import Any, List, Tuple, Union

import pytest

from sagemaker_mxnet_serving import worker_frames
from sagemaker_mxnet_serving.front.dispatcher import Rejection
from sagemaker_mxnet_serving.front.http_request import HttpRequest
from sagemaker_mxnet_serving.front.metrics import Metrics
from sagemaker_mxnet_serving.front.served_model import ServedModel
from sagemaker_mxnet_serving.front.server_settings import ServerSettings
from sagemaker_mxnet_serving.front.worker_links import WorkerLink
from sagemaker_mxnet_serving.inference import Request, Response


def answer(request_id: str) -> worker_frames.Item:
    fields, _ = worker_frames.from_response(Request(request_id, b""), Response(200, b""))
    return fields, request_id.encode()


def test_response_to_another_request_is_rejected() -> None:
    results: List[Tuple[str, Union[Response, Rejection]]] = []

    async def run() -> None:
        nothing: Any = None
        model = ServedModel("m", "/none", ServerSettings(), {}, nothing, nothing, Metrics())
        link = WorkerLink(1, nothing, nothing)
        model.worker_ready(link, {})
        for name in (b"first", b"second"):
            scope = {
                "method": "POST",
                "raw_path": b"/invocations",
                "query_string": b"",
                "is_closing": lambda: False,
                "headers": [(b"x-request-id", name)],
            }
            request = HttpRequest(scope, nothing, nothing)
            request.on_result = lambda request, result: results.append((request.id, result))
            model.submit(request)
        for wrong in ([answer("second")], [answer("first"), answer("second")], []):
            with pytest.raises(worker_frames.FrameError):
                model.worker_answered(link, wrong)
        model.worker_answered(link, [answer("first")])
        model.worker_answered(link, [answer("second")])

    asyncio.run(run())
    found = [(name, result.body) for name, result in results if isinstance(result, Response)]
    assert found == [("first", b"first"), ("second", b"second")]
