"""The contract: which request gets which answer, and what is logged of it."""

import asyncio
from typing import Any, Awaitable, Callable, Dict, List, Optional, Tuple

import pytest

from sagemaker_mxnet_serving import worker_frames
from sagemaker_mxnet_serving.front.application import Application
from sagemaker_mxnet_serving.front.http_request import HEAD_LIMIT, HttpRequest
from sagemaker_mxnet_serving.front.metrics import Metrics
from sagemaker_mxnet_serving.front.server_settings import ServerSettings
from sagemaker_mxnet_serving.inference import Response


class Model:
    """Keeps its requests."""

    def __init__(self) -> None:
        self.requests: List[HttpRequest] = []

    def submit(self, request: HttpRequest) -> None:
        self.requests.append(request)

    def cancel(self, request: HttpRequest) -> None:
        if request in self.requests:
            self.requests.remove(request)


class Models:
    """One model, under any name."""

    can_answer = True

    def __init__(self, model: Model) -> None:
        self._model = model

    def find(self, name: object) -> Model:
        return self._model


class Log:
    """Keeps what is said, with its level."""

    def __init__(self) -> None:
        self.lines: List[Tuple[str, str]] = []

    def __call__(self, role: str, text: str) -> None:
        self.lines.append(("info", text))

    def debug(self, role: str, text: str) -> None:
        self.lines.append(("debug", text))

    def error(self, role: str, text: str) -> None:
        self.lines.append(("error", text))


class Client:
    """Sends one request to an application, as uvicorn would, and takes its response in pieces."""

    def __init__(
        self,
        front: "Front",
        method: str = "POST",
        path: str = "/invocations",
        headers: Optional[Dict[str, str]] = None,
        body: Tuple[bytes, ...] = (b"",),
    ) -> None:
        raw, _, query = path.partition("?")
        self.scope = {
            "method": method,
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "is_closing": lambda: self.closing,
            "headers": [(n.encode(), v.encode()) for n, v in (headers or {}).items()],
        }
        self.closing = False
        self.body = list(body)
        self.ended = asyncio.Event()
        self.taken = asyncio.Event()
        self.taken.set()
        self.started: Dict[str, Any] = {}
        self.received = b""
        self.task = asyncio.ensure_future(front.application(self.scope, self.receive, self.send))

    @property
    def status(self) -> int:
        return int(self.started["status"])

    @property
    def headers(self) -> Dict[bytes, bytes]:
        return dict(self.started["headers"])

    async def receive(self) -> Dict[str, Any]:
        if self.body and not self.ended.is_set():
            body = self.body.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self.body)}
        await self.ended.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.taken.wait()
        if self.ended.is_set():
            return
        if message["type"] == "http.response.start":
            self.started = message
            return
        self.received += bytes(message.get("body", b""))
        if not message.get("more_body"):
            self.ended.set()

    def leave(self) -> None:
        self.closing = True
        self.ended.set()
        self.taken.set()


class Front:
    """An application with one model, and what it has logged."""

    def __init__(self, settings: ServerSettings) -> None:
        self.model = Model()
        self.log = Log()
        self.lines: List[Tuple[Any, ...]] = []
        parts: Any = (Models(self.model), lambda *line: self.lines.append(line), Metrics())
        log: Any = self.log
        self.application = Application(settings, *parts, log)

    @property
    def logged(self) -> List[Tuple[int, int]]:
        """Return the status and the bytes sent of each line of the access log."""
        return [(line[2], line[6]) for line in self.lines]


def run(
    test: Callable[[Front], Awaitable[None]], settings: Optional[ServerSettings] = None
) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(Front(settings or ServerSettings())), 60)

    asyncio.run(main())


async def run_pending() -> None:
    """Let everything that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ping", 200),
        ("HEAD", "/ping?from=here", 200),
        ("POST", "/ping", 405),
        ("GET", "/pings", 404),
    ],
)
def test_ping(method: str, path: str, status: int) -> None:
    async def test(front: Front) -> None:
        client = Client(front, method, path)
        await client.task
        assert client.status == status
        assert bool(front.lines) is (status != 200)

    run(test)


def test_path_below_a_model_is_named() -> None:
    async def test(front: Front) -> None:
        client = Client(front, "GET", "/models/a/b")
        await client.task
        assert (client.status, b"'/models/a/b' does not exist" in client.received) == (404, True)

    run(test, ServerSettings(multi_model=True))


def test_compressed_request_for_a_model_is_rejected() -> None:
    async def test(front: Front) -> None:
        client = Client(front, path="/models", headers={"content-encoding": "gzip"})
        await client.task
        assert (client.status, b"Content-Encoding 'gzip'" in client.received) == (415, True)

    run(test, ServerSettings(multi_model=True))


def test_response_headers() -> None:
    async def test(front: Front) -> None:
        client = Client(front, headers={"x-request-id": "mine"})
        await run_pending()
        headers = {"X-One\r\n": "a\r\nb: c"}
        front.model.requests.pop().resolve(Response(200, b"four", "text/csv\r\n", headers))
        await client.task
        assert client.headers == {
            b"content-length": b"4",
            b"x-request-id": b"mine",
            b"content-type": b"text/csv  ",
            b"X-One__": b"a  b: c",
        }

    run(test)


def test_body_in_pieces_is_one_request() -> None:
    async def test(front: Front) -> None:
        client = Client(front, body=(b"ab", b"", b"cd"))
        await run_pending()
        request = front.model.requests.pop()
        assert (request.pieces, request.received) == ([b"ab", b"cd"], 4)
        request.resolve(Response(200, b"x"))
        await client.task
        assert front.logged == [(200, 1)]

    run(test)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-length": "1001"}, (b"",), 413),
        ({}, (b"x" * 900, b"x" * 101), 413),
        ({"name": "v" * HEAD_LIMIT}, (b"",), 431),
        ({"upgrade": "h2c", "content-length": "4"}, (b"",), 400),
        ({"upgrade": "h2c", "transfer-encoding": "chunked"}, (b"",), 400),
    ],
)
def test_rejected_request_reaches_no_model(
    headers: Dict[str, str], body: Tuple[bytes, ...], status: int
) -> None:
    async def test(front: Front) -> None:
        client = Client(front, headers={"x-request-id": "id-1", **headers}, body=body)
        await client.task
        assert client.status == status
        assert front.model.requests == []
        assert front.logged == [(status, len(client.received))]
        ((level, text),) = front.log.lines
        assert level == "info" and text.startswith(f"request id-1 is rejected with {status}: ")

    run(test, ServerSettings(max_payload=1000))


def test_unread_body_closes_the_connection() -> None:
    async def test(front: Front) -> None:
        for expect in ({}, {"expect": "100-continue"}):
            client = Client(front, headers={"content-length": "9999", **expect})
            await client.task
            assert client.headers.get(b"connection") == (b"close" if expect else None)

    run(test, ServerSettings(max_payload=1000))


def test_reasons_of_rejections_are_logged_at_a_limited_rate() -> None:
    async def test(front: Front) -> None:
        for number in range(3):
            await Client(front, "GET", f"/{number}").task
        front.application._reason_due = 0.0
        await Client(front, "GET", "/3").task
        assert [level for level, _ in front.log.lines] == ["info", "debug", "debug", "info"]
        assert "'/3'" in front.log.lines[3][1]
        assert front.log.lines[3][1].endswith("(2 others since the last such line)")

    run(test)


def test_reason_of_a_model_is_logged_on_one_line() -> None:
    async def test(front: Front) -> None:
        client = Client(front)
        await run_pending()
        front.model.requests.pop().resolve(Response(422, b"a\x1bbad image\nmore"))
        await client.task
        assert front.log.lines[0][1].endswith(" is rejected with 422: a?bad image")

    run(test)


def test_internal_error_is_logged_and_not_sent() -> None:
    class Broken(Model):
        def submit(self, request: HttpRequest) -> None:
            raise RuntimeError("hidden")

    async def test(front: Front) -> None:
        broken: Any = Broken()
        front.application._models = Models(broken)  # type: ignore[assignment]
        client = Client(front)
        await client.task
        assert (client.status, b"hidden" in client.received) == (500, False)
        assert front.log.lines[0][0] == "error" and "hidden" in front.log.lines[0][1]

    run(test)


def test_disconnect_in_the_queue_is_logged_as_499() -> None:
    async def test(front: Front) -> None:
        client = Client(front)
        await run_pending()
        (request,) = front.model.requests
        client.leave()
        await client.task
        assert front.model.requests == []
        request.resolve(Response(200, b"x"))
        await run_pending()
        assert front.logged == [(499, 0)]
        assert front.application.active == 0

    run(test)


def test_disconnect_before_the_body_is_complete() -> None:
    async def test(front: Front) -> None:
        client = Client(front, body=(b"half", b""))
        client.body = [b"half", b"rest"]
        client.leave()
        await client.task
        assert front.logged == [(499, 0)]

    run(test)


def test_buffered_responses_are_limited() -> None:
    async def test(front: Front) -> None:
        async def ask(size: int) -> Client:
            client = Client(front)
            await run_pending()
            if size > 64 * 1024:
                client.taken.clear()
            front.model.requests.pop().resolve(Response(200, b"x" * size))
            await run_pending()
            return client

        first = await ask(900_000)
        rejected = await ask(100_000)
        rejected.taken.set()
        await rejected.task
        assert rejected.status == 503
        small = await ask(60_000)
        await small.task
        assert front.application.active == 1
        first.leave()
        await first.task
        second = await ask(100_000)
        second.taken.set()
        await second.task
        assert front.application.active == 0
        assert front.application._buffered_responses == front.application._buffered_requests == 0
        assert front.logged == [
            (503, len(rejected.received)),
            (200, 60_000),
            (499, 0),
            (200, 100_000),
        ]

    run(test, ServerSettings(max_buffered=500_000))


def test_buffered_requests_are_limited() -> None:
    async def test(front: Front) -> None:
        held = Client(front, body=(b"x" * 400_000,))
        await run_pending()
        rejected = Client(front, headers={"content-length": "200000"})
        await rejected.task
        assert rejected.status == 503
        front.model.requests.pop().resolve(Response(200, b"x"))
        await held.task
        assert front.application._buffered_requests == 0

    run(test, ServerSettings(max_buffered=500_000))


def test_stopping_server_closes_connections() -> None:
    async def test(front: Front) -> None:
        accepted = Client(front)
        await run_pending()
        front.application.draining = True
        ping, late = Client(front, "GET", "/ping"), Client(front)
        front.model.requests.pop().resolve(Response(200, b"x"))
        for client, status in ((ping, 503), (late, 503), (accepted, 200)):
            await client.task
            assert (client.status, client.headers[b"connection"]) == (status, b"close")

    run(test)


def test_large_head_is_part_of_the_size_and_fits_into_a_frame() -> None:
    async def test(front: Front) -> None:
        client = Client(front, headers={"name": "\\" * (HEAD_LIMIT - 2000)}, body=(b"body",))
        await run_pending()
        (request,) = front.model.requests
        assert HEAD_LIMIT - 2000 < request.size <= HEAD_LIMIT
        fields = {"id": request.id, "headers": request.headers}
        pieces = worker_frames.encode([(fields, request.pieces)] * 80)
        head = bytes(pieces[0][: worker_frames.HEAD.size])
        assert worker_frames.lengths(head)[1] == 80 * len(b"body")
        request.resolve(Response(200, b"x"))
        await client.task

    run(test)
