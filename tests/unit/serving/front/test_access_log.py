"""The access log, whose reader may stall."""

import asyncio
import json
import os

import pytest

from sagemaker_mxnet_serving.front import access_log
from tests.support.jobs import eventually


@pytest.mark.parametrize("form", ["json", "text"])
def test_lines_that_are_dropped_are_counted(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(access_log, "_PENDING", 1)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    full = 0
    try:
        while True:
            full += os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)

    async def run() -> None:
        log = access_log.AccessLog(form, writer)

        def line() -> None:
            log("GET", "/", 200, 0.0, 0.0, 0, 0, "id")
            log._flush()

        line()
        eventually(log._handler.queue.empty, "a block that is being written")
        for _ in range(4):  # the first of them waits, the others are dropped
            line()
        with open(reader, "rb") as file:
            file.read(full)
            eventually(log._handler.queue.empty, "room for another")
            line()
            eventually(log._handler.queue.empty, "the last block")
            log.close()
            os.close(writer)
            last = file.read().decode().splitlines()[-1]
        if form == "json":
            assert json.loads(last)["dropped"] == 3
        else:
            assert last == "3 lines of the access log were dropped"

    asyncio.run(run())
