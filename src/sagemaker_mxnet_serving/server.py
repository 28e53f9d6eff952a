"""The server: one process that listens, answers, and owns everything else.

It never imports MXNet. ``serve`` reads as what happens: listen, load, answer, drain, end.
"""

import asyncio
import contextlib
import functools
import resource
import socket
import sys
import time
from typing import Any, Dict, List, Mapping, Optional

import uvloop

from sagemaker_mxnet_serving import description, packages, stops
from sagemaker_mxnet_serving.access_log import AccessLog
from sagemaker_mxnet_serving.application import Application
from sagemaker_mxnet_serving.configuration import PROGRAM, ServerSettings
from sagemaker_mxnet_serving.http_protocol import Connection, Connections
from sagemaker_mxnet_serving.metrics import Metrics, PrometheusMetrics
from sagemaker_mxnet_serving.models import Models
from sagemaker_mxnet_serving.processes import Processes
from sagemaker_mxnet_serving.served_model import STOP_SECONDS, Phase, ServedModel
from sagemaker_mxnet_toolkit import __version__
from sagemaker_mxnet_toolkit.errors import NetworkError
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind
from sagemaker_mxnet_toolkit.log import Log

DRAIN_SECONDS = 25.0
"""Seconds in which accepted requests are answered after SIGTERM; SIGKILL comes after 30."""

MODEL = "model"
"""The name of the only model in the log."""

_LINGER_SECONDS = 0.5
"""Seconds in which callers whose requests crossed the end are told, instead of cut off."""

_FLUSH_SECONDS = 2.0
_BACKLOG = 4096
_POLL = 0.01


def serve(settings: ServerSettings, environ: Mapping[str, str]) -> int:
    """Serve until SIGTERM or SIGINT, or until the model fails.

    Args:
        settings: what to do.
        environ: the environment of the processes that load models.

    Returns:
        The exit status: 0 after a signal, 1 after a failure, whose cause is the last line.
    """
    log = Log("localhost", settings.log_level, settings.secrets, program=PROGRAM)
    try:
        for note in settings.notes:
            log.warning("serve", note)
        listener = listen(settings.host, settings.port)
        _raise_file_limit()
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            with packages.installable(environ) as variables:
                failure = loop.run_until_complete(Server(settings, variables, log).run(listener))
        finally:
            loop.close()
    except NetworkError as error:
        log.error("serve", str(error))
        return 1
    else:
        return 0 if failure is None else _last_words(log, failure)
    finally:
        log.close()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        NetworkError: when nobody can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of a server that has just ended do not keep the next one from its port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise NetworkError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; expected a free "
            "port: end the program that has it, or set SAGEMAKER_BIND_TO_PORT or --port"
        ) from error
    listener.setblocking(False)
    return listener


class Server:
    """Everything that one run of a server owns.

    Args:
        settings: what to do.
        environ: the environment of the processes that load models.
        log: where it is said what happens.
    """

    def __init__(self, settings: ServerSettings, environ: Mapping[str, str], log: Log) -> None:
        self._settings = settings
        self._environ = environ
        self._log = log
        self._connections: Connections
        self._signals: asyncio.Queue[int] = asyncio.Queue()

    async def run(self, listener: socket.socket) -> Optional[Failure]:
        """Serve; return why that ended, if not by a signal."""
        loop = asyncio.get_event_loop()
        self._signals = asyncio.Queue()
        for number in stops.STOPS:
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        stops.let_through()
        loop.set_exception_handler(self._defect)
        processes = Processes(loop)
        metrics = Metrics()
        make = functools.partial(self._make, processes, lambda: metrics)
        models = Models(self._settings, make, self._log)
        failure: Optional[Failure] = None
        access_log = AccessLog(self._settings.access_log)
        try:
            metrics = self._metrics(models)
            application = Application(self._settings, models, access_log, metrics, self._log)
            self._connections = Connections(application, self._settings.max_payload)
            http = await loop.create_server(
                lambda: Connection(self._connections), sock=listener, backlog=_BACKLOG
            )
            clock = loop.create_task(self._look())
            failure = await self._serve(models)
            if failure is None:
                await self._drain(application, models)
            http.close()
            await self._disconnect()
            clock.cancel()
        finally:
            listener.close()
            await models.stop()
            await processes.end(STOP_SECONDS)
            metrics.close()
            access_log.close()
        return failure

    def _make(self, processes: Processes, metrics: Any, name: str, model_dir: str) -> ServedModel:
        return ServedModel(
            name, model_dir, self._settings, self._environ, processes, self._log, metrics()
        )

    def _metrics(self, models: Models) -> Metrics:
        port = self._settings.metrics_port
        if port is None:
            return Metrics()
        try:
            return PrometheusMetrics(
                self._settings.host, port, lambda: models.waiting, lambda: models.workers
            )
        except OSError as error:
            raise NetworkError(
                f"cannot listen on port {port} for metrics: {error.strerror or error}; expected a "
                "free port: set SAGEMAKER_MXNET_SERVING_METRICS_PORT to one"
            ) from error

    async def _serve(self, models: Models) -> Optional[Failure]:
        """Serve until a signal, or until the only model has failed."""
        address = f"{self._settings.host} port {self._settings.port}"
        signalled = asyncio.ensure_future(self._signals.get())
        if self._settings.multi_model:
            self._log("serve", f"ready for models below {self._settings.model_dir}: {address}")
            await signalled
            return None
        model = models.add(MODEL, self._settings.model_dir)
        self._log("serve", f"loading {model.model_dir}; listening on {address}")
        watch = asyncio.ensure_future(self._watch(model))
        await asyncio.wait([signalled, watch], return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            signalled.cancel()
            return watch.result()
        watch.cancel()
        return None

    async def _watch(self, model: ServedModel) -> Optional[Failure]:
        began = time.monotonic()
        if await model.wait_for(Phase.READY, Phase.FAILED) is Phase.READY:
            seconds = time.monotonic() - began
            self._log("serve", _start_up(self._settings, model, seconds))
            await model.wait_for(Phase.FAILED)
        return model.failure

    async def _drain(self, application: Application, models: Models) -> None:
        """Answer what was accepted; a second signal ends that at once."""
        application.draining = True
        deadline = time.monotonic() + DRAIN_SECONDS
        self._log("serve", f"stopping; requests under way: {application.active}")
        while application.active and time.monotonic() < deadline and self._signals.empty():
            await asyncio.sleep(_POLL)
        if application.active:
            self._log.error(
                "serve", f"requests that are not answered in time: {application.active}"
            )
            await models.settle(time.monotonic())
        linger = time.monotonic() + _LINGER_SECONDS
        while time.monotonic() < linger and self._signals.empty():
            await asyncio.sleep(_POLL)

    async def _disconnect(self) -> None:
        """Close all connections, once what was said on them has been taken."""
        self._connections.shut()
        deadline = time.monotonic() + _FLUSH_SECONDS
        while self._connections.open and time.monotonic() < deadline:
            await asyncio.sleep(_POLL)
        self._connections.abort()

    async def _look(self) -> None:
        while True:
            self._connections.look()
            await asyncio.sleep(1.0)

    def _defect(self, loop: asyncio.AbstractEventLoop, context: Dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, ConnectionError):
            text = context.get("message", "")
            self._log.error("serve", f"{text}: {type(error).__name__}: {error}")


def _start_up(settings: ServerSettings, model: ServedModel, seconds: float) -> str:
    """Return the block of lines about a server that can answer."""
    how = "that share the model" if settings.shared else "that each have the model"
    threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    lines: List[str] = [
        f"ready after {seconds:.1f} s",
        *description.lines(model.description),
        f"workers: {settings.workers} {how}, {threads} each",
        f"limits: {settings.max_payload} bytes of a body, {settings.timeout:g} s of a prediction",
        f"program: sagemaker-mxnet-training {__version__}, Python {sys.version.split()[0]}",
    ]
    if settings.batch_size > 1:
        delay = settings.batch_delay
        lines.insert(-2, f"batches: up to {settings.batch_size} requests within {delay:g} s")
    return "\n".join(lines)


def _last_words(log: Log, failure: Failure) -> int:
    kind = "" if failure.kind is FailureKind.MODEL else f" ({failure.kind.value})"
    headline = f"{failure.role.value} failed{kind}: {failure.reason}"
    if failure.reason.endswith(":"):
        # What follows says it, and its last line best: a traceback.
        log.error("serve", f"{headline}\n{failure.detail}".rstrip())
        return 1
    if failure.detail:
        log.error("serve", failure.detail)
    log.error("serve", headline)
    return 1


def _raise_file_limit() -> None:
    """Allow as many connections as the system does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
