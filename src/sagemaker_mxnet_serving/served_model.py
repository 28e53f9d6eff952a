"""One model: its process, its workers and the requests that wait for them."""

import asyncio
import enum
import signal
import socket
import time
from typing import Any, Callable, Iterable, List, Mapping, Optional, Sequence, Union

from sagemaker_mxnet_serving import frames, plan
from sagemaker_mxnet_serving.configuration import ServerSettings
from sagemaker_mxnet_serving.dispatcher import (
    Action,
    Dispatcher,
    Kill,
    Limits,
    Refusal,
    Refuse,
    Send,
    Ticket,
)
from sagemaker_mxnet_serving.endings import HOST, Endings
from sagemaker_mxnet_serving.links import WorkerLink
from sagemaker_mxnet_serving.messages import Piece, Response
from sagemaker_mxnet_serving.metrics import Metrics
from sagemaker_mxnet_serving.processes import Processes
from sagemaker_mxnet_serving.workers import STRIKES, Workers
from sagemaker_mxnet_toolkit.code import preparation
from sagemaker_mxnet_toolkit.errors import StartError
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role
from sagemaker_mxnet_toolkit.log import Log
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec

STOP_SECONDS = 2.0
"""Seconds that processes of a model have to end, once nobody waits for an answer of theirs."""

_LOOK_SECONDS = 1.0


class Phase(enum.Enum):
    """What a model is doing."""

    INSTALLING = "installing"
    """What its code requires is being installed."""
    LOADING = "loading"
    """Its process loads it, or its first workers start."""
    READY = "ready"
    """It answers, or would if its workers were not being replaced."""
    FAILED = "failed"
    """It never will; ``ServedModel.failure`` says why."""
    STOPPED = "stopped"
    """Its processes are gone, as was asked for."""


class Call(Ticket):
    """A request with what is sent to a worker, and who waits for the answer.

    Attributes:
        fields: the request without its body, as a frame's header has it.
        body: the body, in the pieces in which it came.
        answer: called once, with a ``Response`` or a ``Refusal``.
    """

    __slots__ = ("answer", "body", "fields")

    def __init__(
        self,
        fields: Mapping[str, Any],
        body: Sequence[Piece],
        size: int,
        answer: Callable[[Union[Response, Refusal]], None],
    ) -> None:
        super().__init__(size)
        self.fields = fields
        self.body = body
        self.answer: Optional[Callable[[Union[Response, Refusal]], None]] = answer

    def settle(self, result: Union[Response, Refusal]) -> None:
        """Give the caller an answer, if it is still there."""
        self.body = ()
        answer, self.answer = self.answer, None
        if answer is not None:
            answer(result)


# long: most methods are the short answers that others ask for.
class ServedModel:
    """A model from its load to its end.

    Args:
        name: what it is called in the log and to callers.
        model_dir: where it is.
        settings: the server's.
        environ: the environment of its processes.
        processes: where they are started.
        log: told what happens.
        metrics: told what happens.

    Attributes:
        name: its name.
        model_dir: where it is.
        phase: what it is doing.
        failure: why it failed.
        description: what the model says about itself, once it is ready.
        changed: set whenever ``phase`` has changed.
        was_ready: whether it has answered, or could have. A model that is loaded again keeps the
            requests that come meanwhile.
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
        self.phase = Phase.INSTALLING
        self.failure: Optional[Failure] = None
        self.description: Mapping[str, Any] = {}
        self.changed = asyncio.Event()
        self.was_ready = False
        self._settings = settings
        self._environ = environ
        self._processes = processes
        self._log = log
        self._metrics = metrics
        self._loop = asyncio.get_event_loop()
        self._dispatcher = Dispatcher(
            Limits(settings.queue_size, settings.timeout, settings.batch_size, settings.batch_delay)
        )
        # What callers are told once no request is taken any more.
        self._refusal = Refusal.CLOSED
        self._child: Optional[Child] = None
        self._workers: Optional[Workers] = None
        self._endings = Endings()
        # Model processes that died since the last answer.
        self._strikes = 0
        self._timer: Optional[asyncio.TimerHandle] = None
        self._timer_due = 0.0
        self._look_timer: Optional[asyncio.TimerHandle] = None

    # What the server asks of a model.

    def start(self) -> None:
        """Begin to install, and then to load."""
        if preparation.install_needed(plan.code_dir(self._settings, self.model_dir)):
            self._start(plan.install(self._settings, self.model_dir, self._environ))
        else:
            self._load()
        self._look_timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    @property
    def can_answer(self) -> bool:
        """Whether a worker is there."""
        return self.phase is Phase.READY and self._dispatcher.workers > 0

    @property
    def unanswered(self) -> int:
        """How many requests wait for an answer."""
        return self._dispatcher.unanswered

    @property
    def workers(self) -> int:
        """How many workers can answer."""
        return self._dispatcher.workers

    @property
    def waiting(self) -> int:
        """How many of them wait for a worker."""
        return self._dispatcher.waiting

    def submit(self, call: Call) -> None:
        """Take a request."""
        self._do(self._dispatcher.submit(call, time.monotonic()))

    def cancel(self, call: Call) -> None:
        """Forget a request whose caller has gone."""
        self._dispatcher.cancel(call)
        call.body, call.answer = (), None

    def close(self) -> None:
        """Take no further request, as the model is to be unloaded; answer those that are here."""
        self._refusal = Refusal.UNLOADING
        self._dispatcher.close(self._refusal)

    async def wait_for(self, *phases: Phase) -> Phase:
        """Wait until the model is in one of some phases, and return which."""
        while self.phase not in phases:
            self.changed.clear()
            await self.changed.wait()
        return self.phase

    async def settle(self, deadline: float) -> None:
        """Wait until every request is answered, or the deadline (monotonic) has passed."""
        while self.unanswered and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        self._do(self._dispatcher.abandon(self._refusal))

    async def stop(self) -> None:
        """End all processes of the model; return when they are gone, and their memory free."""
        if self.phase is not Phase.FAILED:
            self._enter(Phase.STOPPED)
        self._do(self._dispatcher.abandon(self._refusal))
        self._end_processes(STOP_SECONDS)
        while self._child is not None:
            self.changed.clear()
            await self.changed.wait()

    # What the processes tell.

    def on_event(self, child: Child, event: Mapping[str, Any]) -> None:
        """Hear what a process of the model reports."""
        if event["event"] == "started" and self.phase is Phase.LOADING and child is self._child:
            assert self._workers is not None
            self._workers.order(range(self._settings.workers))

    def on_exit(self, child: Child) -> None:
        """Hear that the installation or the model process has ended."""
        # Workers are of its process group, and may not have noticed yet.
        child.signal(signal.SIGKILL)
        self._child = None
        self.changed.set()
        if self.phase is Phase.STOPPED or self.phase is Phase.FAILED:
            return
        if child.spec.role is Role.INSTALL:
            if child.returncode == 0:
                self._load()
            else:
                self._fail(self._endings.cause(child, FailureKind.REQUIREMENTS))
            return
        if self._workers is not None:
            self._workers.close()
        failure = self._endings.cause(child, FailureKind.MODEL)
        self._strikes += 1
        if not self.was_ready or self._strikes >= STRIKES:
            self._fail(failure)
            return
        self._log.error(self.name, f"{failure.reason}; the model is loaded again")
        self._metrics.restarted("model")
        self._load()

    # What the workers tell.

    def worker_ready(self, link: WorkerLink, model: Mapping[str, Any]) -> None:
        """Hear that a worker has come, and what its model says about itself."""
        self.description = model
        # Requests go together only where no function of the user's sees them.
        self._dispatcher.batching = bool(model.get("batchable"))
        actions = self._dispatcher.joined(link, time.monotonic())
        if self.phase is Phase.LOADING and self._dispatcher.workers == self._settings.workers:
            self.was_ready = True
            self._enter(Phase.READY)
        self._do(actions)

    def worker_answered(self, link: WorkerLink, items: List[frames.Item]) -> None:
        """Hear what a worker answers."""
        responses = [frames.to_response(item) for item in items]
        if len(responses) != len(self._dispatcher.held(link)):
            raise frames.FrameError("not as many answers as requests")
        tickets, actions = self._dispatcher.answered(link, time.monotonic())
        for ticket, response in zip(tickets, responses):
            assert isinstance(ticket, Call)
            ticket.settle(response)
        self._strikes = 0
        self._do(actions)

    def worker_doomed(self, link: WorkerLink) -> None:
        """Hear that a worker has ended, or is about to be killed."""
        self._dispatcher.retire(link)

    def worker_lost(self, link: WorkerLink) -> List[str]:
        """Hear that a worker is gone; return the ids of the requests that it had."""
        over = [str(c.fields["id"]) for c in self._dispatcher.held(link) if isinstance(c, Call)]
        self._do(self._dispatcher.lost(link, time.monotonic()))
        return over

    def worker_failed(self, failure: Failure, last: bool) -> None:
        """Hear that a worker cannot start, and whether enough others could not."""
        if last or not self.was_ready:
            self._fail(failure)

    # What follows.

    def _start(self, spec: ProcessSpec) -> None:
        try:
            self._child = self._processes.start(spec, self)
        except StartError as error:
            self._fail(Failure(HOST, spec.role, str(error), FailureKind.MODEL))

    def _load(self) -> None:
        self._enter(Phase.LOADING)
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._workers = Workers(
                self.name,
                own,
                self._processes.look_soon,
                self,
                self._endings,
                self._log,
                self._metrics,
            )
            self._start(
                plan.model(self._settings, self.name, self.model_dir, other.fileno(), self._environ)
            )

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Refuse):
                assert isinstance(action.ticket, Call)
                action.ticket.settle(action.refusal)
            elif isinstance(action, Send):
                self._send(action)
            elif isinstance(action, Kill):
                assert isinstance(action.worker, WorkerLink) and self._workers is not None
                self._workers.kill(
                    action.worker.pid,
                    f"takes longer than {self._settings.timeout:g} s for a request",
                )
        if self._timer is not None and not self._settings.batch_delay:
            return  # nothing new is due before what was under way already
        due = self._dispatcher.due()
        if due is not None and (self._timer is None or due < self._timer_due):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = due
            self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._tick)

    def _send(self, action: Send) -> None:
        assert isinstance(action.worker, WorkerLink)
        calls = [ticket for ticket in action.tickets if isinstance(ticket, Call)]
        self._metrics.batch(len(calls))
        action.worker.send(frames.encode([(call.fields, call.body) for call in calls]))

    def _tick(self) -> None:
        self._timer = None
        self._do(self._dispatcher.tick(time.monotonic()))

    def _look(self) -> None:
        """Kill what has been stopped, as by SIGSTOP: it would answer nothing."""
        self._look_timer = self._loop.call_later(_LOOK_SECONDS, self._look)
        if self._workers is not None:
            self._workers.look()
        child = self._child
        since = None if child is None else child.frozen_since
        if since is not None and time.monotonic() - since > 2 * _LOOK_SECONDS:
            assert child is not None
            self._log.error(self.name, "the model process is stopped by a signal: it is killed")
            child.signal(signal.SIGKILL)

    def _fail(self, failure: Failure) -> None:
        self.failure = failure
        self._enter(Phase.FAILED)
        self._do(self._dispatcher.abandon(Refusal.NO_MODEL))
        self._end_processes(0.0)

    def _end_processes(self, grace: float) -> None:
        for timer in (self._timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        if self._workers is not None:
            self._workers.close()
        if self._child is not None:
            self._processes.stop(self._child, grace)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.changed.set()
