"""The server: one process that listens, answers, and supervises all others.

It never imports MXNet. ``Server.run`` shows the order: listen, load, answer, drain, end.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
import traceback
from collections import deque
from typing import Any, Deque, Dict, Iterator, List, Mapping, Optional

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sagemaker_mxnet_serving.front import process_specs
from sagemaker_mxnet_serving.front.access_log import AccessLog
from sagemaker_mxnet_serving.front.application import Application
from sagemaker_mxnet_serving.front.child_processes import Processes
from sagemaker_mxnet_serving.front.endings import HOST
from sagemaker_mxnet_serving.front.metrics import Metrics, PrometheusMetrics
from sagemaker_mxnet_serving.front.models import Models
from sagemaker_mxnet_serving.front.served_model import STOP_SECONDS, ModelPhase, ServedModel
from sagemaker_mxnet_serving.front.server_settings import PROGRAM, ServerSettings
from sagemaker_mxnet_serving.inference import description_lines
from sagemaker_mxnet_toolkit import __version__, listening
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, NetworkError, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes import own_process
from sagemaker_mxnet_toolkit.requirements.virtual_environment import installation_notice

DRAIN_SECONDS = 25.0
"""Seconds for accepted requests after SIGTERM; SageMaker sends SIGKILL after 30."""

MODEL = "model"
"""The name of the only model in the log."""

_LINGER_SECONDS = 0.5
"""Seconds in which requests that arrive at the end still get a 503."""

_KEEP_ALIVE_SECONDS = 75
"""Seconds that a connection may be idle after a response."""

_FLUSH_SECONDS = 2
"""Seconds for connections to close at the end."""

_LONGEST_URL = 2**16 - 1
"""Bytes of a URL that httptools can parse; with its method it exceeds ``HEAD_LIMIT``."""

_POLL = 0.01


def serve(settings: ServerSettings, environ: Mapping[str, str]) -> int:
    """Serve until a signal stops it, or until the model fails.

    Args:
        settings: the settings.
        environ: the environment of the processes that load models.

    Returns:
        The exit status: 0 after a signal, 1 after a failure. The log ends with its cause.
    """
    log = Log("localhost", settings.log_level, settings.secrets, program=PROGRAM)
    try:
        for note in settings.notes:
            log.warning("serve", note)
        remedy = "end that process, or set SAGEMAKER_BIND_TO_PORT or --port to a free port"
        listener = listening.listen(settings.host, settings.port, remedy)
        own_process.raise_file_limit()
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            with contextlib.ExitStack() as stack:
                settings = stack.enter_context(process_specs.code_folder(settings))
                settings = stack.enter_context(process_specs.own_packages(settings, environ))
                if settings.python != sys.executable:
                    directory = os.path.dirname(os.path.dirname(settings.python))
                    log("serve", installation_notice("server", directory))
                failure = loop.run_until_complete(Server(settings, environ, log).run(listener))
        finally:
            loop.close()
    except NetworkError as error:
        log.error("serve", str(error))
        return 1
    else:
        return 0 if failure is None else _log_failure(log, failure)
    finally:
        log.close()


class Server:
    """One run of the server, from listening to the end of all processes.

    Args:
        settings: the settings.
        environ: the environment of the processes that load models.
        log: the log.
    """

    def __init__(self, settings: ServerSettings, environ: Mapping[str, str], log: Log) -> None:
        self._settings = settings
        self._environ = environ
        self._log = log
        # What ends the server: None for a signal, or a failure.
        self._ends: asyncio.Queue[Optional[Failure]] = asyncio.Queue()

    async def run(self, listener: socket.socket) -> Optional[Failure]:
        """Serve until the end; return the failure that ended it, if any."""
        loop = asyncio.get_event_loop()
        for number in own_process.not_ignored(own_process.STOP_SIGNALS):
            loop.add_signal_handler(number, self._ends.put_nowait, None)
        own_process.unblock_stop_signals()
        loop.set_exception_handler(self._on_exception)
        metrics = self._metrics()
        processes = Processes(loop)

        def make(name: str, model_dir: str) -> ServedModel:
            parts = (self._settings, self._environ, processes, self._log, metrics)
            return ServedModel(name, model_dir, *parts)

        models = Models(self._settings, make, self._log)
        metrics.gauge("queue_length", "Requests that wait for a worker", lambda: models.waiting)
        metrics.gauge("workers", "Workers that can answer", lambda: models.workers)
        failure: Optional[Failure] = None
        access_log = AccessLog(self._settings.access_log)
        try:
            application = Application(self._settings, models, access_log, metrics, self._log)
            http = _http_server(application, self._log)
            connections = loop.create_task(http.serve([listener]))
            failure = await self._serve(models)
            if failure is None:
                await self._drain(application, models)
            http.should_exit = True
            await connections
        finally:
            listener.close()
            await models.stop()
            await processes.end(STOP_SECONDS)
            metrics.close()
            access_log.close()
        return failure

    def _metrics(self) -> Metrics:
        port = self._settings.metrics_port
        if port is None:
            return Metrics()
        try:
            return PrometheusMetrics(self._settings.host, port)
        except OSError as error:
            raise NetworkError(
                f"cannot listen on port {port} for metrics: {error.strerror or error}; "
                "set SAGEMAKER_MXNET_SERVING_METRICS_PORT to a free port"
            ) from error

    async def _serve(self, models: Models) -> Optional[Failure]:
        """Serve until a signal, an internal error, or the failure of the only model."""
        address = f"{self._settings.host} port {self._settings.port}"
        end = asyncio.ensure_future(self._ends.get())
        if self._settings.multi_model:
            self._log("serve", f"ready for models below {self._settings.model_dir}: {address}")
            return await end
        model = models.add(MODEL, self._settings.model_dir)
        self._log("serve", f"loading {model.model_dir}; listening on {address}")
        watch = asyncio.ensure_future(self._watch(model))
        await asyncio.wait([end, watch], return_when=asyncio.FIRST_COMPLETED)
        done, other = (watch, end) if watch.done() else (end, watch)
        other.cancel()
        return done.result()

    async def _watch(self, model: ServedModel) -> Optional[Failure]:
        began = time.monotonic()
        if await model.wait_for(ModelPhase.READY, ModelPhase.FAILED) is ModelPhase.READY:
            seconds = time.monotonic() - began
            self._log("serve", _start_up(model, seconds))
            await model.wait_for(ModelPhase.FAILED)
        return model.failure

    async def _drain(self, application: Application, models: Models) -> None:
        """Answer the accepted requests; a second signal ends this at once."""
        application.draining = True
        deadline = time.monotonic() + DRAIN_SECONDS
        self._log("serve", f"stopping; requests in progress: {application.active}")
        while application.active and time.monotonic() < deadline and self._ends.empty():
            await asyncio.sleep(_POLL)
        if application.active:
            text = f"rejecting {application.active} requests that are still in progress"
            self._log.error("serve", text)
            await models.drain(time.monotonic())
        linger = time.monotonic() + _LINGER_SECONDS
        while time.monotonic() < linger and self._ends.empty():
            await asyncio.sleep(_POLL)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: Dict[str, Any]) -> None:
        """End the server after an exception in a callback of the loop.

        Nobody finishes the work of the callback, and requests would hang. An exception in a
        connection ends that connection only.
        """
        error = context.get("exception")
        if isinstance(error, ConnectionError):
            return
        reason = f"{context.get('message', '')}: {type(error).__name__}: {error}"
        if "transport" in context or error is None:
            self._log.error("serve", reason)
            return
        trace = traceback.format_exception(type(error), error, error.__traceback__)
        self._log.error("serve", "".join(trace).rstrip())
        self._ends.put_nowait(Failure(HOST, Role.ENTRYPOINT, reason, FailureKind.INTERNAL))


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to ``Server``, which answers requests before it closes connections."""
        yield


class _HttpConnection(HttpToolsProtocol):
    """uvicorn's connection, which tells the application when it is lost, or is about to be closed.

    uvicorn drops without an error what is sent then, which must not be logged as sent.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The requests of a pipeline before the last one, in order.
        self._earlier: Deque[Any] = deque()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.scope["is_closing"] = self.transport.is_closing  # type: ignore[typeddict-unknown-key]

    def on_url(self, url: bytes) -> None:
        """Add a part of the URL, up to the longest that can be parsed; a longer one gets a 431."""
        super().on_url(url)
        self.url = self.url[:_LONGEST_URL]

    def on_headers_complete(self) -> None:
        """Start a request, or queue it behind those before it."""
        last = self.cycle
        super().on_headers_complete()
        if last is not None and not last.response_complete:
            self._earlier.append(last)
        while self._earlier and self._earlier[0].response_complete:
            self._earlier.popleft()

    def connection_lost(self, exc: Optional[Exception]) -> None:
        """Disconnect each request of the pipeline; uvicorn disconnects only the last one."""
        super().connection_lost(exc)
        for each in self._earlier:
            each.disconnected = not each.response_complete
            each.message_event.set()


class _UvicornLog(logging.Handler):
    """Logs the records of uvicorn: exceptions as errors, malformed requests at the level DEBUG."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or isinstance(error, asyncio.CancelledError):
            self._log.debug("serve", record.getMessage())
        else:
            self._log.error("serve", self.format(record))


def _http_server(application: Application, log: Log) -> _HttpServer:
    logger = logging.getLogger("uvicorn.error")
    logger.handlers, logger.propagate = [_UvicornLog(log)], False
    logger.setLevel(logging.WARNING)
    config: Dict[str, Any] = {
        "http": _HttpConnection,
        "ws": "none",
        "interface": "asgi3",
        "lifespan": "off",
        "workers": 1,
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "backlog": listening.BACKLOG,
        "timeout_keep_alive": _KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": _FLUSH_SECONDS,
    }
    return _HttpServer(uvicorn.Config(application, **config))


def _start_up(model: ServedModel, seconds: float) -> str:
    """Return the lines to log once the model can answer."""
    settings = model.settings
    how = "that share one model" if settings.shared else "that each load the model"
    threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    lines: List[str] = [
        f"ready after {seconds:.1f} s",
        *description_lines(model.description),
        f"workers: {settings.workers} {how}, {threads} each",
        f"limits: {settings.max_payload} bytes per body, {settings.timeout:g} s per prediction",
        f"program: sagemaker-mxnet-training {__version__}, Python {sys.version.split()[0]}",
    ]
    if settings.batch_size > 1:
        delay = settings.batch_delay
        lines.insert(-2, f"batches: up to {settings.batch_size} requests within {delay:g} s")
    return "\n".join(lines)


def _log_failure(log: Log, failure: Failure) -> int:
    kind = "" if failure.kind is FailureKind.MODEL else f" ({failure.kind.value})"
    headline = f"{failure.role.value} failed{kind}: {failure.reason}"
    if failure.reason.endswith(":"):
        # A traceback follows, and its last line is the cause.
        log.error("serve", f"{headline}\n{failure.detail}".rstrip())
        return 1
    if failure.detail:
        log.error("serve", failure.detail)
    log.error("serve", headline)
    return 1
