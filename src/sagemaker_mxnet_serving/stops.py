"""The signals that stop the server: they wait until it can hear them.

Before its loop does, SIGTERM would be lost where the server is PID 1 of a container, and elsewhere
end it with a status other than 0.
"""

import contextlib
import signal
from typing import Iterator

STOPS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let the signals wait until ``let_through``, or until the end of this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    """Take the signals from now on, those that have waited too.

    Children that are started before would have them blocked for ever.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
