"""Makes sure that a signal handler of the script runs, and that its ``sys.exit`` ends the script.

Python runs signal handlers in the main thread, between two bytecode instructions. With MXNet this
fails in two ways:

- A worker that waits in MXNet for the push of another worker executes no instructions. If the other
  worker was also asked to stop, the wait never ends, and no checkpoint is written. So the handler
  is called in another thread after ``PATIENCE`` seconds. It runs only once.
  SIGINT without a handler raises ``KeyboardInterrupt`` in the same way, after
  ``INTERRUPT_PATIENCE`` seconds.
- In a destructor, such as that of ``NDArray``, Python prints "Exception ignored" and drops the
  handler's ``SystemExit``. Here it ends the script.
"""

import functools
import os
import signal
import sys
import threading
import time
import types
from typing import Any, Callable, Dict, Optional

from sagemaker_mxnet_toolkit import compatibility

PATIENCE = 1.0
"""Seconds after which a handler is called in another thread."""

INTERRUPT_PATIENCE = 5.0
"""The same for a ``KeyboardInterrupt``."""

_SLACK = 0.5
"""Seconds by which the main thread may call the handler before the other thread gets the signal."""


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


def watch(on_error: Callable[[BaseException], None]) -> Callable[[BaseException], int]:
    """Watch all signal handlers that this process sets from now on.

    Args:
        on_error: called with an exception of a handler that Python would drop, usually
            ``SystemExit``.

    Returns:
        A function that returns the signal whose handler raised an exception; 0 for others.
    """
    handlers: Dict[int, _Handler] = {}
    watcher = _Watcher(handlers, on_error)
    if os.environ.get("DMLC_ROLE") == "worker":  # other scripts do not wait for other hosts
        compatibility.after_import(functools.partial(watcher.watch_interrupts, signal.signal))
    _wrap_handlers(handlers, watcher.start)
    _catch_dropped_exits(handlers, on_error)

    def ended_by(error: BaseException) -> int:
        return next((n for n, each in list(handlers.items()) if each.exit is error), 0)

    return ended_by


class _Watcher:
    """Calls handlers that the main thread does not call.

    Args:
        handlers: the handlers by signal number.
        on_error: called with exceptions of handlers.
    """

    def __init__(
        self, handlers: Dict[int, _Handler], on_error: Callable[[BaseException], None]
    ) -> None:
        self._handlers = handlers
        self._on_error = on_error
        self._pid = os.getpid()
        self._started = False

    def start(self) -> None:
        """Start watching, in the main thread of the process that runs the script."""
        is_main = threading.current_thread() is threading.main_thread()
        if self._started or os.getpid() != self._pid or not is_main:
            return
        # Imported late, since most scripts do not set a handler.
        from sagemaker_mxnet_training.roles import signal_arrivals

        arrivals = signal_arrivals.open_socket()
        if arrivals is None:
            return
        self._started = True

        def dispatch() -> None:
            for number in signal_arrivals.numbers(arrivals):
                handler = self._handlers.get(number)
                if handler is not None:
                    self._in_a_thread(self._call_if_missed, number, handler)

        self._in_a_thread(dispatch)

    def watch_interrupts(self, set_handler: Callable[..., Any]) -> None:
        """Watch SIGINT if the script has no handler for it."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.start()
            if self._started:
                self._handlers[signal.SIGINT] = _Handler(signal.default_int_handler)
                set_handler(signal.SIGINT, self._handlers[signal.SIGINT])

    def _in_a_thread(self, target: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, name="signal-handlers", daemon=True).start()

    def _call_if_missed(self, number: int, handler: _Handler) -> None:
        since = time.monotonic() - _SLACK
        interrupts = handler.function is signal.default_int_handler
        time.sleep(INTERRUPT_PATIENCE if interrupts else PATIENCE)
        if handler.called >= since or self._handlers.get(number) is not handler:
            return
        try:
            handler(number, None)
        except BaseException as error:
            self._on_error(error)


def _wrap_handlers(handlers: Dict[int, _Handler], on_set: Callable[[], None]) -> None:
    """Wrap each handler that the script sets, and add it to ``handlers``.

    Args:
        handlers: the handlers by signal number.
        on_set: called before a handler is set.
    """
    set_handler, get_handler = signal.signal, signal.getsignal

    def unwrapped(handler: Any) -> Any:
        return handler.function if isinstance(handler, _Handler) else handler

    # The script sees the handlers that it has set, not the wrappers.
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
