"""A model that training has saved, asked by many callers at once."""

import concurrent.futures
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import free_port
from tests.serving.server import Answer, serving

SAVE = """
import sys
from sagemaker_mxnet_toolkit import compatibility
compatibility.install()
import mxnet as mx
from sagemaker_mxnet_training.training_utils import save
out = mx.sym.FullyConnected(mx.sym.var("data"), num_hidden=1, no_bias=True, name="sum")
module = mx.mod.Module(out, label_names=None)
module.bind([("data", (1, 3))], for_training=False)
module.init_params(arg_params={"sum_weight": mx.nd.array([[1, 10, 100]])})
save(sys.argv[1], module)
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    subprocess.run([sys.executable, "-c", SAVE, str(folder)], check=True, timeout=120)
    return folder


@pytest.mark.parametrize(
    "variables",
    [{}, {"SAGEMAKER_MXNET_SERVING_BATCH_SIZE": "4", "SAGEMAKER_MXNET_SERVING_BATCH_DELAY": "0.5"}],
    ids=["alone", "together"],
)
def test_every_caller_gets_its_own_rows(model_dir: Path, variables: "dict[str, str]") -> None:
    port = free_port()
    with serving(
        model_dir, "--workers", "1", SAGEMAKER_MXNET_SERVING_METRICS_PORT=port, **variables
    ) as served:
        served.healthy()

        def ask(number: int) -> Any:
            if number % 10 == 7:
                return served.ask("POST", "/invocations", b"[[", {"Content-Type": "text/csv"})
            rows = [[number, row, 1] for row in range(number % 3 + 1)]
            kind = {"Content-Type": "application/json"}
            return served.ask("POST", "/invocations", json.dumps(rows).encode(), kind)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(40)))
        for number, answer in enumerate(answers):
            assert isinstance(answer, Answer)
            if number % 10 == 7:
                assert answer.status == 400
                continue
            expected = [[number + 10.0 * row + 100.0] for row in range(number % 3 + 1)]
            assert (answer.status, json.loads(answer.body)) == (200, expected)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
            metrics = page.read().decode()
        found = re.search(r"batch_requests_count (\S+)", metrics)
        assert found is not None
        together = float(found[1]) < 40
        assert together is bool(variables)
