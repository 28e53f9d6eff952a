"""The models of a server: their names, their pages, and two clients at once."""

import asyncio
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from sagemaker_mxnet_serving.front import models as models_module
from sagemaker_mxnet_serving.front.models import PROCESS_BYTES, Models, needed_memory
from sagemaker_mxnet_serving.front.served_model import ModelPhase
from sagemaker_mxnet_serving.front.server_settings import ServerSettings
from sagemaker_mxnet_serving.inference import InferenceError
from sagemaker_mxnet_toolkit.failure import Failure, FailureKind, Role


class Model:
    """A model whose load ends as a test says."""

    waiting = workers = 1

    def __init__(self, name: str, model_dir: str) -> None:
        self.name = name
        self.model_dir = model_dir
        self.phase = ModelPhase.READY
        self.failure: Optional[Failure] = None

    def start(self) -> None:
        pass

    async def wait_for(self, *phases: ModelPhase) -> ModelPhase:
        await asyncio.sleep(0)
        return self.phase

    async def stop(self) -> None:
        await asyncio.sleep(0)


def models(base: Path) -> Models:
    log: Any = lambda *line: None  # noqa: E731
    settings = ServerSettings(multi_model=True, model_dir=str(base))
    make: Any = Model
    return Models(settings, make, log)


@pytest.mark.parametrize("text", ["x", "-1", "", "\u00b2", "\u0663", "9" * 5000])
@pytest.mark.parametrize("key", ["limit", "next_page_token"])
def test_invalid_page_parameter_is_rejected(tmp_path: Path, key: str, text: str) -> None:
    if text or key == "limit":  # no token is the first page's
        with pytest.raises(InferenceError, match="expected a positive integer"):
            models(tmp_path).listing({key: text})


def test_second_reload_of_a_failed_model_returns_409(
    tmp_path: Path,
) -> None:
    (tmp_path / "model").mkdir()
    found = models(tmp_path)
    failed: Any = found.add("name", "model")
    failed.phase = ModelPhase.FAILED
    failed.failure = Failure("localhost", Role.MODEL, "hm", FailureKind.MODEL)

    async def both() -> List[Any]:
        loads = (found.load("name", "model") for _ in range(2))
        return await asyncio.gather(*loads, return_exceptions=True)

    first, second = asyncio.run(both())
    assert first is None
    assert isinstance(second, InferenceError) and second.status == 409


def test_memory_of_several_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(models_module, "available_memory", lambda: 3 * PROCESS_BYTES - 1)
    settings: Dict[str, Any] = {"multi_model": True, "model_dir": str(tmp_path), "workers": 3}
    make: Any = Model
    log: Any = None
    apart = Models(ServerSettings(load_in_workers=True, **settings), make, log)
    with pytest.raises(InferenceError) as caught:
        asyncio.run(apart.load("name", "model"))
    assert caught.value.status == 507
    asyncio.run(Models(ServerSettings(**settings), make, log).load("name", "model"))


@pytest.mark.parametrize("what", ["waiting", "workers"])
def test_models_may_be_added_while_they_are_counted(tmp_path: Path, what: str) -> None:
    """The metrics are asked for by a thread of their own."""
    found = models(tmp_path)

    class Growing(Model):
        @property
        def waiting(self) -> int:  # type: ignore[override]
            found.add("another", "model")
            return 1

        workers = waiting

    growing: Any = Growing("name", "model")
    found._models["name"] = growing
    assert getattr(found, what) == 1


def test_each_copy_of_a_model_needs_its_own_memory(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x" * 1000)
    assert needed_memory(str(tmp_path)) == 2000 + PROCESS_BYTES
    assert needed_memory(str(tmp_path), 3) == 3 * needed_memory(str(tmp_path))
