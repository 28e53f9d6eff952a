"""Signals as bytes to read."""

import os
import selectors
import signal

from sagemaker_mxnet_toolkit.processes.signals import STOP_SIGNALS, SignalPipe, not_ignored
from tests.support.leaks import no_leaks


def test_signals_wake_a_selector_and_are_read_in_order() -> None:
    with SignalPipe(STOP_SIGNALS) as signals, selectors.DefaultSelector() as selector:
        selector.register(signals, selectors.EVENT_READ)
        assert signals.read() == []
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        ((key, _),) = selector.select(10)
        assert key.fileobj is signals
        assert signals.read() == [signal.SIGTERM, signal.SIGHUP]
        assert signals.read() == []


def test_earlier_handlers_come_back_and_nothing_stays_open() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with no_leaks(), SignalPipe(STOP_SIGNALS):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in not_ignored(STOP_SIGNALS)
        with SignalPipe(STOP_SIGNALS) as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.read() == []
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP in not_ignored(STOP_SIGNALS)
