"""The service of a worker: a loaded model that answers requests.

``load`` and ``Service.warm_up`` may run in a process that forks afterwards, so they start no
threads. ``load`` imports MXNet, NumPy and the script.
"""

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Iterator, List, Mapping, Optional, Sequence

from sagemaker_mxnet_serving.inference import Request, Response
from sagemaker_mxnet_serving.model_info import ModelError, ModelMemoryError, ModelSettings
from sagemaker_mxnet_toolkit import compatibility
from sagemaker_mxnet_toolkit.requirements import known

if TYPE_CHECKING:
    from sagemaker_mxnet_serving.worker.loading import LoadedModel

_THREAD_EXIT_SECONDS = 0.5

# Texts of errors of libmxnet 1.9.1 and other native libraries when an allocation fails. Python
# raises a RuntimeError for them.
_MEMORY_TEXTS = ("out of memory", "Failed to allocate CPU Memory", "bad_alloc")

__all__ = ["ModelError", "ModelSettings", "Service", "load"]


def load(settings: ModelSettings) -> "Service":
    """Import MXNet and the user's script, and load the model: ``model_fn`` is called once.

    Raises:
        ModelError: the model cannot be served; ``ModelMemoryError`` if it is out of memory.
    """
    compatibility.install()
    with _memory_errors():
        try:
            # Late, as it imports MXNet, for which the compatibility layer has to be installed.
            from sagemaker_mxnet_serving.worker import loading
        except ImportError as error:
            mxnet = error.name == "mxnet"
            raise ModelError(
                f"a package that serving needs cannot be imported: {error}; "
                f"run {known.INSTALL_MXNET if mxnet else known.INSTALL_SERVING}"
            ) from error
        mxnet_threads = _count_mxnet_threads()
        return Service(loading.load_model(settings), mxnet_threads)


def _count_mxnet_threads() -> int:
    """Return the number of threads of this process, including those of MXNet's engine."""
    import mxnet

    mxnet.nd.zeros(1).wait_to_read()
    return _count_threads()


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise a ``ModelMemoryError`` for errors because of a lack of memory."""
    try:
        yield
    except Exception as error:
        if _is_memory_error(error):
            raise ModelMemoryError(f"not enough memory for the model\n{error}") from error
        raise


def _is_memory_error(error: Optional[BaseException]) -> bool:
    """Return whether an error, or its cause, is a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS):
            return True
        error = error.__cause__
    return False


class Service:
    """A loaded model; ``load`` returns it."""

    def __init__(self, loaded: "LoadedModel", mxnet_threads: int) -> None:
        self._loaded = loaded
        self._mxnet_threads = mxnet_threads

    @property
    def batchable(self) -> bool:
        """Whether requests may be batched: no function of the script handles them.

        Final after ``warm_up``, which may find that the outputs of a row depend on other rows.
        """
        return self._loaded.batchable

    def warm_up(self) -> None:
        """Predict zeros, if the shapes of the inputs are known, and call ``model_warmup_fn``.

        Raises:
            ModelError: one of these failed; ``ModelMemoryError`` if it is out of memory.
        """
        with _memory_errors():
            self._loaded.warm_up()

    def started_threads(self) -> List[str]:
        """Return the names of running threads that the script has started.

        A forked process does not have them, and hangs if it waits for one. MXNet and OpenBLAS
        restart theirs after a fork; OpenMP, whose threads have no names, does not.
        """
        # A joined thread may take a moment to exit.
        deadline = time.monotonic() + _THREAD_EXIT_SECONDS
        while _count_threads() > self._mxnet_threads:
            if time.monotonic() >= deadline:
                names = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
                return names or ["native threads, such as OpenMP's"]
            time.sleep(0.01)
        return []

    def predict(self, requests: Sequence[Request]) -> List[Response]:
        """Return the responses to requests, in the same order; errors are responses too.

        Raises:
            SystemExit, KeyboardInterrupt: these end the process.
        """
        return self._loaded.handler.handle(requests)

    def describe(self) -> Mapping[str, Any]:
        """Return a description of the model, with values that JSON supports.

        Keys: ``model`` (its kind), ``directory``, ``inputs`` (each with ``name``, ``dtype`` and
        ``shape``, whose first entry, the rows, is None; an unknown shape is None), ``rows`` (how
        rows are batched), ``batchable``, ``device``, ``script`` (a path or None), ``functions``
        (names) and ``versions``.
        """
        return self._loaded.describe()
