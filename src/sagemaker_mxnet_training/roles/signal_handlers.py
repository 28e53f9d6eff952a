"""Makes sure that a signal handler of the script runs, and that its ``sys.exit`` ends the script.

Python runs signal handlers in the main thread, between two bytecode instructions. That fails a
script that trains with MXNet in two ways:

- A worker that waits in MXNet for the push of another worker executes no instruction. When the
  other worker has been asked to stop too, the wait never ends, and no checkpoint is written. After
  ``PATIENCE`` seconds the handler is therefore called in a thread of its own. It runs once either
  way.
- Where the instruction belongs to a destructor, such as that of ``NDArray``, Python prints
  "Exception ignored" and drops the handler's ``SystemExit``. Here it ends the script all the same.
"""

import os
import signal
import sys
import threading
import time
import types
from typing import Any, Callable, Dict, Optional

PATIENCE = 1.0
"""Seconds that the main thread has to run a handler itself."""

_SLACK = 0.5
"""Seconds by which the main thread may be quicker than the thread that watches it."""


class _Handler:
    """A script's handler that records when it was called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.called = float("-inf")
        self.exit: Optional[SystemExit] = None

    def __call__(self, number: int, frame: Optional[types.FrameType]) -> Any:
        self.called = time.monotonic()
        try:
            return self.function(number, frame)
        except SystemExit as error:
            self.exit = error
            raise


def watch(on_error: Callable[[BaseException], None]) -> None:
    """Watch all handlers that are set from here on in this process, and not in its children.

    Args:
        on_error: called with an exception that a handler raised where Python would drop it;
            usually ``SystemExit``.
    """
    handlers: Dict[int, _Handler] = {}
    watcher = _Watcher(handlers, on_error)
    _wrap_handlers(handlers, watcher.start)
    _catch_dropped_exits(handlers, on_error)


class _Watcher:
    """Calls the handlers that the main thread does not, from the first one that is set.

    Args:
        handlers: those that are set, by signal number.
        on_error: called with what a handler raised.
    """

    def __init__(
        self, handlers: Dict[int, _Handler], on_error: Callable[[BaseException], None]
    ) -> None:
        self._handlers = handlers
        self._on_error = on_error
        self._pid = os.getpid()
        self._started = False

    def start(self) -> None:
        """Begin to watch, in the main thread of the process that runs the script."""
        is_main = threading.current_thread() is threading.main_thread()
        if self._started or os.getpid() != self._pid or not is_main:
            return
        # Most scripts set no handler, and get to their first line some milliseconds earlier.
        from sagemaker_mxnet_training.roles import signal_arrivals  # noqa: PLC0415

        arrivals = signal_arrivals.listen()
        if arrivals is None:
            return
        self._started = True

        def listen() -> None:
            for number in signal_arrivals.numbers(arrivals):
                handler = self._handlers.get(number)
                if handler is not None:
                    self._in_a_thread(self._call_if_missed, number, handler)

        self._in_a_thread(listen)

    def _in_a_thread(self, target: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, name="signal-handlers", daemon=True).start()

    def _call_if_missed(self, number: int, handler: _Handler) -> None:
        since = time.monotonic() - _SLACK
        time.sleep(PATIENCE)
        if handler.called >= since or self._handlers.get(number) is not handler:
            return
        try:
            handler(number, None)
        except BaseException as error:
            self._on_error(error)


def _wrap_handlers(handlers: Dict[int, _Handler], on_set: Callable[[], None]) -> None:
    """Wrap each handler that the script sets, and keep it in ``handlers``.

    Args:
        handlers: those that are set, by signal number.
        on_set: called before a handler is set.
    """
    set_handler, get_handler = signal.signal, signal.getsignal

    def unwrapped(handler: Any) -> Any:
        return handler.function if isinstance(handler, _Handler) else handler

    # The script continues to see the handlers that it set.
    def signal_(signalnum: int, handler: Any) -> Any:
        if callable(handler) and handler is not signal.default_int_handler:
            on_set()
            handler = handlers[signalnum] = _Handler(handler)
        else:
            handlers.pop(signalnum, None)
        return unwrapped(set_handler(signalnum, handler))

    def getsignal(signalnum: int) -> Any:
        return unwrapped(get_handler(signalnum))

    signal.signal = signal_
    signal.getsignal = getsignal


def _catch_dropped_exits(
    handlers: Dict[int, _Handler], on_error: Callable[[BaseException], None]
) -> None:
    """Call ``on_error`` with the ``SystemExit`` of a handler that Python is about to drop."""
    pid, drop = os.getpid(), sys.unraisablehook

    def unraisable(dropped: "sys.UnraisableHookArgs") -> None:
        error = dropped.exc_value
        exits = [handler.exit for handler in list(handlers.values())]
        if error is not None and os.getpid() == pid and any(each is error for each in exits):
            on_error(error)
        drop(dropped)

    sys.unraisablehook = unraisable
