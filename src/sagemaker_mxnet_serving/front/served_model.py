"""One model: its process, its workers and the requests that wait for them."""

import asyncio
import enum
import signal
import socket
import time
from dataclasses import replace
from typing import Any, Iterable, List, Mapping, Optional

from sagemaker_mxnet_serving import worker_frames
from sagemaker_mxnet_serving.front import process_specs
from sagemaker_mxnet_serving.front.child_processes import Processes
from sagemaker_mxnet_serving.front.dispatcher import (
    Action,
    Dispatcher,
    Kill,
    Limits,
    Reject,
    Rejection,
    Send,
)
from sagemaker_mxnet_serving.front.endings import HOST, cause
from sagemaker_mxnet_serving.front.http_request import HttpRequest
from sagemaker_mxnet_serving.front.metrics import Metrics
from sagemaker_mxnet_serving.front.server_settings import ServerSettings
from sagemaker_mxnet_serving.front.worker_links import WorkerLink
from sagemaker_mxnet_serving.front.workers import MAX_FAILURES, RETRY_SECONDS, Workers
from sagemaker_mxnet_toolkit.code import preparation
from sagemaker_mxnet_toolkit.container import OomMonitor
from sagemaker_mxnet_toolkit.failure import (
    Failure,
    FailureKind,
    Role,
    StartError,
    start_error_reason,
)
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec

STOP_SECONDS = 2.0
"""Seconds that the processes of a model have to end."""

_CHECK_SECONDS = 1.0
"""Seconds between two checks for out-of-memory kills, and for stopped processes."""


class ModelPhase(enum.Enum):
    """What a model is doing."""

    INSTALLING = "installing"
    """Its code is being downloaded, or its requirements are being installed."""
    LOADING = "loading"
    """Its process loads it, or its workers start."""
    READY = "ready"
    """It answers, though workers may be being replaced."""
    FAILED = "failed"
    """It cannot be served; ``ServedModel.failure`` says why."""
    STOPPED = "stopped"
    """It was stopped, and its processes end."""


# long: many short methods.
class ServedModel:
    """A model from its load to its end.

    Args:
        name: its name, in the log and for clients.
        model_dir: its directory.
        settings: the server's settings.
        environ: the environment of its processes.
        processes: starts its processes.
        log: the log.
        metrics: the metrics.

    Attributes:
        name: its name.
        model_dir: its directory.
        settings: the server's; ``load_in_workers`` is set once the script has started threads.
        phase: its phase.
        failure: why it failed.
        description: what ``LoadedModel.describe`` returns, once the model is ready.
        changed: set whenever ``phase`` changes.
        was_ready: whether it has been ready. A model that is loaded again keeps its requests.
    """

    def __init__(
        self,
        name: str,
        model_dir: str,
        settings: ServerSettings,
        environ: Mapping[str, str],
        processes: Processes,
        log: Log,
        metrics: Metrics,
    ) -> None:
        self.name = name
        self.model_dir = model_dir
        self.phase = ModelPhase.INSTALLING
        self.failure: Optional[Failure] = None
        self.description: Mapping[str, Any] = {}
        self.changed = asyncio.Event()
        self.was_ready = False
        self.settings = settings
        self._environ = environ
        self._processes = processes
        self._log = log
        self._metrics = metrics
        self._loop = asyncio.get_event_loop()
        self._dispatcher = Dispatcher(
            Limits(settings.queue_size, settings.timeout, settings.batch_size, settings.batch_delay)
        )
        # Why requests are rejected once the model is closed.
        self._rejection = Rejection.CLOSED
        self._child: Optional[Child] = None
        # The model process that ended because it must not fork workers.
        self._threads_in: Optional[Child] = None
        self._workers: Optional[Workers] = None
        self._oom = OomMonitor(time.monotonic())
        # Model processes that died since the last response.
        self._failure_count = 0
        self._timer: Optional[asyncio.TimerHandle] = None
        self._timer_due = 0.0
        self._check_timer: Optional[asyncio.TimerHandle] = None

    # Called by the server.

    def start(self) -> None:
        """Start to download the code, to install its requirements, and then to load the model."""
        if self.settings.code_source:
            self._start(process_specs.fetch(self.settings, self._environ))
        else:
            self._install()
        self._check_timer = self._loop.call_later(_CHECK_SECONDS, self._check)

    @property
    def can_answer(self) -> bool:
        """Whether a worker can answer."""
        return self.phase is ModelPhase.READY and self._dispatcher.workers > 0

    @property
    def unanswered(self) -> int:
        """How many requests are not answered yet."""
        return self._dispatcher.unanswered

    @property
    def workers(self) -> int:
        """How many workers can answer."""
        return self._dispatcher.workers

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker."""
        return self._dispatcher.waiting

    def submit(self, request: HttpRequest) -> None:
        """Queue a request, or reject it."""
        self._execute(self._dispatcher.submit(request, time.monotonic()))

    def cancel(self, request: HttpRequest) -> None:
        """Cancel a request whose client has disconnected."""
        self._dispatcher.cancel(request)
        request.pieces, request.on_result = [], None

    def close(self) -> None:
        """Reject further requests, because the model is being unloaded."""
        self._rejection = Rejection.UNLOADING
        self._dispatcher.close(self._rejection)

    async def wait_for(self, *phases: ModelPhase) -> ModelPhase:
        """Wait until the model is in one of these phases, and return it."""
        while self.phase not in phases:
            self.changed.clear()
            await self.changed.wait()
        return self.phase

    async def drain(self, deadline: float) -> None:
        """Wait until all requests are answered; reject the rest at the deadline (monotonic)."""
        while self.unanswered and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self._execute(self._dispatcher.abandon(self._rejection))

    async def stop(self) -> None:
        """Terminate the processes of the model; return when they and their memory are gone."""
        if self.phase is not ModelPhase.FAILED:
            self._enter(ModelPhase.STOPPED)
        self._execute(self._dispatcher.abandon(self._rejection))
        self._end_processes(STOP_SECONDS)
        while self._child is not None:
            self.changed.clear()
            await self.changed.wait()

    # Called by the process table.

    def _on_event(self, child: Child, event: Mapping[str, Any]) -> None:
        """Handle a report of one of the model's processes."""
        if event["event"] == "threads":
            self._log.warning(
                self.name,
                f"the script has started threads ({', '.join(event['names'])}), which a forked "
                "worker would not have; each worker loads the model itself; set "
                "SAGEMAKER_MXNET_SERVING_LOAD_IN_WORKERS=true to skip the first load",
            )
            self.settings = replace(self.settings, load_in_workers=True)
            self._threads_in = child
        elif (
            event["event"] == "started"
            and self.phase is ModelPhase.LOADING
            and child is self._child
        ):
            assert self._workers is not None
            self._workers.request(range(self.settings.workers))

    def _on_exit(self, child: Child) -> None:
        """Handle the end of the download, of the installation or of the model process."""
        # Workers are in its process group, and may not have noticed yet.
        child.signal(signal.SIGKILL)
        self._child = None
        self.changed.set()
        if self.phase is ModelPhase.STOPPED or self.phase is ModelPhase.FAILED:
            return
        if child.spec.role is Role.FETCH:
            if child.returncode == 0:
                self._install()
            else:
                self._fail(cause(child, self._oom, FailureKind.CODE))
            return
        if child.spec.role is Role.INSTALL:
            if child.returncode == 0:
                self._load()
            else:
                self._fail(cause(child, self._oom, FailureKind.REQUIREMENTS))
            return
        if self._workers is not None:
            self._workers.close()
        if child is self._threads_in:
            self._load()
            return
        self._load_again(cause(child, self._oom, FailureKind.MODEL), 0.0)

    # Called by the workers.

    def worker_ready(self, link: WorkerLink, model: Mapping[str, Any]) -> None:
        """Handle a worker that has loaded the model, and described it."""
        self.description = model
        # Requests are batched only if no function of the script handles them.
        self._dispatcher.batching = bool(model.get("batchable"))
        actions = self._dispatcher.joined(link, time.monotonic())
        if self.phase is ModelPhase.LOADING and self._dispatcher.workers == self.settings.workers:
            self.was_ready = True
            self._enter(ModelPhase.READY)
        self._execute(actions)

    def worker_answered(self, link: WorkerLink, items: List[worker_frames.Item]) -> None:
        """Handle the responses of a worker."""
        if [fields.get("id") for fields, _ in items] != self._assigned_ids(link):
            raise worker_frames.FrameError("responses to requests that it does not have")
        responses = [worker_frames.to_response(item) for item in items]
        requests, actions = self._dispatcher.answered(link, time.monotonic())
        for request, response in zip(requests, responses):
            assert isinstance(request, HttpRequest)
            request.resolve(response)
        self._failure_count = 0
        self._execute(actions)

    def worker_ending(self, link: WorkerLink) -> None:
        """Handle a worker that has ended, or is about to be killed."""
        self._dispatcher.retire(link)

    def worker_lost(self, link: WorkerLink) -> List[str]:
        """Handle the loss of a worker; return the ids of the requests that it had."""
        ids = self._assigned_ids(link)
        self._execute(self._dispatcher.lost(link, time.monotonic(), link.unread))
        return ids

    def worker_failed(self, failure: Failure, last: bool) -> None:
        """Handle a worker that cannot start; ``last`` if too many others could not either."""
        if last or not self.was_ready:
            self._fail(failure)

    # Transitions.

    def _start(self, spec: ProcessSpec) -> None:
        try:
            self._child = self._processes.start(spec, self._on_event, self._on_exit)
        except StartError as error:
            failure = Failure(HOST, spec.role, str(error), FailureKind.MODEL)
            self._load_again(failure, RETRY_SECONDS)

    def _load_again(self, failure: Failure, delay: float) -> None:
        """Load the model again, unless it was never ready or has failed too often."""
        self._failure_count += 1
        if not self.was_ready or self._failure_count >= MAX_FAILURES:
            self._fail(failure)
            return
        self._log.error(self.name, f"{failure.reason}; loading the model again")
        self._metrics.restarted("model")
        self._loop.call_later(delay, self._load)

    def _install(self) -> None:
        if preparation.install_needed(process_specs.code_dir(self.settings, self.model_dir)):
            self._start(process_specs.install(self.settings, self.model_dir, self._environ))
        else:
            self._load()

    def _load(self) -> None:
        if self.phase is ModelPhase.STOPPED or self.phase is ModelPhase.FAILED:
            return
        self._enter(ModelPhase.LOADING)
        try:
            own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            reason = f"the model process cannot be started: {start_error_reason(error)}"
            failure = Failure(HOST, Role.MODEL, reason, FailureKind.MODEL)
            self._load_again(failure, RETRY_SECONDS)
            return
        with other:
            self._workers = Workers(
                self.name,
                own,
                self._processes.poll_soon,
                self,
                self._oom,
                self._log,
                self._metrics,
            )
            self._start(
                process_specs.model(
                    self.settings, self.name, self.model_dir, other.fileno(), self._environ
                )
            )

    def _execute(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Reject):
                assert isinstance(action.request, HttpRequest)
                action.request.resolve(action.rejection)
            elif isinstance(action, Send):
                self._send(action)
            elif isinstance(action, Kill):
                assert isinstance(action.worker, WorkerLink) and self._workers is not None
                self._workers.kill(
                    action.worker.pid,
                    f"takes longer than {self.settings.timeout:g} s for a request",
                )
        if self._timer is not None and not self.settings.batch_delay:
            return  # without a batch delay nothing new is due before the timer
        due = self._dispatcher.due()
        if due is not None and (self._timer is None or due < self._timer_due):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = due
            self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._tick)

    def _send(self, action: Send) -> None:
        assert isinstance(action.worker, WorkerLink)
        self._metrics.batch(len(action.requests))
        items = [
            ({"id": request.id, "headers": request.headers}, request.pieces)
            for request in action.requests
            if isinstance(request, HttpRequest)
        ]
        action.worker.send(worker_frames.encode(items))

    def _assigned_ids(self, link: WorkerLink) -> List[str]:
        requests = self._dispatcher.assigned(link)
        return [request.id for request in requests if isinstance(request, HttpRequest)]

    def _tick(self) -> None:
        self._timer = None
        self._execute(self._dispatcher.tick(time.monotonic()))

    def _check(self) -> None:
        """Count out-of-memory kills, and kill processes that a signal such as SIGSTOP has stopped.

        The stopped processes would never answer.
        """
        self._check_timer = self._loop.call_later(_CHECK_SECONDS, self._check)
        self._oom.poll(time.monotonic())
        if self._workers is not None:
            self._workers.kill_stopped()
        child = self._child
        since = None if child is None else child.frozen_since
        if since is not None and time.monotonic() - since > 2 * _CHECK_SECONDS:
            assert child is not None
            self._log.error(self.name, "the model process was stopped by a signal; killing it")
            child.signal(signal.SIGKILL)

    def _fail(self, failure: Failure) -> None:
        self.failure = failure
        self._enter(ModelPhase.FAILED)
        self._execute(self._dispatcher.abandon(Rejection.NO_MODEL))
        self._end_processes(0.0)

    def _end_processes(self, grace: float) -> None:
        for timer in (self._timer, self._check_timer):
            if timer is not None:
                timer.cancel()
        if self._workers is not None:
            self._workers.close()
        if self._child is not None:
            self._processes.stop(self._child, grace)

    def _enter(self, phase: ModelPhase) -> None:
        self.phase = phase
        self.changed.set()
