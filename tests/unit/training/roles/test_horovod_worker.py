"""What a worker of Horovod does beside its script."""

import socket
import subprocess
import sys

PRINTS = """
from sagemaker_mxnet_training.roles import horovod_worker
horovod_worker.write_whole_lines()
print("RANK", 1)
print("RANK", 2, end="")
"""

STOPS = """
from types import SimpleNamespace
from sagemaker_mxnet_training.roles import bootstrap, horovod_worker
horovod_worker.write_whole_lines()
horovod_worker.ended_by_stop = lambda error: True
print("RANK", 1, end="")
bootstrap._Script(SimpleNamespace(event=lambda name: None)).end(RuntimeError())
"""


def test_lines_are_written_at_once() -> None:
    """Each packet is one write."""
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, childs:
        subprocess.run([sys.executable, "-u", "-c", PRINTS], stdout=childs, check=True)
        childs.close()
        ours.settimeout(10.0)
        written = [ours.recv(100), ours.recv(100), ours.recv(100)]
    assert written == [b"RANK 1\n", b"RANK 2", b""]


def test_output_is_complete_after_a_stop() -> None:
    done = subprocess.run([sys.executable, "-u", "-c", STOPS], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"RANK 1"
