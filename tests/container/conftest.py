"""The engine and the image that the container tests share."""

import os
from pathlib import Path
from typing import Iterator

import pytest

from tests.container.engine import IMAGE, ROOT, Engine, Trained, engine_answers, run, train_model

SITE_MARK = "mark-of-this-site.invalid"
"""Stands in pip's settings while the image is built, and nowhere in the image."""


def pytest_collection_modifyitems(items: "list[pytest.Item]") -> None:
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.path).parents:
            item.add_marker(pytest.mark.container)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def docker() -> None:
    """Skip where no engine answers; in CI one must."""
    trouble = engine_answers()
    if trouble is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI has no container engine: {trouble}")
        pytest.skip(f"no container engine: {trouble}")


@pytest.fixture(scope="session")
def image(docker: None) -> str:
    """Build the image as a user does, in one command, on a machine with settings of its own."""
    env = {**os.environ, "PIP_TRUSTED_HOST": SITE_MARK}
    run(str(ROOT / "scripts/build-image.sh"), "--tag", IMAGE, timeout=1500, env=env)
    return IMAGE


@pytest.fixture
def engine(image: str, tmp_path: Path) -> Iterator[Engine]:
    """Give a test containers of its own."""
    made = Engine(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def trained(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Train a model to be served."""
    made = Engine(tmp_path_factory.mktemp("trained"))
    try:
        yield train_model(made)
    finally:
        made.close()
