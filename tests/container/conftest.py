"""The engine and the image that the container tests share."""

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from typing import Iterator

import pytest

from tests.support.containers import IMAGE, ROOT, Engine, Trained, engine_answers, run, train_model

SITE_MARK = "mark-of-this-site.invalid"
"""Stands in pip's settings while the image is built, and nowhere in the image."""


def pytest_collection_modifyitems(items: "list[pytest.Item]") -> None:
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.path).parents:
            item.add_marker(pytest.mark.container)
            timeout = item.get_closest_marker("timeout")
            # Without the fixtures: making the image and the SDKs' environments takes minutes, and
            # each of their steps has a timeout of its own.
            seconds = timeout.args[0] if timeout else 300
            item.add_marker(pytest.mark.timeout(seconds, func_only=True), append=False)
            if "local_mode" in item.fixturenames:
                item.add_marker(pytest.mark.local_mode)


@pytest.fixture(scope="session")
def docker() -> None:
    """Skip where no engine answers; in CI one must."""
    trouble = engine_answers()
    if trouble is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI has no container engine: {trouble}")
        pytest.skip(f"no container engine: {trouble}")


@contextlib.contextmanager
def one_at_a_time(factory: pytest.TempPathFactory, what: str) -> Iterator[Path]:
    """Let one process do something at a time; yield a folder that xdist's workers share."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    # The engine is one for all test runs on this machine.
    with Path(tempfile.gettempdir(), f"smx-{os.getuid()}-{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture
def only_build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Build nothing else meanwhile: what a failed build leaves is told by the engine's images."""
    with one_at_a_time(tmp_path_factory, "build"):
        yield


@pytest.fixture
def local_mode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run a test alone among those of the SDKs, whose network has the same name in every run."""
    with one_at_a_time(tmp_path_factory, "local-mode"):
        yield


def build_once(factory: pytest.TempPathFactory, tag: str, *options: str) -> str:
    """Build an image as a user does, in one command, on a machine with settings of its own."""
    with one_at_a_time(factory, "build") as folder:
        built = folder / f"{tag.replace(':', '-')}.built"
        if not built.exists():
            env = {**os.environ, "PIP_TRUSTED_HOST": SITE_MARK}
            run(str(ROOT / "scripts/build-image.sh"), "--tag", tag, *options, timeout=1500, env=env)
            built.touch()
    return tag


@pytest.fixture(scope="session")
def image(docker: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_once(tmp_path_factory, IMAGE)


@pytest.fixture(scope="session")
def horovod_image(image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_once(tmp_path_factory, "sagemaker-mxnet-training:horovod", "--horovod")


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
