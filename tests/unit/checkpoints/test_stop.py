"""Signals are noted, by the process that trains and no other."""

import multiprocessing
import os
import signal
import time
from typing import Iterator, List

import pytest

from sagemaker_mxnet_training.checkpoints.stop import StopRequest


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted(number: int) -> None:
    stop = StopRequest()
    assert not stop.requested
    os.kill(os.getpid(), number)
    assert stop.requested


def test_a_second_ctrl_c_interrupts() -> None:
    stop = StopRequest()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert stop.requested


def test_the_scripts_own_handler_is_called() -> None:
    called: List[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: called.append(number))
    StopRequest()
    os.kill(os.getpid(), signal.SIGTERM)
    assert called == [signal.SIGTERM]


def test_a_forked_process_ends_by_the_signal() -> None:
    StopRequest()
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(30)
    assert child.exitcode == -signal.SIGTERM
