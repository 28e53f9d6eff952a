"""The hosting contract: which response each request gets.

An error is one sentence of plain text; the header ``X-Request-Id`` names the request in the log.
"""

import asyncio
import json
import re
import time
import urllib.parse
from typing import Any, Awaitable, Callable, Mapping, Optional, Set

from sagemaker_mxnet_serving.front.access_log import AccessLog
from sagemaker_mxnet_serving.front.dispatcher import Rejection
from sagemaker_mxnet_serving.front.http_request import (
    LARGE,
    Disconnected,
    HttpRequest,
    Message,
    Receive,
    Result,
    Send,
)
from sagemaker_mxnet_serving.front.metrics import Metrics
from sagemaker_mxnet_serving.front.models import Models
from sagemaker_mxnet_serving.front.server_settings import MEGABYTE, ServerSettings
from sagemaker_mxnet_serving.inference import (
    InferenceError,
    Response,
    check_not_compressed,
    error_response,
)
from sagemaker_mxnet_toolkit.log import Log

DISCONNECTED = 499
"""The status in the access log of a request whose client disconnected (nginx's number)."""

_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,1024}")
_PING_METHODS = ("GET", "HEAD")
_JSON = "application/json"
_MODEL_BODY = 64 * 1024

_REASON_SECONDS = 10.0
"""Seconds between two lines in the log about rejected requests."""

_REASON_LENGTH = 300

Handler = Callable[[HttpRequest], Awaitable[None]]
"""Answers a request whose body is complete; returns at the end of the response."""


# long: most methods answer one kind of request.
class Application:
    """Answers HTTP requests: an ASGI application.

    Args:
        settings: the server's.
        models: the models.
        access_log: has a line for each request but pings.
        metrics: count the same requests.
        log: the log, for internal errors and why requests are rejected.

    Attributes:
        active: requests whose responses are not complete.
        draining: whether the server is stopping.
    """

    def __init__(
        self,
        settings: ServerSettings,
        models: Models,
        access_log: AccessLog,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self.active = 0
        self.draining = False
        self._settings = settings
        self._models = models
        self._access_log = access_log
        self._metrics = metrics
        self._log = log
        self._loop = asyncio.get_event_loop()
        self._buffered_requests = 0  # bytes
        self._buffered_responses = 0
        self._tasks: Set[asyncio.Task[None]] = set()
        self._reason_due = 0.0
        self._unlogged = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request; return at the end of the response or of the connection."""
        if scope["raw_path"] == b"/ping" and scope["method"] in _PING_METHODS:
            await self._ping(send)
            return
        request = HttpRequest(scope, receive, send)
        self.active += 1
        try:
            size = request.check_head()
            handler = self._route(request)
            self._check_size(size, size)
            while request.more_body:
                self._buffered_requests += await request.read()
                self._check_size(request.received, 0)
            await handler(request)
        except Disconnected:
            pass
        except Exception as error:
            await self._respond(request, self._rejection(request, error))
        finally:
            self._account(request)

    async def _ping(self, send: Send) -> None:
        healthy = not self.draining and self._models.can_answer
        headers = [(b"content-length", b"0")]
        if self.draining:
            headers.append((b"connection", b"close"))
        status = 200 if healthy else 503
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body"})

    # Routes.

    def _route(self, request: HttpRequest) -> Handler:
        path = request.path
        if path == "/ping":
            raise _wrong_method(request, *_PING_METHODS)
        if self._settings.multi_model:
            if path == "/models" or path.startswith("/models/"):
                return self._route_models(request)
        elif path == "/invocations":
            _check_method(request, "POST")
            return self._invocation(request, None)
        elif path == "/execution-parameters":
            _check_method(request, "GET")
            return self._at_once(self._execution_parameters)
        known = "/models" if self._settings.multi_model else "/invocations, /execution-parameters"
        raise InferenceError(f"{path[:200]!r} does not exist; expected /ping, {known}", 404)

    def _route_models(self, request: HttpRequest) -> Handler:
        # The name is opaque, and may contain an encoded slash.
        path = request.path
        raw = path.split("/")[2:]
        name, *rest = [urllib.parse.unquote(part) for part in raw] or [""]
        if not raw:
            _check_method(request, "GET", "POST")
            if request.method == "POST":
                return self._later(self._load)
            query = urllib.parse.parse_qs(request.query)
            page = {key: each[-1] for key, each in query.items()}
            return self._at_once(lambda: self._models.listing(page))
        if rest == ["invoke"]:
            _check_method(request, "POST")
            return self._invocation(request, name)
        if rest:
            text = f"{path[:200]!r} does not exist; expected /models/NAME or /models/NAME/invoke"
            raise InferenceError(text, 404)
        _check_method(request, "GET", "DELETE")
        if request.method == "GET":
            return self._at_once(lambda: self._models.describe(name))
        return self._later(lambda _: self._unload(name))

    def _execution_parameters(self) -> Mapping[str, Any]:
        return {
            "MaxConcurrentTransforms": self._settings.max_transforms,
            "BatchStrategy": self._settings.batch_strategy,
            "MaxPayloadInMB": self._settings.max_payload // MEGABYTE,
        }

    async def _load(self, request: HttpRequest) -> Response:
        if request.received > _MODEL_BODY:
            raise InferenceError(f"the body is larger than {_MODEL_BODY} bytes", 413)
        check_not_compressed(request.headers)
        try:
            fields = json.loads(b"".join(request.pieces))
            name, url = fields["model_name"], fields["url"]
        except (ValueError, TypeError, KeyError, RecursionError):
            name = url = None
        if not (isinstance(name, str) and isinstance(url, str) and _NAME.fullmatch(name)):
            raise InferenceError(
                'expected a JSON object {"model_name": NAME, "url": DIRECTORY}, with a name of 1 '
                "to 1,024 characters and no control characters"
            )
        self._check_open()
        await self._models.load(name, url)
        return _json({"status": f"model {name!r} is loaded"})

    async def _unload(self, name: str) -> Response:
        await self._models.unload(name)
        return _json({"status": f"model {name!r} is unloaded"})

    # Handlers.

    def _at_once(self, answer: Callable[[], Mapping[str, Any]]) -> Handler:
        async def handle(request: HttpRequest) -> None:
            await self._respond(request, _json(answer()))

        return handle

    def _later(self, answer: Callable[[HttpRequest], Awaitable[Response]]) -> Handler:
        """Return a handler that finishes even if the client disconnects."""

        async def run(request: HttpRequest) -> None:
            try:
                response = await answer(request)
            except Exception as error:
                response = self._rejection(request, error)
            await self._respond(request, response)

        async def handle(request: HttpRequest) -> None:
            task = self._loop.create_task(run(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await request.wait_for_end()

        return handle

    def _invocation(self, request: HttpRequest, name: Optional[str]) -> Handler:
        self._check_open()
        request.model = self._models.find(name)
        return self._invoke

    async def _invoke(self, request: HttpRequest) -> None:
        request.on_result = self._on_result
        request.model.submit(request)
        await request.wait_for_end()
        if not request.complete:
            request.model.cancel(request)

    def _on_result(self, request: HttpRequest, result: Result) -> None:
        if isinstance(result, Rejection):
            result = error_response(result.error)
        # The task of the request waits for the end of the response or of the connection.
        request.sender = self._loop.create_task(self._respond(request, result))

    # Responses.

    async def _respond(self, request: HttpRequest, response: Response) -> None:
        if request.ended:
            return
        size = len(response.body)
        buffered = self._buffered_responses
        if size > LARGE and buffered and buffered + size > self._settings.max_buffered:
            response = error_response(
                InferenceError(
                    "the server cannot buffer another response, because clients read theirs "
                    "slowly; try again later",
                    503,
                )
            )
            size = len(response.body)
        if 400 <= response.status < 500:
            self._log_reason(request, response)
        self._buffered_responses += size - request.response_size
        request.response_size = size
        await request.respond(response, self.draining)

    def _rejection(self, request: HttpRequest, error: Exception) -> Response:
        if isinstance(error, InferenceError):
            return error_response(error)
        # A defect of this server: the details are for the log only.
        self._log.error("serve", f"request {request.id}: {type(error).__name__}: {error}")
        return error_response(InferenceError("internal error of the server; see its log", 500))

    def _account(self, request: HttpRequest) -> None:
        request.ended = True
        self.active -= 1
        self._buffered_requests -= request.received
        self._buffered_responses -= request.response_size
        status = request.status if request.complete else DISCONNECTED
        queued = max(0.0, request.dispatched - request.arrived)
        seconds = time.monotonic() - request.started
        self._metrics.request(status, seconds, queued)
        path = urllib.parse.unquote(request.path)
        self._access_log(
            *(request.method, path, status, seconds, queued),
            *(request.received, request.sent_bytes, request.id),
        )

    def _log_reason(self, request: HttpRequest, response: Response) -> None:
        """Log why a request is rejected: all of them at the level DEBUG, else one in 10 s."""
        now = time.monotonic()
        line = response.body.decode("utf-8", "replace").partition("\n")[0][:_REASON_LENGTH]
        reason = "".join(c if c.isprintable() else "?" for c in line)
        text = f"request {request.id} is rejected with {response.status}: {reason}"
        if now < self._reason_due:
            self._unlogged += 1
            self._log.debug("serve", text)
            return
        if self._unlogged:
            text += f" ({self._unlogged} others since the last such line)"
        self._log("serve", text)
        self._reason_due, self._unlogged = now + _REASON_SECONDS, 0

    def _check_open(self) -> None:
        if self.draining:
            raise Rejection.CLOSED.error

    def _check_size(self, size: int, more: int) -> None:
        """Reject a body that is too large, or whose further bytes exceed the memory for bodies."""
        limit = self._settings.max_payload
        if size > limit:
            raise InferenceError(
                f"the body is larger than {limit} bytes; send less at once, or raise "
                "SAGEMAKER_MAX_PAYLOAD_IN_MB on the server",
                413,
            )
        if self._buffered_requests + more > self._settings.max_buffered:
            raise InferenceError("the server cannot buffer another request; try again later", 503)


def _check_method(request: HttpRequest, *methods: str) -> None:
    if request.method not in methods:
        raise _wrong_method(request, *methods)


def _wrong_method(request: HttpRequest, *methods: str) -> InferenceError:
    text = f"{request.method} {request.path}: expected {' or '.join(methods)}"
    return InferenceError(text, 405)


def _json(value: Mapping[str, Any]) -> Response:
    return Response(200, json.dumps(value).encode(), _JSON)
