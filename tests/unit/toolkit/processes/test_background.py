"""Calls in the background of a loop."""

import selectors
import threading
from typing import List

import pytest

from sagemaker_mxnet_toolkit.processes.background import BackgroundCall
from tests.support.leaks import no_leaks


def test_a_selector_goes_on_and_hears_of_the_end_once() -> None:
    gate, ended = threading.Event(), []
    with no_leaks(), selectors.DefaultSelector() as selector:
        call = BackgroundCall(lambda: gate.wait(10), selector, ended.append)
        assert selector.select(0) == []
        gate.set()
        ((key, mask),) = selector.select(10)
        key.data(mask)
        assert ended == [call]
        assert call.result() is True
        assert not selector.get_map()


def test_waiting_is_bounded() -> None:
    gate = threading.Event()
    call = BackgroundCall(gate.wait)
    assert not call.wait(0.01)
    gate.set()
    assert call.wait(10)


def test_what_is_raised_comes_to_who_asks() -> None:
    def fail() -> List[int]:
        raise OSError("no space")

    call = BackgroundCall(fail)
    assert call.wait(10)
    with pytest.raises(OSError, match="no space"):
        call.result()
