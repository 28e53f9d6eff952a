"""State of a training with ``mxnet.mod.Module.fit``."""

from typing import Any, Dict, Tuple

from sagemaker_mxnet_training.checkpoints import memory_file
from sagemaker_mxnet_training.checkpoints.job_environment import JobEnvironment
from sagemaker_mxnet_training.checkpoints.resume import WEIGHTS, Source
from sagemaker_mxnet_training.checkpoints.training_state import TrainingState, is_distributed


class ModuleState(TrainingState):
    """State of a module.

    Args:
        job: the job.
        module: a ``mxnet.mod.Module`` or ``BucketingModule``.
        kvstore: the kvstore or the name of its type, as ``fit`` takes it.
    """

    def __init__(self, job: JobEnvironment, module: Any, kvstore: Any) -> None:
        super().__init__(job)
        self._module = module
        self.given_kvstore = kvstore

    @property
    def _inner(self) -> Any:
        # A BucketingModule has one module for each bucket, which share optimizer and kvstore.
        return getattr(self._module, "_curr_module", self._module)

    def open_distributed(self) -> Any:
        """Open the kvstore if it is a distributed one."""
        if not is_distributed(self.given_kvstore):
            return None
        if isinstance(self.given_kvstore, str):
            import mxnet  # noqa: PLC0415

            self.given_kvstore = mxnet.kv.create(self.given_kvstore)
        return self.given_kvstore

    @property
    def kvstore(self) -> Any:
        """The kvstore that training uses, if any."""
        return self._inner._kvstore

    @property
    def started(self) -> bool:
        """Whether the optimizer is in its place."""
        return bool(self._module.optimizer_initialized)

    @property
    def update_on_kvstore(self) -> bool:
        """Whether the kvstore updates the weights."""
        return bool(self._inner._update_on_kvstore)

    def weights(self) -> Dict[str, Any]:
        """Return the weights by name."""
        arguments, auxiliary = self._module.get_params()
        return {
            **{f"arg:{name}": array for name, array in arguments.items()},
            **{f"aux:{name}": array for name, array in auxiliary.items()},
        }

    def local_updater(self) -> Any:
        """Return the updater of this process."""
        return self._inner._kvstore._updater if self.update_on_kvstore else self._inner._updater

    def restore_local_states(self, states: bytes) -> None:
        """Restore the state of the updaters of this process."""
        updater = self.local_updater()
        updater.set_states(states)
        self._inner._optimizer = updater.optimizer


def split_weights(source: Source) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Return a checkpoint's weights as ``fit`` takes them: arguments and auxiliary states."""
    arrays = memory_file.load_arrays(source.read(WEIGHTS))
    parts: Dict[str, Dict[str, Any]] = {"arg": {}, "aux": {}}
    for name, array in arrays.items():
        kind, _, rest = name.partition(":")
        parts[kind][rest] = array
    return parts["arg"], parts["aux"]
