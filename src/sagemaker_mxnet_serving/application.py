"""The hosting contract as an ASGI application: which request gets which answer.

An error is one sentence of plain text; the header ``X-Request-Id`` names the request in the log.
"""

import asyncio
import itertools
import json
import os
import re
import time
import urllib.parse
from typing import (
    Any,
    Awaitable,
    Callable,
    Dict,
    List,
    Mapping,
    MutableMapping,
    Optional,
    Sequence,
    Tuple,
)

from sagemaker_mxnet_serving.access_log import AccessLog
from sagemaker_mxnet_serving.configuration import MEGABYTE, ServerSettings
from sagemaker_mxnet_serving.dispatcher import Refusal
from sagemaker_mxnet_serving.http_protocol import GONE
from sagemaker_mxnet_serving.messages import InferenceError, Response
from sagemaker_mxnet_serving.metrics import Metrics
from sagemaker_mxnet_serving.models import Models
from sagemaker_mxnet_serving.served_model import Call
from sagemaker_mxnet_toolkit.log import Log

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CALLER_GONE = 499
"""What the access log has for a request whose caller went away (nginx' number for it)."""

_ID = re.compile(rb"[\w.:-]{1,64}")
_ID_HEADER = b"x-request-id"
_NAME = re.compile(r"[^/\x00-\x1f\x7f]{1,1024}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_JSON = "application/json"
_MODEL_BODY = 64 * 1024


class _CallerGone(Exception):
    """Nobody waits for the answer any more."""


class Exchange:
    """One request and what becomes of it.

    Attributes:
        method: the HTTP method.
        path: the path, decoded.
        headers: names in lower case, and values.
        id: of the request.
        received: bytes of the body so far.
        queued: seconds that it waited for a worker.
    """

    __slots__ = ("headers", "id", "method", "path", "queued", "received", "scope", "started")

    def __init__(self, scope: Scope, fallback_id: str) -> None:
        self.scope = scope
        self.started = time.monotonic()
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Dict[str, str] = {}
        self.id = fallback_id
        self.received = 0
        self.queued = 0.0
        for name, value in scope["headers"]:
            self.headers[name.decode("latin-1")] = value.decode("latin-1")
            if name == _ID_HEADER and _ID.fullmatch(value):
                self.id = value.decode("ascii")


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        if scope["path"] == "/ping" and scope["method"] in ("GET", "HEAD"):
            healthy = not self.draining and self._models.can_answer
            await _send(send, Response(200 if healthy else 503, b""), (), self.draining)
            return
        exchange = Exchange(scope, f"{self._prefix}-{next(self._numbers)}")
        self.active += 1
        status, sent = CALLER_GONE, 0
        try:
            response = await self._answer(exchange, receive)
            headers = [(_ID_HEADER, exchange.id.encode("ascii"))]
            status, sent = response.status, len(response.body)
            await _send(send, response, headers, self.draining)
        except _CallerGone:
            pass
        finally:
            self.active -= 1
            self._held -= exchange.received
            seconds = time.monotonic() - exchange.started
            self._metrics.request(status, seconds, exchange.queued)
            self._access_log(
                exchange.method,
                exchange.path,
                status,
                seconds,
                exchange.queued,
                exchange.received,
                sent,
                exchange.id,
            )

    async def _answer(self, exchange: Exchange, receive: Receive) -> Response:
        try:
            return await self._route(exchange, receive)
        except InferenceError as error:
            return _error(error.status, str(error))
        except (_CallerGone, asyncio.CancelledError):
            raise
        except Exception as error:
            # A defect of ours: said in full in the log, and not to the caller.
            self._log.error("serve", f"request {exchange.id}: {type(error).__name__}: {error}")
            return _error(500, "the server has a defect; see its log")

    async def _route(self, exchange: Exchange, receive: Receive) -> Response:
        path = exchange.path
        if self._settings.multi_model:
            if path == "/models" or path.startswith("/models/"):
                return await self._route_models(exchange, receive)
        elif path == "/invocations":
            _expect(exchange, "POST")
            return await self._invoke(exchange, receive, None)
        elif path == "/execution-parameters":
            _expect(exchange, "GET")
            return _json(
                {
                    "MaxConcurrentTransforms": self._settings.max_transforms,
                    "BatchStrategy": self._settings.batch_strategy,
                    "MaxPayloadInMB": self._settings.max_payload // MEGABYTE,
                }
            )
        known = "/models" if self._settings.multi_model else "/invocations, /execution-parameters"
        raise InferenceError(f"there is nothing at {path[:200]!r}; expected /ping, {known}", 404)

    async def _route_models(self, exchange: Exchange, receive: Receive) -> Response:
        # The name is opaque, and may hold an encoded slash.
        raw = exchange.scope["raw_path"].decode("ascii").split("/")[2:]
        name, *rest = [urllib.parse.unquote(part) for part in raw] or [""]
        if not raw:
            _expect(exchange, "GET", "POST")
            if exchange.method == "GET":
                query = urllib.parse.parse_qs(exchange.scope["query_string"].decode("latin-1"))
                return _json(self._models.listing({key: each[-1] for key, each in query.items()}))
            return await self._load(exchange, receive)
        if rest == ["invoke"]:
            _expect(exchange, "POST")
            return await self._invoke(exchange, receive, name)
        if rest:
            raise InferenceError(f"expected /models/NAME or /models/NAME/invoke, not {name!r}", 404)
        _expect(exchange, "GET", "DELETE")
        if exchange.method == "GET":
            return _json(self._models.describe(name))
        await self._models.unload(name)
        return _json({"status": f"model {name!r} is unloaded"})

    async def _load(self, exchange: Exchange, receive: Receive) -> Response:
        pieces, _ = await self._body(exchange, receive, _MODEL_BODY)
        try:
            fields = json.loads(b"".join(pieces))
            name, url = fields["model_name"], fields["url"]
        except (ValueError, TypeError, KeyError, RecursionError):
            name = url = None
        if not (isinstance(name, str) and isinstance(url, str) and _NAME.fullmatch(name)):
            raise InferenceError(
                'expected a JSON object {"model_name": NAME, "url": DIRECTORY}, with a name of 1 '
                "to 1,024 characters and without a slash"
            )
        if self.draining:
            raise InferenceError(Refusal.CLOSED.message, 503)
        await self._models.load(name, url)
        return _json({"status": f"model {name!r} is loaded"})

    async def _invoke(self, exchange: Exchange, receive: Receive, name: Optional[str]) -> Response:
        if self.draining:
            raise InferenceError(Refusal.CLOSED.message, Refusal.CLOSED.status)
        model = self._models.find(name)
        answer: asyncio.Future[Any] = self._loop.create_future()
        exchange.scope[GONE] = answer.cancel
        pieces, size = await self._body(exchange, receive, self._settings.max_payload)
        fields = {
            "id": exchange.id,
            "content_type": exchange.headers.get("content-type", ""),
            "accept": exchange.headers.get("accept", ""),
            "headers": exchange.headers,
        }
        call = Call(fields, pieces, size, answer)
        model.submit(call)
        try:
            result = await answer
        except asyncio.CancelledError:
            model.cancel(call)
            raise _CallerGone from None
        exchange.queued = max(0.0, call.sent - call.arrived)
        if isinstance(result, Refusal):
            return _error(result.status, result.message)
        response: Response = result
        return response

    async def _body(
        self, exchange: Exchange, receive: Receive, limit: int
    ) -> Tuple[List[bytes], int]:
        """Return the body of a request, in pieces, and its length.

        Raises:
            InferenceError: when it is too large, or too much is held already.
        """
        announced = exchange.headers.get("content-length", "0")
        self._check(int(announced) if announced.isdigit() else 0, limit)
        pieces: List[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _CallerGone
            piece = message.get("body", b"")
            if piece:
                exchange.received += len(piece)
                self._held += len(piece)
                pieces.append(piece)
            if not message.get("more_body"):
                return pieces, exchange.received
            self._check(exchange.received, limit)

    def _check(self, size: int, limit: int) -> None:
        if size > limit:
            raise InferenceError(
                f"the body is larger than {limit} bytes; send less at once, or let the server take "
                "more with SAGEMAKER_MAX_PAYLOAD_IN_MB",
                413,
            )
        if self._held + size > self._settings.max_held:
            raise InferenceError(
                "the server holds as many requests as its memory allows; try again later", 503
            )


def _expect(exchange: Exchange, *methods: str) -> None:
    if exchange.method not in methods:
        raise InferenceError(
            f"{exchange.method} {exchange.path}: expected {' or '.join(methods)}", 405
        )


def _json(value: Mapping[str, Any]) -> Response:
    return Response(200, json.dumps(value).encode(), _JSON)


def _error(status: int, message: str) -> Response:
    return Response(status, f"{message}\n".encode("utf-8", "replace"))


async def _send(
    send: Send, response: Response, headers: Sequence[Tuple[bytes, bytes]], last: bool
) -> None:
    lines = [
        (b"content-length", str(len(response.body)).encode("ascii")),
        *headers,
    ]
    if response.body:
        lines.append((b"content-type", _line(response.content_type)))
    for name, value in response.headers.items():
        lines.append((_line(name), _line(value)))
    if last:
        lines.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": lines})
    await send({"type": "http.response.body", "body": response.body})


def _line(text: str) -> bytes:
    """Return a text as part of one header line, which a script cannot end early."""
    return _CONTROL.sub(" ", text).encode("latin-1", "replace")
