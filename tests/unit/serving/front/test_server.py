"""The server, without models and connections."""

import asyncio
from typing import Any, Optional

from sagemaker_mxnet_serving.front.server import Server
from sagemaker_mxnet_serving.front.server_settings import ServerSettings
from sagemaker_mxnet_toolkit.failure import Failure
from tests.unit.serving.front.test_workers import Log


def test_exception_in_a_callback_ends_the_server() -> None:
    """What the callback did not do, nobody would do later."""

    class Lines(Log):
        def __call__(self, role: str, text: str) -> None:
            pass

    log: Any = Lines()

    async def run() -> Optional[Failure]:
        loop = asyncio.get_event_loop()
        server = Server(ServerSettings(multi_model=True), {}, log)
        loop.set_exception_handler(server._on_exception)
        loop.call_soon(int, "x")
        models: Any = None
        return await asyncio.wait_for(server._serve(models), 60)

    failure = asyncio.run(run())
    assert failure is not None and "ValueError" in failure.reason
    assert "Traceback" in log.lines[0]
