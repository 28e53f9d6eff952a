"""Runs file operations that may block for minutes in a thread.

With gigabytes of dirty pages, ``fsync`` of even a small file may wait for all of them. An event
loop that blocks for so long would miss its heartbeats.
"""

import os
import selectors
import threading
from typing import Any, Callable, Optional


class BackgroundCall:
    """Calls a function in a daemon thread.

    Args:
        function: a function without arguments.
        selector: calls ``on_done``; its data are callables that take the event mask.
        on_done: called once from the selector's loop when the function has returned or raised.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        selector: Optional[selectors.BaseSelector] = None,
        on_done: Optional[Callable[["BackgroundCall"], None]] = None,
    ) -> None:
        self._function = function
        self._selector = selector
        self._on_done = on_done
        self._value: Any = None
        self._error: Optional[BaseException] = None
        self._reader, self._writer = -1, -1
        if selector is not None:
            self._reader, self._writer = os.pipe()
            selector.register(self._reader, selectors.EVENT_READ, self._finish)
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the limit on processes and threads is reached
            self._run()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
        if self._selector is not None:
            os.close(self._writer)  # makes the other end readable

    def _finish(self, mask: int) -> None:
        assert self._selector is not None
        self._selector.unregister(self._reader)
        os.close(self._reader)
        if self._on_done is not None:
            self._on_done(self)

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds for the function; return whether it has finished."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised. Call ``wait`` first."""
        if self._error is not None:
            raise self._error
        return self._value
