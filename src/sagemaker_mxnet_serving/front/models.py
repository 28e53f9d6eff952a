"""The models of a server: its only one, or those that clients load."""

import asyncio
import contextlib
import os
import re
import time
from typing import Any, Callable, Dict, Mapping, Optional

import psutil

from sagemaker_mxnet_serving.front.served_model import ModelPhase, ServedModel
from sagemaker_mxnet_serving.front.server_settings import ServerSettings
from sagemaker_mxnet_serving.inference import InferenceError
from sagemaker_mxnet_toolkit import container
from sagemaker_mxnet_toolkit.failure import FailureKind
from sagemaker_mxnet_toolkit.log import Log

UNLOAD_SECONDS = 10.0
"""Seconds that accepted requests have when their model is unloaded."""

PROCESS_BYTES = 150 * 1024 * 1024
"""Memory of a process that has imported MXNet, before it loads a model."""

_PAGE = 100
_INTEGER = re.compile(r"\d{1,9}", re.ASCII)
_LOADED = (ModelPhase.READY, ModelPhase.FAILED, ModelPhase.STOPPED)


class Models:
    """Finds, loads and unloads models by name.

    Args:
        settings: the server's.
        make: returns a model for a name and a directory, not started.
        log: the log.
    """

    def __init__(
        self, settings: ServerSettings, make: Callable[[str, str], ServedModel], log: Log
    ) -> None:
        self._settings = settings
        self._make = make
        self._log = log
        self._models: Dict[str, ServedModel] = {}
        # Bytes for models that are being loaded, which the kernel still counts as free.
        self._reserved = 0

    @property
    def can_answer(self) -> bool:
        """Whether the server is healthy: its model can answer, or models can be loaded."""
        return self._settings.multi_model or any(
            model.can_answer for model in self._models.values()
        )

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker. Thread-safe."""
        return sum(model.waiting for model in list(self._models.values()))

    @property
    def workers(self) -> int:
        """How many workers can answer. Thread-safe."""
        return sum(model.workers for model in list(self._models.values()))

    def add(self, name: str, model_dir: str) -> ServedModel:
        """Start to load a model, and return at once."""
        model = self._make(name, model_dir)
        model.start()  # before it has the name, as this may raise
        self._models[name] = model
        return model

    def find(self, name: Optional[str]) -> ServedModel:
        """Return a model; the only one if there is no name.

        Raises:
            InferenceError: 404 if there is no such model, 503 if it cannot answer yet.
        """
        if name is None:
            model = next(iter(self._models.values()))
        elif name in self._models:
            model = self._models[name]
        else:
            raise InferenceError(f"model {name!r} is not loaded; load it with POST /models", 404)
        if model.phase is ModelPhase.FAILED and self._settings.multi_model:
            # SageMaker loads a model again after a 404.
            raise InferenceError(f"model {name!r} has failed; see the server's log", 404)
        if not model.was_ready:
            raise InferenceError("the model is not loaded yet; try again later", 503)
        return model

    def describe(self, name: str) -> Mapping[str, Any]:
        """Return the description of a loaded model.

        Raises:
            InferenceError: 404 if there is no such model, 503 if it cannot answer yet.
        """
        model = self.find(name)
        return {"modelName": name, "modelUrl": model.model_dir, **model.description}

    def listing(self, query: Mapping[str, str]) -> Mapping[str, Any]:
        """Return a page of the loaded models.

        Args:
            query: may have ``limit``, and ``next_page_token`` or ``nextPageToken`` with the
                ``nextPageToken`` of the page before.

        Raises:
            InferenceError: 400 if a value is not valid.
        """
        token = query.get("next_page_token") or query.get("nextPageToken") or "0"
        limit = query.get("limit", str(_PAGE))
        if not (_INTEGER.fullmatch(token) and _INTEGER.fullmatch(limit) and int(limit)):
            raise InferenceError(
                "limit: expected a positive integer; next_page_token: expected the nextPageToken "
                "of the page before"
            )
        start, end = int(token), int(token) + int(limit)
        ready = [m for m in self._models.values() if m.phase is ModelPhase.READY]
        page = [{"modelName": m.name, "modelUrl": m.model_dir} for m in ready[start:end]]
        return {"models": page, **({"nextPageToken": str(end)} if end < len(ready) else {})}

    async def load(self, name: str, url: str) -> None:
        """Load a model; return when it can answer.

        Raises:
            InferenceError: 400 if the directory is not below the server's, 409 if the name is
                taken, 507 if there is not enough memory, 500 if the model cannot be loaded.
        """
        failed = self._failed(name)
        directory = self._directory(url)
        if failed is not None:
            await self._remove(failed)
            self._failed(name)  # another client may have been faster
        copies = 1 if self._settings.shared else self._settings.workers
        need, free = needed_memory(directory, copies), available_memory()
        if free is not None and need > free - self._reserved:
            raise InferenceError(
                f"not enough memory: the model needs about {need >> 20} MB, and "
                f"{max(0, free - self._reserved) >> 20} MB are free; unload another model first",
                507,
            )
        self._reserved += need
        try:
            model = self.add(name, directory)
            phase = await model.wait_for(*_LOADED)
        finally:
            self._reserved -= need
        if phase is ModelPhase.READY:
            return
        await self._remove(model)
        if model.failure is None:
            raise InferenceError(f"model {name!r} was unloaded before it was ready", 409)
        self._log.error(name, model.failure.text())
        if model.failure.kind is FailureKind.OUT_OF_MEMORY:
            raise InferenceError("not enough memory for the model; unload another one first", 507)
        raise InferenceError(f"model {name!r} cannot be loaded: {model.failure.reason}", 500)

    async def unload(self, name: str) -> None:
        """Unload a model; return when its processes are gone.

        Raises:
            InferenceError: 404 if there is no such model.
        """
        model = self._models.get(name)
        if model is None:
            raise InferenceError(f"model {name!r} is not loaded", 404)
        model.close()
        await model.drain(time.monotonic() + UNLOAD_SECONDS)
        await self._remove(model)

    async def drain(self, deadline: float) -> None:
        """Wait until all requests are answered; reject the rest at the deadline (monotonic)."""
        await asyncio.gather(*(model.drain(deadline) for model in self._models.values()))

    async def stop(self) -> None:
        """Terminate the processes of all models."""
        await asyncio.gather(*(model.stop() for model in self._models.values()))

    def _failed(self, name: str) -> Optional[ServedModel]:
        """Return the failed model of a name, if any; raise ``InferenceError`` 409 for another."""
        model = self._models.get(name)
        if model is not None and model.phase is not ModelPhase.FAILED:
            raise InferenceError(f"model {name!r} is already loaded; unload it first", 409)
        return model

    async def _remove(self, model: ServedModel) -> None:
        await model.stop()
        if self._models.get(model.name) is model:
            del self._models[model.name]

    def _directory(self, url: str) -> str:
        """Return the directory of a URL, which has to be below the server's after links."""
        base = os.path.realpath(self._settings.model_dir)
        path = os.path.realpath(os.path.join(base, url)) if "\0" not in url else ""
        if not path.startswith(base + os.sep):
            raise InferenceError(f"url: expected a directory below {self._settings.model_dir}")
        if not os.path.isdir(path):
            raise InferenceError(f"url: {url[:200]!r} does not exist, or is not a directory", 404)
        return path


def available_memory() -> Optional[int]:
    """Return the bytes of memory that new processes can use, or ``None`` if that is unknown."""
    found = [container.memory_available()]
    with contextlib.suppress(OSError):  # the limit on open files is reached
        found.append(psutil.virtual_memory().available)
    return min((free for free in found if free is not None), default=None)


def needed_memory(model_dir: str, copies: int = 1) -> int:
    """Return the bytes of memory that a model is likely to need: its files, twice.

    Args:
        model_dir: its directory.
        copies: how many processes load it.
    """
    total = 0
    for folder, _, names in os.walk(model_dir):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return copies * (2 * total + PROCESS_BYTES)
