"""Listening on a port, and saying who has it."""

import os
import socket
import subprocess
import sys

import pytest

from sagemaker_mxnet_toolkit.failure import NetworkError
from sagemaker_mxnet_toolkit.listening import listen, port_owner
from tests.support.jobs import free_port

HOLDER = """
import socket, sys
taken = socket.create_server(("127.0.0.1", 0))
print(taken.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_taken_port_is_reported_with_its_owner(tmp_path):
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)
    holder = subprocess.Popen(
        [sys.executable, str(script), "--password", "s3cret"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        port = int(holder.stdout.readline())
        with pytest.raises(NetworkError) as caught:
            listen("127.0.0.1", port)
    finally:
        holder.communicate()
    assert f"cannot listen on 127.0.0.1 port {port}: it is" in str(caught.value)
    assert f"taken by process {holder.pid}, " in str(caught.value)
    assert str(script) in str(caught.value)
    assert "s3cret" not in str(caught.value)
    listen("127.0.0.1", port).close()


def test_the_owner_may_be_this_process():
    with listen("127.0.0.1", 0) as sock:
        assert f"process {os.getpid()}," in port_owner(sock.getsockname()[1])


def test_listening_on_an_address_of_another_machine():
    with pytest.raises(NetworkError, match=r"on 192\.0\.2\.1 port 0: .* set an address of"):
        listen("192.0.2.1", 0, "end the other process")


def test_port_is_reusable_after_its_connections_closed():
    """Even with a connection in TIME_WAIT, which the side that closes first keeps for a minute."""
    port = free_port()
    with listen("127.0.0.1", port) as sock:
        client = socket.create_connection(("127.0.0.1", port))
        sock.setblocking(True)
        served, _ = sock.accept()
        served.close()
        assert client.recv(1) == b""
        client.close()
    listen("127.0.0.1", port).close()
