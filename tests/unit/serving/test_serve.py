"""The ways into the server."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sagemaker_mxnet_cli import command_line
from sagemaker_mxnet_serving import serve
from sagemaker_mxnet_serving_container import serving as alias
from tests.support.jobs import free_port


def test_program_of_images_for_awss_toolkit() -> None:
    assert alias.main is serve.main


def test_options_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    def run(environ: Any, *arguments: Any) -> int:
        seen.extend(arguments)
        return 5

    monkeypatch.setattr(serve, "run", run)
    with pytest.raises(SystemExit) as ended:
        command_line.main(
            ["serve", f"--model-dir={tmp_path}", "--host=::1", "--port", "9000", "--workers", "3"]
        )
    assert ended.value.code == 5
    assert seen == [str(tmp_path), "::1", 9000, 3]


def test_training_imports_no_module_of_the_server() -> None:
    code = (
        "import sys; from sagemaker_mxnet_cli import command_line\n"
        "from sagemaker_mxnet_training import training\n"
        "print([n for n in sys.modules if n.startswith(('httptools', 'sagemaker_mxnet_serving'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "[]\n"


EARLY = """
import os, signal, sys
from sagemaker_mxnet_toolkit import listening
listen = listening.listen

def listen_late(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return listen(*arguments)

listening.listen = listen_late
"""


@pytest.mark.parametrize(
    "way",
    [
        "from sagemaker_mxnet_cli import command_line; command_line.main(['serve'])",
        "from sagemaker_mxnet_serving_container import serving; serving.main()",
    ],
)
def test_stop_signal_during_the_start(way: str) -> None:
    variables = {"SAGEMAKER_MULTI_MODEL": "true", "SAGEMAKER_BIND_TO_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-c", EARLY + way],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "stopping" in done.stderr) == (0, True)


def test_faults_in_settings_end_the_server_with_status_1() -> None:
    assert serve.run({"SAGEMAKER_BIND_TO_PORT": "none"}) == 1
