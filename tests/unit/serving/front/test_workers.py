"""The workers of a model process, which here is the other end of a socket."""

import array
import asyncio
import json
import socket
import subprocess
import time
from typing import Any, Dict, List

import pytest

from sagemaker_mxnet_serving.front import workers
from sagemaker_mxnet_serving.front.metrics import Metrics
from sagemaker_mxnet_serving.front.worker_links import WorkerLink
from sagemaker_mxnet_toolkit.container import OomMonitor
from sagemaker_mxnet_toolkit.failure import Failure


class Log:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: List[str] = []

    def error(self, role: str, text: str) -> None:
        self.lines.append(text)


class Listener:
    """Keeps the failures that are reported."""

    def __init__(self) -> None:
        self.failures: List[str] = []

    def worker_failed(self, failure: Failure, last: bool) -> None:
        assert not last
        self.failures.append(failure.reason)

    def worker_ending(self, link: WorkerLink) -> None:
        pass

    def worker_lost(self, link: WorkerLink) -> List[str]:
        return []


@pytest.mark.parametrize("error", [{}, {"error": "no more processes"}])
def test_worker_that_cannot_be_started_is_requested_again(
    monkeypatch: pytest.MonkeyPatch, error: Dict[str, str]
) -> None:
    """The kernel drops its connection where the front has as many files open as it may."""
    monkeypatch.setattr(workers, "RETRY_SECONDS", 0.01)
    log, owner = Log(), Listener()

    async def run() -> List[Any]:
        front, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.setblocking(False)
        parts: Any = (lambda: None, owner, OomMonitor(0.0), log, Metrics())
        with other:
            found = workers.Workers("model", front, *parts)
            found.request([0, 1])
            loop = asyncio.get_event_loop()
            orders = []
            for _ in range(4):
                orders.append(json.loads(await loop.sock_recv(other, 4096)))
                other.send(json.dumps({"worker": None, **error}).encode())
            found.close()
        return orders

    orders = asyncio.run(asyncio.wait_for(run(), 60))
    assert orders == [{"fork": 0}, {"fork": 1}] * 2
    (line,) = log.lines
    assert error.get("error", "limit on open files") in line
    assert owner.failures == [line.partition(";")[0]], "after three in turn"


def test_requests_for_many_workers_all_arrive() -> None:
    """The socket holds about 280 messages."""

    async def run() -> List[int]:
        front, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.setblocking(False)
        parts: Any = (lambda: None, Listener(), OomMonitor(0.0), Log(), Metrics())
        slots = []
        with other:
            found = workers.Workers("model", front, *parts)
            found.request(range(1024))
            loop = asyncio.get_event_loop()
            for _ in range(1024):
                slots.append(json.loads(await loop.sock_recv(other, 4096))["fork"])
                other.send(json.dumps({"worker": None}).encode())
            found.close()
        return slots

    assert asyncio.run(asyncio.wait_for(run(), 60)) == list(range(1024))


def test_worker_that_the_server_kills_is_not_out_of_memory() -> None:
    """The kernel has killed another process of the container just before."""
    log, oom = Log(), OomMonitor(0.0, iter([0, 1, 1]).__next__)
    oom.check(time.monotonic())

    async def run(child: "subprocess.Popen[bytes]") -> None:
        front, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        other.setblocking(False)
        own, attached = socket.socketpair()
        gone = asyncio.Event()
        parts: Any = (gone.set, Listener(), oom, log, Metrics())
        with other, own, attached:
            found = workers.Workers("model", front, *parts)
            found.request([0, 1])
            loop = asyncio.get_event_loop()
            await loop.sock_recv(other, 4096)
            rights = array.array("i", [attached.fileno()])
            message = json.dumps({"worker": child.pid}).encode()
            other.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            await loop.sock_recv(other, 4096)  # it has arrived, so the next one is requested
            found.kill(child.pid, "exceeded the timeout")
            other.send(json.dumps({"ended": child.pid, "status": child.wait()}).encode())
            await gone.wait()
            found.close()

    with subprocess.Popen(["sleep", "60"]) as child:
        asyncio.run(asyncio.wait_for(run(child), 60))
    assert "was killed by SIGKILL before it was ready; starting another one" in log.lines[-1]
