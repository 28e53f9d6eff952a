"""The process table on an asyncio loop."""

import asyncio
import selectors
import signal
import time
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from sagemaker_mxnet_toolkit.processes import own_process
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec
from sagemaker_mxnet_toolkit.processes.table import ProcessTable

_POLL = 0.5
"""Seconds between two checks of the children. Most ends show earlier, in a closed socket."""

_SOON = 0.02

OnEvent = Callable[[Child, Mapping[str, Any]], None]
"""Called with a child and what it reports."""

OnExit = Callable[[Child], None]
"""Called when a child has ended."""


class Processes:
    """Starts and ends children, and reads their reports, on the thread of the loop.

    Args:
        loop: the running loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # The loop can wait for an epoll descriptor, so the table has a selector of its own.
        self._selector = selectors.EpollSelector()
        own_process.become_subreaper()
        self._callbacks: Dict[Child, Tuple[OnEvent, OnExit]] = {}
        self._table = ProcessTable(self._selector, self._on_event, self._on_exit)
        self._timer: Optional[asyncio.TimerHandle] = None
        loop.add_reader(self._selector.fileno(), self._on_readable)
        self.poll()

    def start(self, spec: ProcessSpec, on_event: OnEvent, on_exit: OnExit) -> Child:
        """Start a child.

        Raises:
            StartError: it cannot be started.
        """
        child = self._table.start(spec)
        self._callbacks[child] = on_event, on_exit
        return child

    def stop(self, child: Child, grace: float) -> None:
        """Terminate a child and its descendants; kill them after ``grace`` seconds."""
        number = signal.SIGTERM if grace else signal.SIGKILL
        self._table.stop([child], number, grace)
        self.poll_soon()

    def poll_soon(self) -> None:
        """Check shortly whether children have ended."""
        self._arm(_SOON)

    def poll(self) -> None:
        """Check whether children have ended."""
        self._arm(_POLL)  # also if this raises
        due = self._table.poll(time.monotonic())
        self._arm(min(_POLL, max(_SOON, due - time.monotonic())))

    async def end(self, grace: float) -> None:
        """Terminate all children and their descendants; return when they are gone."""
        while self._table.living():
            for child in self._table.living():
                self.stop(child, grace)
            await asyncio.sleep(_SOON)
        while not self._table.sweep(time.monotonic(), grace):
            await asyncio.sleep(_SOON)
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._selector.fileno())
        self._selector.close()

    def _arm(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self.poll)

    def _on_readable(self) -> None:
        self.poll_soon()
        for key, mask in self._selector.select(0):
            callback: Callable[[int], None] = key.data
            callback(mask)

    def _on_event(self, child: Child, event: Mapping[str, Any]) -> None:
        self._callbacks[child][0](child, event)

    def _on_exit(self, child: Child) -> None:
        self._callbacks.pop(child)[1](child)
