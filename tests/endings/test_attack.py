"""Attacks on a real job: its control channel resists them, and MXNet's own ports do not."""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import List

import psutil
import pytest

from tests.endings.conftest import Verdicts
from tests.support.jobs import free_port, job

FLOOD = 10_000


@pytest.mark.fuzz
def test_a_real_job_trains_to_success_under_attack(tmp_path: Path, verdicts: Verdicts) -> None:
    """Random bytes, torn and endless frames, slow talkers, and ten thousand connections."""
    port = free_port()
    body = """
    init()
    for step in range(400):
        push_and_pull()
        time.sleep(0.02)
        if step == 3:
            say("training")
    say("all steps done")
    """
    env = {"SAGEMAKER_MXNET_CONTROL_PORT": str(port)}
    with job(tmp_path, body, 2, kvstore=True, env=env) as cluster:
        cluster.wait_for("^training")
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for garbage in (
            os.urandom(4096),
            b"\x00\x00\x00\x10" + b"{" * 16,
            b"\xff\xff\xff\xff",
            b"\x00\x00\x00\x02{}" * 100,
            b"GET / HTTP/1.1\r\nHost: algo-1\r\n\r\n",
        ):
            for _ in range(10):
                _say(port, garbage)
        for talker in slow:
            with contextlib.suppress(OSError):
                talker.send(b"\x00")
        _flood(port)
        for end in verdicts.succeeded(cluster):
            assert "all steps done" in end.output
        for talker in slow:
            talker.close()
        rejected = [
            line for line in cluster[1].lines if "rejected connection from 127.0.0.1" in line
        ]
        assert rejected, "rejected connections are logged"
        assert len(rejected) == len({line.split("rejected", 1)[1] for line in rejected}), "once"


@pytest.mark.parametrize("role", ["scheduler", "server", "worker"])
def test_random_data_at_the_kvstores_ports_is_the_cause(
    tmp_path: Path, verdicts: Verdicts, role: str
) -> None:
    """MXNet aborts. The cause names the connection from outside the job."""
    body = """
    init()
    say("training")
    while True:
        push_and_pull()
        time.sleep(0.05)
    """
    # ZMTP 1.0, which needs no greeting: an empty name, and a message.
    garbage = b"\x01\x00" + b"\x65\x00" + b"\xff" * 100
    with job(tmp_path, body, 2, kvstore=True) as cluster:
        cluster.wait_for("^training")
        listening = psutil.Process(cluster[1].pid(role)).net_connections("tcp4")
        port = next(each.laddr.port for each in listening if each.status == psutil.CONN_LISTEN)
        since = time.monotonic()
        _say(port, garbage)
        cause = rf"^algo-1: {role} failed: killed by SIGABRT, .*; a program outside this job sent"
        verdicts.failed(cluster, since, cause, {1: 134} if role == "worker" else None)


def _say(port: int, words: bytes) -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as stranger:
        stranger.sendall(words)


def _flood(port: int) -> None:
    kept: List[socket.socket] = []
    for _ in range(FLOOD):
        with contextlib.suppress(OSError):
            kept.append(socket.create_connection(("127.0.0.1", port), 5))
        if len(kept) > 200:
            kept.pop(0).close()
    for connection in kept:
        connection.close()
