"""The ways into the server."""

import os
import subprocess
import sys
from typing import Any

import pytest

from sagemaker_mxnet_serving import serving
from sagemaker_mxnet_serving_container import serving as alias
from sagemaker_mxnet_training import cli
from tests.cluster import free_port


def test_images_written_for_awss_toolkit_start_the_same() -> None:
    assert alias.main is serving.main


def test_the_command_hands_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(environ: Any, *arguments: Any) -> int:
        seen.extend(arguments)
        return 5

    monkeypatch.setattr(serving, "run", run)
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--model-dir", "m", "--host", "::1", "--port", "9000", "--workers", "3"])
    assert ended.value.code == 5
    assert seen == ["m", "::1", 9000, 3]


def test_a_training_job_imports_nothing_of_the_server() -> None:
    code = (
        "import sys; from sagemaker_mxnet_training import cli, training\n"
        "print([n for n in sys.modules if n.startswith(('httptools', 'sagemaker_mxnet_serving'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "[]\n"


EARLY = """
import os, signal, sys
from sagemaker_mxnet_serving import server
listen = server.listen

def listen_late(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return listen(*arguments)

server.listen = listen_late
"""


@pytest.mark.parametrize(
    "way",
    [
        "from sagemaker_mxnet_training import cli; cli.main(['serve'])",
        "from sagemaker_mxnet_serving_container import serving; serving.main()",
    ],
)
def test_a_stop_before_the_server_hears_signals_is_a_stop(way: str) -> None:
    variables = {"SAGEMAKER_MULTI_MODEL": "true", "SAGEMAKER_BIND_TO_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-c", EARLY + way],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "stopping" in done.stderr) == (0, True)


def test_settings_with_faults_end_the_server_with_status_1() -> None:
    assert serving.run({"SAGEMAKER_BIND_TO_PORT": "none"}) == 1
