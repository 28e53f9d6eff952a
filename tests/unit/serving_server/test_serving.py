"""The ways into the server."""

import subprocess
import sys
from typing import Any

import pytest

from sagemaker_mxnet_serving import serving
from sagemaker_mxnet_serving_container import serving as alias
from sagemaker_mxnet_training import cli


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


def test_settings_with_faults_end_the_server_with_status_1() -> None:
    assert serving.run({"SAGEMAKER_BIND_TO_PORT": "none"}) == 1
