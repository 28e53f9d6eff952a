"""File operations that may block for minutes, done beside a loop that must not.

``fsync`` waits until the disk has taken what was written, and with gigabytes of dirty pages even
a small file waits for all of them. A loop that is silent for so long counts as dead.
"""

import os
import selectors
import threading
from typing import Any, Callable, Optional


class BackgroundCall:
    """Calls a function in a thread.

    The thread is a daemon: a call that never returns does not keep the program alive.

    Args:
        function: what to call, without arguments.
        selector: a selector whose data are callables that take the event mask, if ``on_done`` is
            to be called.
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
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
        if self._selector is not None:
            os.close(self._writer)  # which makes the other end readable

    def _finish(self, mask: int) -> None:
        assert self._selector is not None
        self._selector.unregister(self._reader)
        os.close(self._reader)
        if self._on_done is not None:
            self._on_done(self)

    def wait(self, timeout: float) -> bool:
        """Wait for the function, ``timeout`` seconds at the most; return whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised. Call it after the end."""
        if self._error is not None:
            raise self._error
        return self._value
