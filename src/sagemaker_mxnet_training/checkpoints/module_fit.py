"""``Module.fit`` with checkpoints."""

from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import mxnet

from sagemaker_mxnet_training.checkpoints import optimizers, resume
from sagemaker_mxnet_training.checkpoints.checkpoint_file import weights_name
from sagemaker_mxnet_training.checkpoints.job_environment import JobEnvironment
from sagemaker_mxnet_training.checkpoints.loop import Position
from sagemaker_mxnet_training.checkpoints.manager import CheckpointManager
from sagemaker_mxnet_training.checkpoints.training_state import (
    TrainingState,
    byte_count,
    is_distributed,
)


def fit(
    manager: CheckpointManager,
    module: Any,
    train_data: Any,
    num_epoch: int,
    options: Dict[str, Any],
) -> None:
    """Train a module (see ``Checkpoint.fit``)."""
    training = ModuleState(manager.job, module, options.pop("kvstore", "local"))
    manager.training = training
    checkpoint = resume.find(manager.job, training.open_distributed)
    manager.loop.move_to(Position(epoch=int(options.pop("begin_epoch", 0))))
    if checkpoint is not None:
        manager.resume(checkpoint)
        arguments, auxiliary = _split_weights(checkpoint.read(weights_name()))
        options.update(arg_params=arguments, aux_params=auxiliary, force_init=True)

    def begin() -> None:
        # Module.fit has initialized the weights, with random numbers that the script has seeded
        # equally on all hosts, and the optimizer.
        manager.check()
        if checkpoint is not None:
            with checkpoint:
                training.check_optimizers_match(checkpoint)
                training.restore_optimizer(checkpoint)
        for epoch in range(manager.loop.epoch + 1):
            manager.seeds.seed_epoch(epoch)
            train_data.reset()

    data = _EpochData(manager, train_data, begin)
    module.fit(
        data,
        num_epoch=num_epoch,
        begin_epoch=manager.loop.epoch,
        kvstore=training.requested_kvstore,
        batch_end_callback=[*_listed(options.pop("batch_end_callback", None)), data.after_batch],
        epoch_end_callback=[*_listed(options.pop("epoch_end_callback", None)), data.after_epoch],
        **options,
    )
    manager.write_last()


class _EpochData:
    """A data iterator for ``Module.fit``, with callbacks that track its batches.

    Module.fit reads the next batch before it calls the callback of a batch. After the last batch,
    the checkpoint is therefore written at the end of the epoch.

    Args:
        manager: the checkpoint manager.
        inner: the ``mxnet.io.DataIter``.
        begin: called once, before the first batch.
    """

    def __init__(self, manager: CheckpointManager, inner: Any, begin: Callable[[], None]) -> None:
        self._manager = manager
        self._inner = inner
        self._begin = [begin]
        self._exhausted = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __iter__(self) -> Iterator[Any]:
        if self._begin:
            self._begin.pop()()
        self._exhausted = False
        yield from self._manager.loop.draw(self._inner, self._manager.seeds)
        self._exhausted = True

    def reset(self) -> None:
        """Start an epoch, with random numbers seeded by its number."""
        self._manager.seeds.seed_epoch(self._manager.loop.epoch)
        self._inner.reset()

    def after_batch(self, _: Any) -> None:
        """Record a batch, and write a checkpoint if one is due. ``Module.fit`` calls this."""
        loop = self._manager.loop
        loop.batch_yielded()  # it was read before the last one was trained
        loop.trainer_stepped()
        loop.batch_done()
        if not self._exhausted:
            self._manager.between_steps()

    def after_epoch(self, *_: Any) -> None:
        """Start the next epoch. ``Module.fit`` calls this after each one."""
        self._manager.next_epoch()
        self._manager.between_steps()


class ModuleState(TrainingState):
    """State of a module.

    Args:
        job: the job.
        module: a ``mxnet.mod.Module`` or ``BucketingModule``.
        kvstore: the kvstore or the name of its type, as for ``fit``.
    """

    def __init__(self, job: JobEnvironment, module: Any, kvstore: Any) -> None:
        super().__init__(job)
        self._module = module
        self.requested_kvstore = kvstore

    @property
    def _inner(self) -> Any:
        # A BucketingModule has one module for each bucket, which share optimizer and kvstore.
        return getattr(self._module, "_curr_module", self._module)

    def open_distributed(self) -> Any:
        """Create the kvstore if it is a distributed one, and return it."""
        if not is_distributed(self.requested_kvstore):
            return None
        if isinstance(self.requested_kvstore, str):
            self.requested_kvstore = mxnet.kv.create(self.requested_kvstore)
        return self.requested_kvstore

    @property
    def kvstore(self) -> Any:
        """The kvstore that training uses, or ``None``."""
        return self._inner._kvstore

    @property
    def started(self) -> bool:
        """Whether training has started."""
        return bool(self._module.optimizer_initialized)

    @property
    def update_on_kvstore(self) -> bool:
        """Whether the kvstore updates the weights."""
        return bool(self._inner._update_on_kvstore)

    def weights(self) -> List[Dict[str, Any]]:
        """Return the weights by name."""
        arguments, auxiliary = self._module.get_params()
        weights = {
            **{f"arg:{name}": array for name, array in arguments.items()},
            **{f"aux:{name}": array for name, array in auxiliary.items()},
        }
        return [weights]

    @property
    def size(self) -> int:
        """Size of the weights in bytes."""
        return sum(map(byte_count, self.weights()[0].values()))

    def optimizers(self) -> List[Any]:
        """Return the module's optimizer."""
        return [optimizers.unwrapped(self._inner._optimizer)]

    def local_updaters(self) -> List[Any]:
        """Return the updater of this process."""
        inner = self._inner
        return [inner._kvstore._updater if self.update_on_kvstore else inner._updater]

    def restore_local_states(self, states: Sequence[bytes]) -> None:
        """Restore the state of the updater of this process."""
        [updater], [state] = self.local_updaters(), states
        optimizers.load_states(updater, state)
        self._inner._optimizer = updater.optimizer


def _split_weights(content: bytes) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Return a checkpoint's weights as for ``fit``: arguments and auxiliary states."""
    parts: Dict[str, Dict[str, Any]] = {"arg": {}, "aux": {}}
    for name, array in mxnet.nd.load_frombuffer(content).items():
        kind, _, rest = name.partition(":")
        parts[kind][rest] = array
    return parts["arg"], parts["aux"]


def _listed(value: Any) -> List[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
