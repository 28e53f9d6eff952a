"""The front's connection to a worker, on the loop that the server uses."""

import asyncio
import socket

import pytest
import uvloop

from sagemaker_mxnet_serving.front.worker_links import WorkerLink

SMALL, LARGE = 1000, 100_000


@pytest.mark.parametrize(
    ("size", "reads", "closes_first", "unread"),
    [
        (SMALL, False, False, True),
        (SMALL, False, True, True),
        (SMALL, True, False, False),
        (LARGE, False, False, False),  # it may have died of what it had read
    ],
)
def test_frame_that_a_worker_has_not_read(
    size: int, reads: bool, closes_first: bool, unread: bool
) -> None:
    async def run() -> bool:
        loop = asyncio.get_event_loop()
        lost = loop.create_future()
        own, other = socket.socketpair()
        link = WorkerLink(1, lambda link, items: None, lost.set_result)
        await loop.connect_accepted_socket(lambda: link, own)
        if closes_first:
            other.close()
        link.send([b"x" * size])
        if not closes_first:
            await asyncio.sleep(0)  # the loop sends at the end of its iteration
            assert other.recv(size) if reads else other.recv(size, socket.MSG_PEEK)
            other.close()
        await asyncio.wait_for(lost, 60)
        return link.unread

    loop = uvloop.new_event_loop()
    try:
        assert loop.run_until_complete(run()) is unread
    finally:
        loop.close()
