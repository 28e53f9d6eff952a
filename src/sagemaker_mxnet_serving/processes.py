"""The process table on an asyncio loop."""

import asyncio
import selectors
import signal
import time
from typing import Any, Callable, Dict, Mapping, Optional, Protocol

from sagemaker_mxnet_toolkit.processes import process
from sagemaker_mxnet_toolkit.processes.process import Child, ProcessSpec
from sagemaker_mxnet_toolkit.processes.table import ProcessTable

_POLL = 0.5
"""Seconds between two looks at children, whose ends mostly show in a closed socket before."""

_SOON = 0.02


class Owner(Protocol):
    """Who is told about a child."""

    def on_event(self, child: Child, event: Mapping[str, Any]) -> None:
        """Hear what the child reports."""

    def on_exit(self, child: Child) -> None:
        """Hear that the child has ended."""


class Processes:
    """Starts, hears and ends children, on the loop's own thread.

    Args:
        loop: the running loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # An epoll descriptor can itself be waited for, so that the table needs no other selector.
        self._selector = selectors.EpollSelector()
        process.become_subreaper()
        self._owners: Dict[Child, Owner] = {}
        self._table = ProcessTable(self._selector, self._on_event, self._on_exit)
        self._timer: Optional[asyncio.TimerHandle] = None
        loop.add_reader(self._selector.fileno(), self._hear)
        self.look()

    def start(self, spec: ProcessSpec, owner: Owner) -> Child:
        """Start a child; ``StartError`` if that is impossible."""
        child = self._table.start(spec)
        self._owners[child] = owner
        return child

    def stop(self, child: Child, grace: float) -> None:
        """Ask a child and all that it has started to end; kill them after ``grace`` seconds."""
        number = signal.SIGTERM if grace else signal.SIGKILL
        self._table.stop([child], number, grace)
        self.look_soon()

    def look_soon(self) -> None:
        """Look whether children have ended, after a moment in which that shows."""
        self._arm(_SOON)

    def look(self) -> None:
        """Look whether children have ended."""
        due = self._table.poll(time.monotonic())
        self._arm(min(_POLL, max(_SOON, due - time.monotonic())))

    async def end(self, grace: float) -> None:
        """End every child, and what children have left behind."""
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
        self._timer = self._loop.call_later(delay, self.look)

    def _hear(self) -> None:
        for key, mask in self._selector.select(0):
            callback: Callable[[int], None] = key.data
            callback(mask)
        self.look_soon()

    def _on_event(self, child: Child, event: Mapping[str, Any]) -> None:
        self._owners[child].on_event(child, event)

    def _on_exit(self, child: Child) -> None:
        self._owners.pop(child).on_exit(child)
