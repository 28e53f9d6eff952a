"""A real job trains to success while strangers attack its control channel."""

import contextlib
import os
import socket
from pathlib import Path
from typing import List

import pytest

from tests.cluster import free_port, job
from tests.endings.conftest import Verdicts

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
        refused = [line for line in cluster[1].lines if "turned 127.0.0.1 away" in line]
        assert refused, "strangers are logged"
        assert len(refused) == len({line.split("turned", 1)[1] for line in refused}), "once"


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
