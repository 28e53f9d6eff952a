"""Says what to do instead where MXNet cannot save or load an optimizer's state.

With a distributed kvstore the state is on the servers, and ``Trainer.save_states`` and
``Module.save_optimizer_states`` fail with "Cannot save states for distributed training"
(``kvstore/kvstore.py``, MXNet 1.9.1).
"""

import functools
import sys
from typing import Any, Callable


def explain() -> None:
    """Give these errors a message with the way out. To be called once MXNet is imported."""
    store = sys.modules["mxnet.kvstore"].KVStore
    for name, verb in (("save_optimizer_states", "saved"), ("load_optimizer_states", "loaded")):
        setattr(store, name, _explained(getattr(store, name), verb))


def _explained(method: Callable[..., Any], verb: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(store: Any, *args: Any, **options: Any) -> Any:
        if "dist" in store.type and store._updater is None:
            raise AssertionError(
                f"the optimizer's state cannot be {verb} here: with kvstore {store.type} it is on "
                "the servers. Use sagemaker_mxnet_training.checkpoints.Checkpoint(net, trainer), "
                "or Checkpoint().fit(module, ...), which saves and restores it with the weights; "
                "or create the gluon.Trainer with update_on_kvstore=False, which keeps it on the "
                "workers"
            )
        return method(store, *args, **options)

    return call
