"""The workers of a model process, which here is the other end of a socket."""

import asyncio
import json
import socket
from typing import Any, List

import pytest

from sagemaker_mxnet_serving import workers
from sagemaker_mxnet_serving.endings import Endings
from sagemaker_mxnet_serving.metrics import Metrics


class Log:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: List[str] = []

    def error(self, role: str, text: str) -> None:
        self.lines.append(text)


def test_a_worker_whose_connection_could_not_be_had_is_ordered_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel keeps it back where the front has as many files open as it may."""
    monkeypatch.setattr(workers, "_AGAIN_SECONDS", 0.01)
    log = Log()

    async def run() -> List[Any]:
        front, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.setblocking(False)
        parts: Any = (lambda: None, None, Endings(), log, Metrics())
        with other:
            found = workers.Workers("model", front, *parts)
            found.order([0, 1])
            loop = asyncio.get_event_loop()
            orders = []
            for _ in range(4):
                orders.append(json.loads(await loop.sock_recv(other, 4096)))
                other.send(json.dumps({"worker": 1}).encode())
            found.close()
        return orders

    orders = asyncio.run(asyncio.wait_for(run(), 60))
    assert orders == [{"fork": 0}, {"fork": 1}] * 2
    assert len([line for line in log.lines if "open files" in line]) == len(log.lines) == 1
