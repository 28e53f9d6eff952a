"""The contract: which request gets which answer, and what is said of it elsewhere."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Iterator, List, Tuple

import pytest

from sagemaker_mxnet_serving import frames
from sagemaker_mxnet_serving.application import Application
from sagemaker_mxnet_serving.configuration import ServerSettings
from sagemaker_mxnet_serving.http_protocol import HEAD_LIMIT, PATIENCE, Connection, Connections
from sagemaker_mxnet_serving.messages import Response
from sagemaker_mxnet_serving.metrics import Metrics
from sagemaker_mxnet_serving.served_model import Call
from tests.unit.serving_server.test_http_protocol import Transport, post


class Model:
    """Keeps its requests."""

    def __init__(self) -> None:
        self.calls: List[Call] = []

    def submit(self, call: Call) -> None:
        self.calls.append(call)

    def cancel(self, call: Call) -> None:
        self.calls.remove(call)


class Models:
    """One model, under any name."""

    can_answer = True

    def __init__(self, model: Model) -> None:
        self._model = model

    def find(self, name: object) -> Model:
        return self._model


@dataclass
class Front:
    """One connection to an application."""

    connection: Connection
    transport: Transport
    model: Model
    lines: List[Tuple[Any, ...]] = field(default_factory=list)

    def send(self, data: bytes) -> bytes:
        """Send; return what is answered."""
        before = len(self.transport.written)
        self.connection.data_received(data)
        return self.transport.written[before:]


@pytest.fixture(params=[ServerSettings()])
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    model, transport = Model(), Transport()
    lines: List[Tuple[Any, ...]] = []
    parts: Any = (Models(model), lambda *line: lines.append(line), Metrics(), None)
    application = Application(request.param, *parts)
    connection = Connection(Connections(application, request.param.max_payload))
    connection.connection_made(transport)
    yield Front(connection, transport, model, lines)
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b"Transfer-Encoding: chunked\r\n\r\nrubbish\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"1;a=" + b"b" * 9999 + b"\r\nx\r\n", 413),
        (b"Content-Length: 9\r\n\r\nhalf", 408),
    ],
)
def test_a_body_that_is_refused_midway_is_in_the_log(
    front: Front, rest: bytes, status: int
) -> None:
    front.connection._shared.body_limit = 9999
    header, _, body = rest.partition(b"\r\n\r\n")
    front.send(b"POST /invocations HTTP/1.1\r\nX-Request-Id: half-1\r\n%s\r\n\r\n" % header)
    front.send(body)
    front.connection.look(front.connection._shared.now + PATIENCE + 1)
    assert front.transport.written.startswith(b"HTTP/1.1 %d " % status)
    assert b"x-request-id: half-1\r\n" in front.transport.written
    assert front.transport.closed
    assert [(line[2], line[-1]) for line in front.lines] == [(status, "half-1")]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /ping", 200),
        (b"HEAD /ping?from=here", 200),
        (b"GET http://localhost/ping", 200),
        (b"POST /ping", 405),
        (b"GET /pings", 404),
    ],
)
def test_pings(front: Front, line: bytes, status: int) -> None:
    assert front.send(line + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("front", [ServerSettings(multi_model=True)], indirect=True)
def test_a_path_below_a_model_is_named(front: Front) -> None:
    answer = front.send(b"GET /models/a/b HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ") and b"not '/models/a/b'" in answer


def test_large_heads_are_part_of_a_requests_size_and_fit_into_a_frame(front: Front) -> None:
    header = b"Name: " + b"\\" * (HEAD_LIMIT - 2000) + b"\r\n"
    front.send(post(b"body", b"/invocations", header))
    (call,) = front.model.calls
    assert HEAD_LIMIT - 2000 < call.size <= HEAD_LIMIT
    pieces = frames.encode([(call.fields, call.body)] * 80)
    assert frames.lengths(bytes(pieces[0][: frames.HEAD.size]))[1] == 80 * len(b"body")
    call.settle(Response(200, b"x"))
    assert front.transport.written.startswith(b"HTTP/1.1 200 ")
