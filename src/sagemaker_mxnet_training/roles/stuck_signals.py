"""Sees to it that a signal handler of the script runs, and that its ``sys.exit`` counts.

Python runs handlers in the main thread, between two of its instructions, and that fails a script
that trains with MXNet in two ways:

- A worker that waits in MXNet for the push of another worker executes no instruction, and when that
  other worker has been asked to stop too, it never will: its checkpoint would never be written.
  After ``PATIENCE`` seconds the handler is therefore called in a thread of its own. It runs once
  either way.
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
    """A script's handler that notes when it was called."""

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
    """Watch over all handlers that are set from now on, in this process.

    Args:
        on_error: called with what a handler raised where Python has no use for it:
            ``SystemExit`` more often than not.
    """
    handlers: Dict[int, _Handler] = {}
    set_handler, get_handler = signal.signal, signal.getsignal

    def unwrapped(handler: Any) -> Any:
        return handler.function if isinstance(handler, _Handler) else handler

    # The script goes on seeing the handlers that it set.
    def signal_(signalnum: int, handler: Any) -> Any:
        if callable(handler) and handler is not signal.default_int_handler:
            handler = handlers[signalnum] = _Handler(handler)
        else:
            handlers.pop(signalnum, None)
        return unwrapped(set_handler(signalnum, handler))

    def getsignal(signalnum: int) -> Any:
        return unwrapped(get_handler(signalnum))

    signal.signal = signal_
    signal.getsignal = getsignal
    drop = sys.unraisablehook

    def unraisable(dropped: "sys.UnraisableHookArgs") -> None:
        error = dropped.exc_value
        if error is not None and any(handler.exit is error for handler in handlers.values()):
            on_error(error)
        drop(dropped)

    sys.unraisablehook = unraisable
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait_and_see(number: int, handler: _Handler) -> None:
        since = time.monotonic() - _SLACK
        time.sleep(PATIENCE)
        if handler.called >= since or handlers.get(number) is not handler:
            return
        try:
            handler(number, None)
        except BaseException as error:
            on_error(error)

    def listen() -> None:
        while True:
            for number in os.read(reader, 64):
                handler = handlers.get(number)
                if handler is not None:
                    target = threading.Thread(
                        target=wait_and_see, args=(number, handler), daemon=True
                    )
                    target.start()

    threading.Thread(target=listen, name="stuck-signals", daemon=True).start()
