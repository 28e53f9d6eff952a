"""Signals are noted, by the process that trains and no other."""

import subprocess
import sys

import pytest

BEGIN = """\
import multiprocessing, os, signal, time
from sagemaker_mxnet_training.checkpoints.stop import StopRequest

def send(number):
    os.kill(os.getpid(), number)
"""


def printed(body: str) -> str:
    """Run some code in a process of its own, whose signals are nobody else's; return its output."""
    command = [sys.executable, "-c", BEGIN + body]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_is_noted(number: str) -> None:
    body = f"stop = StopRequest(); print(stop.requested); send(signal.{number})\n"
    assert printed(body + "print(stop.requested)").split() == ["False", "True"]


def test_a_second_ctrl_c_interrupts() -> None:
    body = """
stop = StopRequest()
send(signal.SIGINT)
try:
    send(signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    print(stop.requested)
"""
    assert printed(body) == "True"


def test_the_scripts_own_handler_is_called() -> None:
    body = """
signal.signal(signal.SIGTERM, lambda number, frame: print("called", number == signal.SIGTERM))
StopRequest()
send(signal.SIGTERM)
"""
    assert printed(body) == "called True"


def test_a_forked_process_ends_by_the_signal() -> None:
    body = """
def run(ready):
    ready.set()
    time.sleep(60)

fork = multiprocessing.get_context("fork")
StopRequest()
ready = fork.Event()
child = fork.Process(target=run, args=(ready,))
child.start()
ready.wait()  # CPython drops what arrives before the child has begun
child.terminate()
child.join()
print(child.exitcode == -signal.SIGTERM)
"""
    assert printed(body) == "True"
