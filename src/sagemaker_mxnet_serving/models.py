"""The models of a server: the one that it was started for, or those that callers load."""

import asyncio
import os
import re
import time
from typing import Any, Callable, Dict, Mapping, Optional

from sagemaker_mxnet_serving import memory
from sagemaker_mxnet_serving.configuration import ServerSettings
from sagemaker_mxnet_serving.messages import InferenceError
from sagemaker_mxnet_serving.served_model import Phase, ServedModel
from sagemaker_mxnet_toolkit.failure import FailureKind
from sagemaker_mxnet_toolkit.log import Log

UNLOAD_SECONDS = 10.0
"""Seconds that requests under way have when their model is unloaded."""

_PAGE = 100
_WHOLE = re.compile(r"\d{1,9}", re.ASCII)
_LOADED = (Phase.READY, Phase.FAILED, Phase.STOPPED)


class Models:
    """Finds, loads and unloads models by their names.

    Args:
        settings: the server's.
        make: makes a model from its name and its directory, without starting it.
        log: told what happens.
    """

    def __init__(
        self, settings: ServerSettings, make: Callable[[str, str], ServedModel], log: Log
    ) -> None:
        self._settings = settings
        self._make = make
        self._log = log
        self._models: Dict[str, ServedModel] = {}
        # Two that load at the same time must not both take the same memory for free.
        self._reserved = 0

    @property
    def can_answer(self) -> bool:
        """Whether the server is healthy: its model can answer, or models can be loaded."""
        return self._settings.multi_model or any(
            model.can_answer for model in self._models.values()
        )

    @property
    def waiting(self) -> int:
        """How many requests wait for a worker. Any thread may ask."""
        return sum(model.waiting for model in list(self._models.values()))

    @property
    def workers(self) -> int:
        """How many workers can answer. Any thread may ask."""
        return sum(model.workers for model in list(self._models.values()))

    def add(self, name: str, model_dir: str) -> ServedModel:
        """Start to load a model, without waiting for it."""
        model = self._models[name] = self._make(name, model_dir)
        model.start()
        return model

    def find(self, name: Optional[str]) -> ServedModel:
        """Return a model; the only one where there is no name.

        Raises:
            InferenceError: 404 when there is none of that name, 503 when it cannot answer yet.
        """
        if name is None:
            model = next(iter(self._models.values()))
        elif name in self._models:
            model = self._models[name]
        else:
            raise InferenceError(f"no model is loaded under the name {name!r}", 404)
        if model.phase is Phase.FAILED and self._settings.multi_model:
            # SageMaker loads a model again that is not there.
            raise InferenceError(f"the model {name!r} has failed: see the server's log", 404)
        if not model.was_ready:
            raise InferenceError("the model is not loaded yet; try again later", 503)
        return model

    def describe(self, name: str) -> Mapping[str, Any]:
        """Return what is known about a loaded model; ``InferenceError`` 404 if there is none."""
        model = self.find(name)
        return {"modelName": name, "modelUrl": model.model_dir, **model.description}

    def listing(self, query: Mapping[str, str]) -> Mapping[str, Any]:
        """Return a page of the loaded models.

        Args:
            query: may have ``limit``, and ``next_page_token`` or ``nextPageToken``, which are what
                the page before ended with.

        Raises:
            InferenceError: 400 for anything else in these.
        """
        token = query.get("next_page_token") or query.get("nextPageToken") or "0"
        limit = query.get("limit", str(_PAGE))
        if not (_WHOLE.fullmatch(token) and _WHOLE.fullmatch(limit) and int(limit)):
            raise InferenceError("limit and next_page_token: expected whole numbers")
        start, end = int(token), int(token) + int(limit)
        ready = [m for m in self._models.values() if m.phase is Phase.READY]
        page = [{"modelName": m.name, "modelUrl": m.model_dir} for m in ready[start:end]]
        return {"models": page, **({"nextPageToken": str(end)} if end < len(ready) else {})}

    async def load(self, name: str, url: str) -> None:
        """Load a model; return when it can answer.

        Raises:
            InferenceError: 400 for a directory that is not below the server's, 409 for a name that
                is taken, 507 where there is no memory for it, 500 where it cannot be loaded.
        """
        failed = self._failed(name)
        directory = self._directory(url)
        if failed is not None:
            await self._remove(failed)
            self._failed(name)  # another caller may have been faster
        copies = 1 if self._settings.shared else self._settings.workers
        need, free = memory.needed(directory, copies), memory.available()
        if free is not None and need > free - self._reserved:
            raise InferenceError(
                f"the model needs about {need >> 20} MB of memory and "
                f"{max(0, free - self._reserved) >> 20} MB are free",
                507,
            )
        self._reserved += need
        try:
            model = self.add(name, directory)
            phase = await model.wait_for(*_LOADED)
        finally:
            self._reserved -= need
        if phase is Phase.READY:
            return
        await self._remove(model)
        if model.failure is None:
            raise InferenceError(f"the model {name!r} was unloaded while it was loaded", 409)
        self._log.error(name, model.failure.text())
        if model.failure.kind is FailureKind.OUT_OF_MEMORY:
            raise InferenceError("there is not enough memory for the model", 507)
        raise InferenceError(f"the model cannot be loaded: {model.failure.reason}", 500)

    async def unload(self, name: str) -> None:
        """Unload a model; return when its processes are gone.

        Raises:
            InferenceError: 404 when there is none of that name.
        """
        model = self._models.get(name)
        if model is None:
            raise InferenceError(f"no model is loaded under the name {name!r}", 404)
        model.close()
        await model.settle(time.monotonic() + UNLOAD_SECONDS)
        await self._remove(model)

    async def settle(self, deadline: float) -> None:
        """Wait until every request is answered, or the deadline (monotonic) has passed."""
        await asyncio.gather(*(model.settle(deadline) for model in self._models.values()))

    async def stop(self) -> None:
        """End the processes of all models."""
        await asyncio.gather(*(model.stop() for model in self._models.values()))

    def _failed(self, name: str) -> Optional[ServedModel]:
        """Return the failed model of a name, if any; ``InferenceError`` 409 for any other."""
        model = self._models.get(name)
        if model is not None and model.phase is not Phase.FAILED:
            raise InferenceError(f"a model is loaded under the name {name!r} already", 409)
        return model

    async def _remove(self, model: ServedModel) -> None:
        await model.stop()
        if self._models.get(model.name) is model:
            del self._models[model.name]

    def _directory(self, url: str) -> str:
        """Return a model's directory, which has to be below the server's, links resolved."""
        base = os.path.realpath(self._settings.model_dir)
        path = os.path.realpath(os.path.join(base, url)) if "\0" not in url else ""
        if not path.startswith(base + os.sep):
            raise InferenceError(f"url: expected a directory below {self._settings.model_dir}")
        if not os.path.isdir(path):
            raise InferenceError("url: there is no such directory", 404)
        return path
