"""The workers of one model process: request, connect, watch and replace them."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterable, List, Mapping, Optional, Protocol, Set

import psutil

from sagemaker_mxnet_serving import worker_frames
from sagemaker_mxnet_serving.front.endings import HOST, Endings, kind_of
from sagemaker_mxnet_serving.front.metrics import Metrics
from sagemaker_mxnet_serving.front.worker_links import ControlLink, WorkerLink
from sagemaker_mxnet_toolkit.errors import start_error_reason
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role, exit_status
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


class Workers:
    """The workers that one model process forks.

    Args:
        name: the model's name in the log.
        own: the front's end of the control socket of the model process.
        on_gone: called when the connection of a worker or of the model process has been closed.
        listener: handles the events of workers.
        endings: describes how they ended.
        log: the log.
        metrics: the metrics.
    """

    def __init__(
        self,
        name: str,
        own: socket.socket,
        on_gone: Callable[[], None],
        listener: WorkerListener,
        endings: Endings,
        log: Log,
        metrics: Metrics,
    ) -> None:
        self._name = name
        self._listener = listener
        self._on_gone = on_gone
        self._endings = endings
        self._log = log
        self._metrics = metrics
        self._loop = asyncio.get_event_loop()
        self._control = ControlLink(self._loop, own, self._on_message, on_gone)
        self._links: Dict[int, WorkerLink] = {}
        # The slot of each worker, and the slots that are requested. The model process has the first
        # of these requests; the socket would not hold many.
        self._slots: Dict[int, int] = {}
        self._requested: Deque[int] = deque()
        # Requests in a row that failed.
        self._unavailable = 0
        # Exit status of workers whose connections are still open.
        self._ended: Dict[int, int] = {}
        # Ids of requests that lost workers had.
        self._lost_requests: Dict[int, List[str]] = {}
        self._stopped: Set[int] = set()
        # Workers that are starting, and those that failed to since the last one that did.
        self._starting: Set[int] = set()
        self._failed_starts: Dict[int, Failure] = {}

    def request(self, slots: Iterable[int]) -> None:
        """Request a worker for each of these slots."""
        waiting = bool(self._requested)
        self._requested.extend(slots)
        if self._requested and not waiting:
            self._control.request(self._requested[0])

    def close(self) -> None:
        """Close the control socket, at which the model process ends with its workers."""
        self._slots.clear()
        self._control.close()

    def kill_stopped(self) -> None:
        """Kill workers that a signal such as SIGSTOP has stopped, now and at the last call."""
        stopped = {pid for pid in self._links if _is_stopped(pid)}
        ending = stopped & self._stopped
        for pid in ending:
            # Before the first is killed: its requests must not be sent to another of them.
            self._listener.worker_ending(self._links[pid])
        for pid in ending:
            self.kill(pid, "was stopped by a signal")
        self._stopped = stopped

    def kill(self, pid: int, why: str) -> None:
        """Kill a worker.

        Args:
            pid: its process id.
            why: the reason, as a predicate.
        """
        self._log.error(self._name, f"worker {pid} {why}; killing it")
        # The process id is not reused before the model process has reported the end.
        if pid in self._links and pid not in self._ended:
            _kill(pid)

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
            self._slots[pid] = slot
            self._starting.add(pid)
            link = self._links[pid] = WorkerLink(pid, self._on_frame, self._on_lost)
            self._loop.create_task(self._connect(link, attached))
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

    async def _connect(self, link: WorkerLink, attached: socket.socket) -> None:
        await self._loop.connect_accepted_socket(lambda: link, attached)
        if link.pid in self._ended:
            self._close_soon(link)

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
            self._failed_starts.clear()
            self._starting.discard(link.pid)
            self._listener.worker_ready(link, greeting["model"])
            return
        reason, detail = str(greeting.get("reason")), str(greeting.get("detail"))
        kind = FailureKind(greeting.get("kind"))
        failure = Failure(HOST, Role.MODEL, reason, kind, detail=detail)
        self._failed_starts[link.pid] = failure
        self._listener.worker_failed(failure, last=False)

    def _on_lost(self, link: WorkerLink) -> None:
        self._links.pop(link.pid, None)
        status = self._ended.pop(link.pid, None)
        # A worker that still runs is of no use without its connection.
        if status is None and link.pid in self._slots:
            if link.fault:
                self._log.error(
                    self._name,
                    f"worker {link.pid} sent a malformed frame: {link.fault}; killing it",
                )
            _kill(link.pid)
        ids = self._listener.worker_lost(link)
        if ids:
            self._lost_requests[link.pid] = ids
        if status is not None:
            self._replace(link.pid, status)
        self._on_gone()

    def _on_end(self, pid: int, status: int) -> None:
        link = self._links.get(pid)
        if link is None:
            self._replace(pid, status)
            return
        self._ended[pid] = status
        self._listener.worker_ending(link)
        self._close_soon(link)

    def _replace(self, pid: int, status: int) -> None:
        """Log how a worker ended, and request another one; its connection is closed too."""
        slot = self._slots.pop(pid, None)
        if slot is None:
            return
        how = self._endings.how(status)
        kind = kind_of(how, FailureKind.MODEL)
        ids = self._lost_requests.pop(pid, None)
        if ids:
            how += f" while processing request {', '.join(ids)}"
        self._metrics.restarted("worker")
        if pid in self._starting:
            self._starting.discard(pid)
            reason = f"workers die when they start: {how}"
            failure = self._failed_starts.setdefault(
                pid,
                Failure(HOST, Role.MODEL, reason, kind, exit_status(status)),
            )
            if len(self._failed_starts) >= MAX_FAILURES:
                self._listener.worker_failed(failure, last=True)
                return
        self._log.error(self._name, f"worker {pid} {how}; starting another one")
        self.request([slot])


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False
