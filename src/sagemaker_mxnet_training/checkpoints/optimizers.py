"""The optimizer in a checkpoint: its state, and a description.

The description is used to detect a checkpoint with the state of another optimizer.
"""

import inspect
import pickle
from typing import Any, Dict, Mapping, Sequence

from sagemaker_mxnet_training.checkpoints.checkpoint_file import START_AFRESH, CheckpointError

_NO_ARGUMENTS = frozenset(
    (
        *("self", "rescale_grad", "param_idx2name", "param_dict", "sym", "begin_num_update"),
        *("learning_rate", "lr_scheduler"),
    )
)
_SIMPLE = (bool, int, float, str, type(None))


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer inside a ``horovod.mxnet.DistributedOptimizer``, or the argument itself.

    Horovod 0.28.1's wrapper sums gradients and delegates the rest to its ``_optimizer``. It cannot
    be pickled.
    """
    is_wrapper = type(optimizer).__module__.startswith("horovod.")
    return optimizer._optimizer if is_wrapper else optimizer


def dump_states(updater: Any) -> bytes:
    """Return the state of a ``mxnet.optimizer.Updater`` with its optimizer, pickled."""
    optimizer = updater.optimizer
    updater.optimizer = unwrapped(optimizer)
    try:
        states: bytes = updater.get_states(dump_optimizer=True)
    finally:
        updater.optimizer = optimizer
    return states


def load_states(updater: Any, states: bytes) -> None:
    """Restore the result of ``dump_states``."""
    wrapper = updater.optimizer
    updater.set_states(states)
    if unwrapped(wrapper) is not wrapper:
        # Keep the value of this run, which depends on the number of workers.
        updater.optimizer.rescale_grad = unwrapped(wrapper).rescale_grad
        wrapper._optimizer = updater.optimizer
        updater.optimizer = wrapper


def describe(optimizer: Any) -> Dict[str, Any]:
    """Return a description of a new optimizer as JSON: its class, arguments and schedule.

    Raises:
        CheckpointError: it cannot be pickled.
    """
    try:
        pickle.dumps(optimizer)
    except Exception as error:
        raise CheckpointError(
            f"the optimizer cannot be stored: {type(error).__name__}: {error}; its attributes, "
            "such as lr_scheduler, must be picklable: use a function or class of a module instead "
            "of a lambda"
        ) from error
    names = {
        name
        for each in type(optimizer).__mro__[:-1]
        if "__init__" in vars(each)
        for name in inspect.signature(vars(each)["__init__"]).parameters
    }
    scheduler = getattr(optimizer, "lr_scheduler", None)
    return {
        "class": type(optimizer).__name__,
        "arguments": _simple(optimizer, names - _NO_ARGUMENTS),
        "schedule": {
            "learning_rate": getattr(optimizer, "lr", None),
            "lr_scheduler": type(scheduler).__name__,
            **_simple(scheduler, vars(scheduler) if scheduler is not None else ()),
        },
    }


def attributes(optimizer: Any) -> Dict[str, Any]:
    """Return the current simple attributes of an optimizer, such as its learning rate, as JSON."""
    return _simple(optimizer, vars(optimizer))


def check(
    source: str, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> str:
    """Compare the optimizers of a checkpoint with those of this script.

    Args:
        source: name of the checkpoint.
        before: result of ``describe`` for each trainer in the checkpoint.
        now: the same for this script.

    Returns:
        A warning, or an empty string.

    Raises:
        CheckpointError: the state does not fit the optimizers of this script.
    """
    remedy = f"use the same optimizer, or {START_AFRESH}"
    if len(before) != len(now):
        raise CheckpointError(
            f"{source} contains the state of {len(before)} trainers, but this script has {len(now)}"
        )
    warning = ""
    for one, other in zip(before, now):
        if one["class"] != other["class"]:
            raise CheckpointError(
                f"{source} contains the state of the optimizer {one['class']}, but this script "
                f"uses {other['class']}: {remedy}"
            )
        changed = _changes(one["arguments"], other["arguments"])
        if changed:
            raise CheckpointError(
                f"{source} contains the state of {one['class']} with other arguments than in this "
                f"script: {changed}: {remedy}"
            )
        changed = _changes(one["schedule"], other["schedule"])
        if changed:
            warning = (
                f"{one['class']}: using the learning rate of {source} instead of that of the "
                f"script: {changed}; to change it, call trainer.set_learning_rate() after "
                "Checkpoint()"
            )
    return warning


def _simple(thing: Any, names: Any) -> Dict[str, Any]:
    values = {name: getattr(thing, name, None) for name in sorted(names)}
    return {name: value for name, value in values.items() if isinstance(value, _SIMPLE)}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )
