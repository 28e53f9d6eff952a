"""The current process: its start, parent and limits, and signals as bytes to read."""

import os
import selectors
import signal
import subprocess
import sys
import time
from typing import Optional

import pytest

from sagemaker_mxnet_toolkit.processes.own_process import STOP_SIGNALS, SignalPipe, not_ignored
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


def test_exec_does_not_change_when_a_process_was_started() -> None:
    """The start lies between two moments: in the parent before it, in the child before exec(3)."""
    code = "from sagemaker_mxnet_toolkit.processes.own_process import own_start; print(own_start())"
    first = (
        "import os, sys, time; print(time.monotonic(), flush=True); "
        f"os.execv(sys.executable, [sys.executable, '-c', {code!r}])"
    )
    before = time.monotonic()
    program = [sys.executable, "-c", first]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    exec_at, started = map(float, done.stdout.split())
    tick = 1 / os.sysconf("SC_CLK_TCK")  # the resolution of the start
    assert before - tick <= started <= exec_at


def test_parent_death_signal_ends_an_orphan() -> None:
    code = """
import os, time
from sagemaker_mxnet_toolkit.processes.own_process import die_with_parent
reader, writer = os.pipe()
parent = os.getpid()
if os.fork() == 0:
    die_with_parent(parent)
    os.write(writer, b"x")
    time.sleep(600)
os.read(reader, 1)
"""
    # The pipe is closed when both have ended.
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=True)


@pytest.mark.parametrize(("count", "expected"), [(None, 200), (150, 150), (50, 100), (1000, 200)])
def test_file_limit_is_raised_up_to_the_hard_one(count: Optional[int], expected: int) -> None:
    code = f"""
import resource
from sagemaker_mxnet_toolkit.processes.own_process import raise_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
raise_file_limit({count})
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"({expected}, 200)\n"
