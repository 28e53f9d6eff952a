"""The workers of one model process: request, connect, watch and replace them."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable, Deque, Dict, Iterable, List, Mapping, Optional, Protocol

import psutil

from sagemaker_mxnet_serving import worker_frames
from sagemaker_mxnet_serving.front.endings import HOST, ending
from sagemaker_mxnet_serving.front.metrics import Metrics
from sagemaker_mxnet_serving.front.worker_links import ControlLink, WorkerLink
from sagemaker_mxnet_toolkit.container import OomMonitor
from sagemaker_mxnet_toolkit.failure import (
    Failure,
    FailureKind,
    Role,
    exit_status,
    start_error_reason,
)
from sagemaker_mxnet_toolkit.log import Log

MAX_FAILURES = 3
"""Processes that may fail in a row."""

RETRY_SECONDS = 1.0
"""Seconds between two attempts to start a process."""

_NO_DESCRIPTOR = OSError(errno.EMFILE, "")

_CLOSE_SECONDS = 0.1
"""Seconds in which the last frame of a worker that has ended is still read."""


class WorkerListener(Protocol):
    """Handles the events of workers. The model implements it, in a module above this one."""

    def worker_ready(self, link: WorkerLink, model: Mapping[str, Any]) -> None:
        """Handle a worker that has loaded the model, and described it."""

    def worker_answered(self, link: WorkerLink, items: List[worker_frames.Item]) -> None:
        """Handle the responses of a worker."""

    def worker_ending(self, link: WorkerLink) -> None:
        """Handle a worker that has ended, or is about to be killed."""

    def worker_lost(self, link: WorkerLink) -> List[str]:
        """Handle the loss of a worker; return the ids of the requests that it had."""

    def worker_failed(self, failure: Failure, last: bool) -> None:
        """Handle a worker that cannot start; ``last`` if too many others could not either."""


@dataclass(eq=False)
class _Worker:
    """A worker, until its process has ended and its connection is closed.

    Attributes:
        slot: its number among the workers of the model.
        link: its connection.
        connected: whether the connection is open.
        status: its return code, as in ``subprocess``, once the process has ended.
        requests: ids of the requests that it had when the connection was closed.
        load_failure: why it could not load the model, if it reported that.
        stopped: whether a signal such as SIGSTOP had stopped it at the last check.
        killed: whether this server has killed it, and has logged why.
    """

    slot: int
    link: WorkerLink
    connected: bool = True
    status: Optional[int] = None
    requests: List[str] = field(default_factory=list)
    load_failure: Optional[Failure] = None
    stopped: bool = False
    killed: bool = False

    def kill(self) -> None:
        """Kill its process. The id is not reused before the model process has reported the end."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.link.pid, signal.SIGKILL)

    def check_stopped(self) -> bool:
        """Return whether a signal has stopped it, now and at the last check."""
        before, self.stopped = self.stopped, _is_stopped(self.link.pid)
        return before and self.stopped


class Workers:
    """The workers that one model process forks.

    Args:
        name: the model's name in the log.
        own: the front's end of the control socket of the model process.
        on_gone: called when the connection of a worker or of the model process has been closed.
        listener: handles the events of workers.
        oom: counts the kernel's out-of-memory kills.
        log: the log.
        metrics: the metrics.
    """

    def __init__(
        self,
        name: str,
        own: socket.socket,
        on_gone: Callable[[], None],
        listener: WorkerListener,
        oom: OomMonitor,
        log: Log,
        metrics: Metrics,
    ) -> None:
        self._name = name
        self._listener = listener
        self._on_gone = on_gone
        self._oom = oom
        self._log = log
        self._metrics = metrics
        self._loop = asyncio.get_event_loop()
        self._control = ControlLink(self._loop, own, self._on_message, on_gone)
        self._closed = False
        self._workers: Dict[int, _Worker] = {}  # by process id
        # Slots that need a worker. The model process has the first of these requests only, since
        # the socket would not hold many.
        self._requested: Deque[int] = deque()
        # Requests in a row that failed, and workers in a row that ended before they were ready.
        self._unavailable = 0
        self._failed_starts = 0

    def request(self, slots: Iterable[int]) -> None:
        """Request a worker for each of these slots."""
        waiting = bool(self._requested)
        self._requested.extend(slots)
        if self._requested and not waiting:
            self._control.request(self._requested[0])

    def close(self) -> None:
        """Close the control socket, at which the model process ends with its workers."""
        self._closed = True
        self._control.close()

    def kill_stopped(self) -> None:
        """Kill workers that a signal such as SIGSTOP has stopped, now and at the last call."""
        connected = [worker for worker in self._workers.values() if worker.connected]
        stopped = [worker for worker in connected if worker.check_stopped()]
        for worker in stopped:
            # Before the first is killed: its requests must not be sent to another of them.
            self._listener.worker_ending(worker.link)
        for worker in stopped:
            self.kill(worker.link.pid, "was stopped by a signal")

    def kill(self, pid: int, why: str) -> None:
        """Kill a worker.

        Args:
            pid: its process id.
            why: the reason, as a predicate.
        """
        self._log.error(self._name, f"worker {pid} {why}; killing it")
        worker = self._workers.get(pid)
        if worker is not None and worker.status is None:
            worker.killed = True
            worker.kill()

    def _on_message(self, message: Mapping[str, Any], attached: Optional[socket.socket]) -> None:
        if "ended" in message:
            self._on_end(int(message["ended"]), int(message["status"]))
            return
        slot = self._requested.popleft()
        if attached is None:
            self._on_unavailable(slot, message.get("error") or start_error_reason(_NO_DESCRIPTOR))
        else:
            self._unavailable = 0
            pid = int(message["worker"])
            worker = _Worker(slot, WorkerLink(pid, self._on_frame, self._on_lost))
            self._workers[pid] = worker
            self._loop.create_task(self._connect(worker, attached))
        if self._requested:
            self._control.request(self._requested[0])

    def _on_unavailable(self, slot: int, why: str) -> None:
        """Request a worker again that could not be forked, or whose connection did not arrive.

        The kernel drops the connection if this process has reached its limit on open files
        (unix(7), SCM_RIGHTS); the worker then ends.
        """
        self._unavailable += 1
        reason = f"a worker cannot be started: {why}"
        if self._unavailable == 1:
            self._log.error(self._name, f"{reason}; retrying each second")
        elif self._unavailable == MAX_FAILURES:
            failure = Failure(HOST, Role.MODEL, reason, FailureKind.MODEL)
            self._listener.worker_failed(failure, last=False)
        self._loop.call_later(RETRY_SECONDS, self.request, [slot])

    async def _connect(self, worker: _Worker, attached: socket.socket) -> None:
        await self._loop.connect_accepted_socket(lambda: worker.link, attached)
        if worker.status is not None:
            self._close_soon(worker.link)

    def _close_soon(self, link: WorkerLink) -> None:
        """Close the connection to a worker that has ended, which its children may keep open."""
        self._loop.call_later(_CLOSE_SECONDS, link.close)

    def _on_frame(self, link: WorkerLink, items: List[worker_frames.Item]) -> None:
        if link.ready:
            self._listener.worker_answered(link, items)
        else:
            self._on_greeting(link, items[0][0])

    def _on_greeting(self, link: WorkerLink, greeting: Mapping[str, Any]) -> None:
        if greeting.get("ready"):
            link.ready = True
            self._failed_starts = 0
            self._listener.worker_ready(link, greeting["model"])
            return
        reason, detail = str(greeting.get("reason")), str(greeting.get("detail"))
        kind = FailureKind(greeting.get("kind"))
        failure = Failure(HOST, Role.MODEL, reason, kind, detail=detail)
        self._workers[link.pid].load_failure = failure
        self._listener.worker_failed(failure, last=False)

    def _on_lost(self, link: WorkerLink) -> None:
        worker = self._workers[link.pid]
        worker.connected = False
        if worker.status is None and not self._closed:
            # It is of no use without its connection.
            if link.fault:
                text = f"worker {link.pid} sent a malformed frame: {link.fault}; killing it"
                self._log.error(self._name, text)
                worker.killed = True
            worker.kill()
        worker.requests = self._listener.worker_lost(link)
        if worker.status is not None:
            self._replace(worker, worker.status)
        self._on_gone()

    def _on_end(self, pid: int, status: int) -> None:
        worker = self._workers.get(pid)
        if worker is None:  # its connection has never arrived
            return
        worker.status = status
        if worker.connected:
            self._listener.worker_ending(worker.link)
            self._close_soon(worker.link)
        else:
            self._replace(worker, status)

    def _replace(self, worker: _Worker, status: int) -> None:
        """Log how a worker ended, and request another one; its connection is closed too."""
        pid = worker.link.pid
        del self._workers[pid]
        if self._closed:
            return
        how, remedy, kind = ending(status, self._oom, killed=worker.killed)
        if worker.requests:
            how += f" while processing request {', '.join(worker.requests)}"
        self._metrics.restarted("worker")
        if not worker.link.ready:
            how += " before it was ready"
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILURES:
                reason = f"worker {pid} {how}, like {MAX_FAILURES - 1} others before it; {remedy}"
                failure = Failure(HOST, Role.MODEL, reason, kind, exit_status(status))
                self._listener.worker_failed(worker.load_failure or failure, last=True)
                return
        if worker.load_failure is not None:
            how = f"cannot load the model: {worker.load_failure.reason}"
        elif not worker.killed:
            how += f"; {remedy}"
        self._log.error(self._name, f"worker {pid} {how}; starting another one")
        self.request([worker.slot])


def _is_stopped(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False
