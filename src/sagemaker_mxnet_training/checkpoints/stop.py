"""A request to stop, noted by a signal handler and answered between two steps."""

import os
import signal
import threading
from typing import Any, Dict

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Notes SIGTERM and SIGINT from now on; a handler that the script set before is called, too.

    A second SIGINT does what it did before, which is a ``KeyboardInterrupt`` by default.
    """

    def __init__(self) -> None:
        self.requested = False
        self._pid = os.getpid()
        self._before: Dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in _SIGNALS:
                self._before[number] = signal.getsignal(number)
                signal.signal(number, self._note)

    def _take_back(self) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, signal.SIG_DFL if before is None else before)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            # A process of a DataLoader is ended by SIGTERM: it must not note it and go on.
            self._take_back()
            os.kill(os.getpid(), number)
            return
        before = self._before[number]
        first, self.requested = not self.requested, True
        if callable(before) and (before is not signal.default_int_handler or not first):
            before(number, frame)
