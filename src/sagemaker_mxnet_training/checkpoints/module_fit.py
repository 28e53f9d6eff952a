"""``Module.fit`` that goes on from a checkpoint."""

from typing import Any, Callable, Dict, Iterator, List

from sagemaker_mxnet_training.checkpoints import resume
from sagemaker_mxnet_training.checkpoints.module_state import ModuleState, split_weights
from sagemaker_mxnet_training.checkpoints.run import Run


def fit(run: Run, module: Any, train_data: Any, num_epoch: int, options: Dict[str, Any]) -> None:
    """Do what ``Checkpoint.fit`` says."""
    training = ModuleState(run.job, module, options.pop("kvstore", "local"))
    run.training = training
    source = resume.find(run.job, training.open_distributed)
    run.epoch = int(options.pop("begin_epoch", 0))
    if source is not None:
        run.go_on(source)
        arguments, auxiliary = split_weights(source)
        options.update(arg_params=arguments, aux_params=auxiliary, force_init=True)

    def begin() -> None:
        # Not before Module.fit has initialized the weights, with random numbers that the script
        # has made the same on all hosts, and has set the optimizer up.
        if source is not None:
            with source:
                training.restore_optimizer(source)
        for epoch in range(run.epoch + 1):
            run.randomness.epoch(epoch)
            train_data.reset()

    data = _EpochData(run, train_data, begin)
    module.fit(
        data,
        num_epoch=num_epoch,
        begin_epoch=run.epoch,
        kvstore=training.given_kvstore,
        batch_end_callback=[*_listed(options.pop("batch_end_callback", None)), data.after_batch],
        epoch_end_callback=[*_listed(options.pop("epoch_end_callback", None)), data.after_epoch],
        **options,
    )
    run.finish()


class _EpochData:
    """A data iterator as ``Module.fit`` uses it, and the callbacks that follow its batches.

    Module.fit draws a batch before it calls back for the one before. Where that was the last, the
    epoch's end is the place for a checkpoint: nothing would be left to draw after it.

    Args:
        run: the run.
        inner: the ``mxnet.io.DataIter``.
        begin: called once, before the first batch.
    """

    def __init__(self, run: Run, inner: Any, begin: Callable[[], None]) -> None:
        self._run = run
        self._inner = inner
        self._begin = [begin]
        self._exhausted = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __iter__(self) -> Iterator[Any]:
        if self._begin:
            self._begin.pop()()
        self._exhausted = False
        yield from self._run.draw(self._inner)
        self._exhausted = True

    def reset(self) -> None:
        """Begin an epoch, whose order follows from its number."""
        self._run.randomness.epoch(self._run.epoch)
        self._inner.reset()

    def after_batch(self, _: Any) -> None:
        """Do what is due after a batch."""
        self._run.count()
        if not self._exhausted:
            self._run.boundary()

    def after_epoch(self, *_: Any) -> None:
        """Do what is due after an epoch."""
        self._run.next_epoch()
        self._run.boundary()


def _listed(value: Any) -> List[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
