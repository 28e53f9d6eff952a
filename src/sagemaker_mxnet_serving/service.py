"""A model that is ready to answer: what happens between a request and its answer in a worker.

``load`` and ``Service.warm_up`` run in the process that prepares, which forks afterwards: nothing
here starts a thread. MXNet, NumPy and the user's script are imported by ``load``, not before.
"""

import contextlib
from typing import TYPE_CHECKING, Any, Iterator, List, Mapping, Sequence

from sagemaker_mxnet_serving.errors import ModelError, ModelMemoryError, is_memory_error
from sagemaker_mxnet_serving.messages import Request, Response
from sagemaker_mxnet_serving.settings import ModelSettings
from sagemaker_mxnet_toolkit import compatibility

if TYPE_CHECKING:
    from sagemaker_mxnet_serving.loading import LoadedModel

__all__ = ["ModelError", "ModelSettings", "Service", "load"]


def load(settings: ModelSettings) -> "Service":
    """Import MXNet and the user's script, and load the model: ``model_fn`` is called once.

    Raises:
        ModelError: when the model cannot be served; a ``ModelMemoryError`` for want of memory.
    """
    compatibility.install()
    with _memory_errors():
        try:
            # Late: whoever only needs the settings imports neither MXNet nor NumPy.
            from sagemaker_mxnet_serving import loading  # noqa: PLC0415
        except ImportError as error:
            raise ModelError(
                f"a package that serving needs is missing or does not work: {error}; "
                "run pip install 'sagemaker-mxnet-training[mxnet,serving]'"
            ) from error
        return Service(loading.load_model(settings))


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise a ``ModelMemoryError`` for whatever goes wrong because memory is used up."""
    try:
        yield
    except Exception as error:
        if is_memory_error(error):
            raise ModelMemoryError(f"there is not enough memory for the model\n{error}") from error
        raise


class Service:
    """A loaded model; ``load`` makes it."""

    def __init__(self, loaded: "LoadedModel") -> None:
        self._loaded = loaded

    @property
    def batchable(self) -> bool:
        """Whether requests may be predicted together: no function of the user's takes part.

        Known for good after ``warm_up``, which may find that a row's outputs depend on the others.
        """
        return self._loaded.batchable

    def warm_up(self) -> None:
        """Predict zeros where the model's inputs are known, and call ``model_warmup_fn``.

        Raises:
            ModelError: when that fails; a ``ModelMemoryError`` for want of memory.
        """
        with _memory_errors():
            self._loaded.warm_up()

    def predict(self, requests: Sequence[Request]) -> List[Response]:
        """Answer requests, in their order. Whatever goes wrong is an answer too.

        Only what must end the process is raised: ``SystemExit``, ``KeyboardInterrupt``.
        """
        return self._loaded.handler.handle(requests)

    def describe(self) -> Mapping[str, Any]:
        """Return what people ask about a model, in values that JSON has.

        Keys: ``model`` (what it is), ``directory``, ``inputs`` (each with ``name``, ``dtype`` and
        ``shape``, whose first entry, the rows, is None; an unknown shape is None), ``rows`` (how
        rows become batches), ``batchable``, ``device``, ``script`` (a path or None),
        ``functions`` (names) and ``versions``.
        """
        return self._loaded.describe()
