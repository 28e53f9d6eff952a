"""An image of a user's own, from any Python image, by pip install and one variable."""

import os

import pytest

from tests.support.containers import ROOT, run


@pytest.mark.timeout(1500)
def test_example_trains(docker: None, only_build: None) -> None:
    tag = f"smx-custom:{os.getpid()}"
    try:
        done = run(
            str(ROOT / "examples/custom-image/run.sh"), timeout=1200, env={**os.environ, "TAG": tag}
        )
    finally:
        run("docker", "image", "rm", tag, check=False)
    assert "Reporting training SUCCESS" in done.stdout
    for name in ("model-symbol.json", "model-0000.params", "model-shapes.json"):
        assert name in done.stdout
