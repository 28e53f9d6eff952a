"""The workers of one model process: ordered from it, connected, watched, replaced when they die."""

import asyncio
import contextlib
import os
import signal
import socket
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Protocol, Set

from sagemaker_mxnet_serving import frames
from sagemaker_mxnet_serving.endings import HOST, Endings, kind_of
from sagemaker_mxnet_serving.links import ControlLink, WorkerLink
from sagemaker_mxnet_serving.metrics import Metrics
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role, exit_status
from sagemaker_mxnet_toolkit.log import Log

STRIKES = 3
"""Processes that may die one after another without one that does its work."""

_AGAIN_SECONDS = 1.0
"""Seconds until a worker is ordered again whose connection could not be had."""

_LAST_WORDS_SECONDS = 0.1
"""Seconds in which what a worker said before it ended is still read."""


class Owner(Protocol):
    """Who gives the workers something to do."""

    def worker_ready(self, link: WorkerLink, model: Mapping[str, Any]) -> None:
        """Hear that a worker has come, and what its model says about itself."""

    def worker_answered(self, link: WorkerLink, items: List[frames.Item]) -> None:
        """Hear what a worker answers."""

    def worker_doomed(self, link: WorkerLink) -> None:
        """Hear that a worker has ended, or is about to be killed: it gets nothing more."""

    def worker_lost(self, link: WorkerLink) -> List[str]:
        """Hear that a worker is gone; return the ids of the requests that it had."""

    def worker_failed(self, failure: Failure, last: bool) -> None:
        """Hear that a worker cannot start, and whether enough others could not."""


class Workers:
    """The workers that one model process makes.

    Args:
        name: the model's name in the log.
        own: the front's end of the control socket of the model process.
        on_gone: called when a worker's connection, or that of the model process, has been closed.
        owner: who gives them something to do.
        endings: says how they ended.
        log: told what happens.
        metrics: told the same.
    """

    def __init__(
        self,
        name: str,
        own: socket.socket,
        on_gone: Callable[[], None],
        owner: Owner,
        endings: Endings,
        log: Log,
        metrics: Metrics,
    ) -> None:
        self._name = name
        self._owner = owner
        self._on_gone = on_gone
        self._endings = endings
        self._log = log
        self._metrics = metrics
        self._loop = asyncio.get_event_loop()
        self._control = ControlLink(self._loop, own, self._on_message, on_gone)
        self._links: Dict[int, WorkerLink] = {}
        # The place that each takes, and those of the ones that are still to come.
        self._slots: Dict[int, int] = {}
        self._ordered: List[int] = []
        # Whether the log has that a connection could not be had, since the last that could.
        self._told_of_limit = False
        # How those ended whose connections are still open.
        self._ended: Dict[int, int] = {}
        # What those that have gone were doing.
        self._over: Dict[int, str] = {}
        self._frozen: Set[int] = set()
        # Those that are starting, and those that failed to since the last one that did.
        self._starting: Set[int] = set()
        self._failed_starts: Dict[int, Failure] = {}

    def order(self, slots: Iterable[int]) -> None:
        """Ask for a worker in each of these places."""
        for slot in slots:
            self._ordered.append(slot)
            self._control.order(slot)

    def close(self) -> None:
        """Let the model process end, and its workers with it; replace none of them any more."""
        self._slots.clear()
        self._control.close()

    def look(self) -> None:
        """Kill those that have been stopped, as by SIGSTOP: they would answer nothing."""
        stopped = {pid for pid in self._links if _is_stopped(pid)}
        doomed = stopped & self._frozen
        for pid in doomed:
            # Before any of them goes: what it had must not go to the next of them.
            self._owner.worker_doomed(self._links[pid])
        for pid in doomed:
            self.kill(pid, "is stopped by a signal and does not go on")
        self._frozen = stopped

    def kill(self, pid: int, why: str) -> None:
        """Kill a worker.

        Args:
            pid: its process id.
            why: for the log, after its name.
        """
        self._log.error(self._name, f"worker {pid} {why}: it is killed")
        # Its process id is its own until its end is told.
        if pid in self._links and pid not in self._ended:
            _kill(pid)

    def _on_message(self, message: Mapping[str, Any], attached: Optional[socket.socket]) -> None:
        if "worker" in message and attached is None:
            self._order_again(self._ordered.pop(0))
        elif attached is not None:
            self._told_of_limit = False
            pid = int(message["worker"])
            self._slots[pid] = self._ordered.pop(0)
            self._starting.add(pid)
            link = self._links[pid] = WorkerLink(pid, self._on_frame, self._on_lost)
            self._loop.create_task(self._connect(link, attached))
        elif "ended" in message:
            self._on_end(int(message["ended"]), int(message["status"]))

    def _order_again(self, slot: int) -> None:
        """Order a worker once more, whose connection the kernel could not give us.

        It does not where this process has as many files open as it may (unix(7), SCM_RIGHTS); the
        worker, alone on its connection, ends.
        """
        if not self._told_of_limit:
            self._told_of_limit = True
            self._log.error(self._name, "too many open files for a worker's connection; trying on")
        self._loop.call_later(_AGAIN_SECONDS, self.order, [slot])

    async def _connect(self, link: WorkerLink, attached: socket.socket) -> None:
        await self._loop.connect_accepted_socket(lambda: link, attached)
        if link.pid in self._ended:
            self._close_soon(link)

    def _close_soon(self, link: WorkerLink) -> None:
        """Close the connection to a worker that has ended: what it has forked may hold it open."""
        self._loop.call_later(_LAST_WORDS_SECONDS, link.close)

    def _on_frame(self, link: WorkerLink, items: List[frames.Item]) -> None:
        if link.ready:
            self._owner.worker_answered(link, items)
        else:
            self._on_greeting(link, items[0][0])

    def _on_greeting(self, link: WorkerLink, greeting: Mapping[str, Any]) -> None:
        if greeting.get("ready"):
            link.ready = True
            self._failed_starts.clear()
            self._starting.discard(link.pid)
            self._owner.worker_ready(link, greeting["model"])
            return
        reason, detail = str(greeting.get("reason")), str(greeting.get("detail"))
        kind = FailureKind(greeting.get("kind"))
        failure = Failure(HOST, Role.MODEL, reason, kind, detail=detail)
        self._failed_starts[link.pid] = failure
        self._owner.worker_failed(failure, last=False)

    def _on_lost(self, link: WorkerLink) -> None:
        self._links.pop(link.pid, None)
        status = self._ended.pop(link.pid, None)
        # A worker without its connection is of no use, if it is still there.
        if status is None and link.pid in self._slots:
            _kill(link.pid)
        over = self._owner.worker_lost(link)
        if over:
            self._over[link.pid] = f" over request {', '.join(over)}"
        if status is not None:
            self._replace(link.pid, status)
        self._on_gone()

    def _on_end(self, pid: int, status: int) -> None:
        link = self._links.get(pid)
        if link is None:
            self._replace(pid, status)
            return
        self._ended[pid] = status
        self._owner.worker_doomed(link)
        self._close_soon(link)

    def _replace(self, pid: int, status: int) -> None:
        """Say how a worker ended, and order another one, once its connection is closed, too."""
        slot = self._slots.pop(pid, None)
        if slot is None:
            return
        how = self._endings.how(status)
        kind = kind_of(how, FailureKind.MODEL)
        how += self._over.pop(pid, "")
        self._metrics.restarted("worker")
        if pid in self._starting:
            self._starting.discard(pid)
            reason = f"workers die at their start: {how}"
            failure = self._failed_starts.setdefault(
                pid,
                Failure(HOST, Role.MODEL, reason, kind, exit_status(status)),
            )
            if len(self._failed_starts) >= STRIKES:
                self._owner.worker_failed(failure, last=True)
                return
        self._log.error(self._name, f"worker {pid} {how}; another one takes its place")
        self.order([slot])


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[0] == b"T"
    except (OSError, IndexError):
        return False
