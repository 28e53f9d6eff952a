"""The hosting contract: which request gets which answer.

An error is one sentence of plain text; the header ``X-Request-Id`` names the request in the log.
"""

import asyncio
import itertools
import json
import os
import re
import time
import urllib.parse
from typing import Any, Callable, Coroutine, Mapping, Optional, Set, Union

from sagemaker_mxnet_serving.access_log import AccessLog
from sagemaker_mxnet_serving.configuration import MEGABYTE, ServerSettings
from sagemaker_mxnet_serving.dispatcher import Refusal
from sagemaker_mxnet_serving.http_protocol import Exchange, target
from sagemaker_mxnet_serving.messages import InferenceError, Response
from sagemaker_mxnet_serving.metrics import Metrics
from sagemaker_mxnet_serving.models import Models
from sagemaker_mxnet_serving.served_model import Call, ServedModel
from sagemaker_mxnet_toolkit.log import Log

CALLER_GONE = 499
"""What the access log has for a request whose caller went away (nginx' number for it)."""

_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,1024}")
_PINGS = ("GET", "HEAD")
_JSON = "application/json"
_MODEL_BODY = 64 * 1024


class Work:
    """What the application knows of a request.

    Attributes:
        id: of the request.
        path: what is asked for.
        started: when its head was there (monotonic, seconds).
        held: bytes of its body, as far as they are counted.
        run: answers it, once it is complete.
        call: the request of a model, once it is one, and the model.
    """

    __slots__ = ("call", "held", "id", "model", "path", "run", "started")

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        self.path = ""
        self.started = time.monotonic()
        self.held = 0
        self.run: Callable[[Exchange], None]
        self.call: Optional[Call] = None
        self.model: Optional[ServedModel] = None


class Application:
    """Answers HTTP requests.

    Args:
        settings: the server's.
        models: what can be asked.
        access_log: told about every request but pings.
        metrics: told about the same.
        log: told about defects.

    Attributes:
        active: requests that have no answer yet.
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
        self._held = 0
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)
        self._tasks: Set[asyncio.Task[None]] = set()

    # What connections tell.

    def begin(self, exchange: Exchange) -> None:
        """Find out what a request asks for; refuse what is wrong about its head."""
        if exchange.url.partition(b"?")[0] == b"/ping" and exchange.method in _PINGS:
            exchange.keep_alive = exchange.keep_alive and not self.draining
            exchange.answer(self._ping())
            return
        given = exchange.headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"{self._prefix}-{next(self._numbers)}"
        work = exchange.state = Work(request_id)
        self.active += 1
        try:
            work.path, query = target(exchange.url)
            work.run = self._route(exchange, work, query)
            announced = exchange.headers.get("content-length", "0")
            size = int(announced) if announced.isdigit() else 0
            self._check(size, size)
        except Exception as error:
            self._fail(exchange, error)

    def grew(self, exchange: Exchange, size: int) -> None:
        """Refuse a body that has become too large."""
        self._held += size
        exchange.state.held += size
        try:
            self._check(exchange.received, 0)
        except InferenceError as error:
            self._fail(exchange, error)

    def handle(self, exchange: Exchange) -> None:
        """Answer a request."""
        try:
            exchange.state.run(exchange)
        except Exception as error:
            self._fail(exchange, error)

    def refuse(self, exchange: Exchange, status: int, text: str) -> None:
        """Answer a request of which no more can be read."""
        self._fail(exchange, InferenceError(text, status))

    def gone(self, exchange: Exchange) -> None:
        """Forget a request whose caller has gone."""
        work: Work = exchange.state
        if work.call is not None and work.model is not None:
            work.model.cancel(work.call)
        self._account(exchange, CALLER_GONE, 0)

    # What becomes of a request.

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        if isinstance(error, InferenceError):
            self._answer(exchange, _error(error.status, str(error)))
            return
        # A defect of ours: said in full in the log, and not to the caller.
        text = f"request {exchange.state.id}: {type(error).__name__}: {error}"
        self._log.error("serve", text)
        self._answer(exchange, _error(500, "the server has a defect; see its log"))

    def _answer(self, exchange: Exchange, response: Response) -> None:
        if exchange.answered:
            return
        if self.draining:
            exchange.keep_alive = False
        self._account(exchange, response.status, len(response.body))
        exchange.answer(response, exchange.state.id)

    def _account(self, exchange: Exchange, status: int, sent: int) -> None:
        work: Work = exchange.state
        self.active -= 1
        self._held -= work.held
        call = work.call
        queued = max(0.0, call.sent - call.arrived) if call is not None else 0.0
        seconds = time.monotonic() - work.started
        self._metrics.request(status, seconds, queued)
        path = urllib.parse.unquote(work.path)
        self._access_log(
            exchange.method, path, status, seconds, queued, exchange.received, sent, work.id
        )

    def _later(self, answer: Callable[[Exchange], Coroutine[Any, Any, Response]]) -> Any:
        """Return what answers a request by a task of its own."""

        async def run(exchange: Exchange) -> None:
            try:
                self._answer(exchange, await answer(exchange))
            except Exception as error:
                self._fail(exchange, error)

        def start(exchange: Exchange) -> None:
            task = self._loop.create_task(run(exchange))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return start

    def _at_once(self, answer: Callable[[], Mapping[str, Any]]) -> Any:
        return lambda exchange: self._answer(exchange, _json(answer()))

    def _route(self, exchange: Exchange, work: Work, query: str) -> Any:
        """Return what answers a request, once all of it is there."""
        path = work.path
        if path == "/ping":
            _expect(exchange, *_PINGS)
            return lambda exchange: self._answer(exchange, self._ping())
        if self._settings.multi_model:
            if path == "/models" or path.startswith("/models/"):
                return self._route_models(exchange, work, query)
        elif path == "/invocations":
            _expect(exchange, "POST")
            return self._invocation(work, None)
        elif path == "/execution-parameters":
            _expect(exchange, "GET")
            return self._at_once(self._execution_parameters)
        known = "/models" if self._settings.multi_model else "/invocations, /execution-parameters"
        raise InferenceError(f"there is nothing at {path[:200]!r}; expected /ping, {known}", 404)

    def _route_models(self, exchange: Exchange, work: Work, query: str) -> Any:
        # The name is opaque, and may hold an encoded slash.
        path = work.path
        raw = path.split("/")[2:]
        name, *rest = [urllib.parse.unquote(part) for part in raw] or [""]
        if not raw:
            _expect(exchange, "GET", "POST")
            if exchange.method == "POST":
                return self._later(self._load)
            asked = {key: each[-1] for key, each in urllib.parse.parse_qs(query).items()}
            return self._at_once(lambda: self._models.listing(asked))
        if rest == ["invoke"]:
            _expect(exchange, "POST")
            return self._invocation(work, name)
        if rest:
            text = f"expected /models/NAME or /models/NAME/invoke, not {path[:200]!r}"
            raise InferenceError(text, 404)
        _expect(exchange, "GET", "DELETE")
        if exchange.method == "GET":
            return self._at_once(lambda: self._models.describe(name))
        return self._later(lambda _: self._unload(name))

    def _ping(self) -> Response:
        healthy = not self.draining and self._models.can_answer
        return Response(200 if healthy else 503, b"")

    def _execution_parameters(self) -> Mapping[str, Any]:
        return {
            "MaxConcurrentTransforms": self._settings.max_transforms,
            "BatchStrategy": self._settings.batch_strategy,
            "MaxPayloadInMB": self._settings.max_payload // MEGABYTE,
        }

    async def _load(self, exchange: Exchange) -> Response:
        if exchange.received > _MODEL_BODY:
            raise InferenceError(f"the body is larger than {_MODEL_BODY} bytes", 413)
        try:
            fields = json.loads(b"".join(exchange.pieces))
            name, url = fields["model_name"], fields["url"]
        except (ValueError, TypeError, KeyError, RecursionError):
            name = url = None
        if not (isinstance(name, str) and isinstance(url, str) and _NAME.fullmatch(name)):
            raise InferenceError(
                'expected a JSON object {"model_name": NAME, "url": DIRECTORY}, with a name of 1 '
                "to 1,024 characters, none of them a control character"
            )
        if self.draining:
            raise InferenceError(Refusal.CLOSED.message, 503)
        await self._models.load(name, url)
        return _json({"status": f"model {name!r} is loaded"})

    async def _unload(self, name: str) -> Response:
        await self._models.unload(name)
        return _json({"status": f"model {name!r} is unloaded"})

    def _invocation(self, work: Work, name: Optional[str]) -> Any:
        if self.draining:
            raise InferenceError(Refusal.CLOSED.message, Refusal.CLOSED.status)
        work.model = self._models.find(name)
        return self._invoke

    def _invoke(self, exchange: Exchange) -> None:
        work: Work = exchange.state
        assert work.model is not None
        headers = exchange.headers
        fields = {
            "id": work.id,
            "content_type": headers.get("content-type", ""),
            "accept": headers.get("accept", ""),
            "headers": headers,
        }

        def answer(result: Union[Response, Refusal]) -> None:
            if isinstance(result, Refusal):
                result = _error(result.status, result.message)
            self._answer(exchange, result)

        size = exchange.head + exchange.received
        work.call = Call(fields, exchange.pieces, size, answer)
        work.model.submit(work.call)

    def _check(self, size: int, more: int) -> None:
        """Refuse a body of some size, with so many bytes that are not counted yet."""
        limit = self._settings.max_payload
        if size > limit:
            raise InferenceError(
                f"the body is larger than {limit} bytes; send less at once, or let the server take "
                "more with SAGEMAKER_MAX_PAYLOAD_IN_MB",
                413,
            )
        if self._held + more > self._settings.max_held:
            raise InferenceError(
                "the server holds as many requests as its memory allows; try again later", 503
            )


def _expect(exchange: Exchange, *methods: str) -> None:
    if exchange.method not in methods:
        raise InferenceError(
            f"{exchange.method} {exchange.state.path}: expected {' or '.join(methods)}", 405
        )


def _json(value: Mapping[str, Any]) -> Response:
    return Response(200, json.dumps(value).encode(), _JSON)


def _error(status: int, message: str) -> Response:
    return Response(status, f"{message}\n".encode("utf-8", "replace"))
