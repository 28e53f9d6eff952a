"""Fixes for defects of MXNet 1.9.1's kvstore in workers.

- The servers have a copy of the optimizer. A later change, such as of the learning rate, only
  affects the worker's copy (apache/mxnet#15919), and multipliers of Gluon parameters are never
  sent. Both are sent.
- A second distributed kvstore in one process hangs. The first one is reused, and a second use of
  its keys is an error.
- Without the parameter server, MXNet's error names a variable of ps-lite. Ours names the setting.
- MXNet drops an exception of an optimizer in this process. ``push`` raises it.
- ``Trainer.save_states`` and ``Module.save_optimizer_states`` fail with a distributed kvstore,
  since the servers have the state. The error names the alternatives.
"""

import atexit
import base64
import functools
import json
import os
import pickle
import sys
from typing import Any, Callable, Dict, List, Sequence, Set

from sagemaker_mxnet_toolkit.settings.variables import JOB_ID

ORDER = "sagemaker-mxnet-training:"
"""Prefix of a command to this project's servers. A pickle never starts with it."""

_open: List[Any] = []
"""The distributed kvstore of this process, if it has one. It stays open until the script ends,
since closing it stops the servers."""


def forget() -> None:
    """Release the distributed kvstore. Called at the end of the script."""
    _open.clear()


def repair_create(module: Any) -> None:
    """Make ``create`` of ``mxnet.kvstore.base`` reuse the distributed kvstore of the process."""
    create = module.create

    @functools.wraps(create)
    def create_or_reuse(name: Any = "local") -> Any:
        kind = name.lower() if isinstance(name, str) else ""
        if "dist" not in kind or kind in module.KVStoreBase.kv_registry:
            return create(name)
        role = os.environ.get("DMLC_ROLE")
        if role is None and JOB_ID in os.environ:
            raise RuntimeError(
                f"kvstore {name!r} needs MXNet's parameter server, which is off on this host: "
                "enable it with the hyperparameter sagemaker_parameter_server_enabled=true "
                "(SageMaker SDK: distribution={'parameter_server': {'enabled': True}}; local: "
                "--parameter-server), or use kvstore 'device', with which each host trains alone"
            )
        if role != "worker":
            return create(name)
        if not _open:
            _open.append(create(name))
        elif _open[0].type != kind:
            raise RuntimeError(
                f"kvstore {name!r} cannot be created: a process can have only one distributed "
                f"kvstore, and this one has {_open[0].type!r}; use the same type everywhere"
            )
        return _open[0]

    module.create = create_or_reuse
    # Registered after MXNet's handler, so it runs before that one stops the engine.
    atexit.register(forget)


def repair_store(module: Any) -> None:
    """Patch ``KVStore`` of ``mxnet.kvstore.kvstore``."""
    store = module.KVStore
    store._sent = None  # the servers' optimizer
    store._updater_errors = ()  # exceptions of an updater in this process
    store._set_updater = _keeping_errors(store._set_updater)
    for name in ("init", "broadcast"):
        setattr(store, name, _initializing(getattr(store, name)))
    for name in ("push", "pushpull"):
        setattr(store, name, _pushing(getattr(store, name)))
    store.set_optimizer = _sending(store.set_optimizer)
    for name, verb in (("save_optimizer_states", "saved"), ("load_optimizer_states", "loaded")):
        setattr(store, name, _needing_states(getattr(store, name), verb))


def forwards_changes(store: Any) -> bool:
    """Return whether changes of the optimizer are sent to the servers of a kvstore."""
    return getattr(store, "_sent", None) is not None


def servers_restored(store: Any) -> None:
    """Record that the servers have the current state of the optimizer."""
    if forwards_changes(store):
        store._sent.settings = _settings(store._sent.optimizer)


class _SentOptimizer:
    """An optimizer that the servers have a copy of.

    The first worker sends changes before its first push of a round. With ``dist_sync`` a change
    takes effect between the same two updates as on one host: the servers update when all workers
    have pushed, and this worker has read the results of the previous round.
    """

    def __init__(self, store: Any, optimizer: Any) -> None:
        self.optimizer = optimizer
        self._is_first = store.rank == 0
        self.settings = _settings(optimizer)
        self._pushed: Set[Any] = set()
        self._checked = False

    def before_push(self, store: Any, key: Any) -> None:
        """Send changes if ``key`` is the first of a round."""
        if not self._is_first:
            return
        keys = _listed(key)
        if self._checked and self._pushed.isdisjoint(keys):
            self._pushed.update(keys)
            return
        self._checked, self._pushed = True, set(keys)
        settings = _settings(self.optimizer)
        changed = {
            name: content
            for name, content in settings.items()
            if content != self.settings.get(name)
        }
        self.settings = settings
        if changed:
            sys.modules["mxnet.ndarray"].waitall()
            content = base64.b64encode(pickle.dumps(changed)).decode()
            body = ORDER + json.dumps({"do": "configure", "changed": content})
            store._send_command_to_servers(0, body)  # kController


def apply_changes(optimizer: Any, changed: str) -> None:
    """Change a server's optimizer according to the field ``changed`` of a command."""
    for name, content in pickle.loads(base64.b64decode(changed)).items():
        setattr(optimizer, name, pickle.loads(content))


def _settings(optimizer: Any) -> Dict[str, bytes]:
    """Return the attributes of an optimizer, each pickled.

    Pickled values also reveal changes inside an attribute, such as a learning-rate scheduler.
    """
    attributes = {**optimizer.__getstate__(), **_multipliers(optimizer)}
    attributes.pop("sym_info", None)  # large, and not used by updates
    settings = {}
    for name, value in attributes.items():
        try:
            settings[name] = pickle.dumps(value, 4)
        except Exception:  # MXNet could not send it either
            continue
    return settings


def _multipliers(optimizer: Any) -> Dict[str, Dict[Any, float]]:
    """Return the multipliers of Gluon's parameters by index, since servers lack the parameters."""
    parameters = getattr(optimizer, "param_dict", None)
    if not parameters:
        return {}
    return {
        name: {index: getattr(each, name) for index, each in parameters.items()}
        for name in ("lr_mult", "wd_mult")
    }


def _sending(method: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``KVStore.set_optimizer`` to also send multipliers, and to track later changes."""

    @functools.wraps(method)
    def set_optimizer(store: Any, optimizer: Any) -> None:
        if not _is_distributed(store):
            method(store, optimizer)
            return
        multipliers = _multipliers(optimizer)
        own = {name: getattr(optimizer, name) for name in multipliers}
        vars(optimizer).update(multipliers)
        try:
            method(store, optimizer)
        finally:
            vars(optimizer).update(own)
        if JOB_ID in os.environ:
            store._sent = _SentOptimizer(store, optimizer)

    return set_optimizer


def _pushing(method: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``push`` or ``pushpull`` to send changes first, and to raise the updater's exception."""

    @functools.wraps(method)
    def push(store: Any, key: Any, *args: Any, **options: Any) -> None:
        if store._sent is not None:
            store._sent.before_push(store, key)
        method(store, key, *args, **options)
        if store._updater_errors:
            raise store._updater_errors.pop()

    return push


def _keeping_errors(method: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``KVStore._set_updater`` to keep the updater's exceptions, which the library drops."""

    @functools.wraps(method)
    def set_updater(store: Any, updater: Any) -> None:
        errors: List[Exception] = []

        def update(*args: Any) -> None:
            try:
                updater(*args)
            except Exception as error:
                errors.append(error)

        method(store, update)
        store._updater_errors = errors
        store._updater = updater

    return set_updater


def _needing_states(method: Callable[..., None], verb: str) -> Callable[..., None]:
    """Wrap a method that fails if the servers have the optimizer's state, to name alternatives."""

    @functools.wraps(method)
    def save_or_load(store: Any, *args: Any, **options: Any) -> None:
        if "dist" in store.type and store._updater is None:
            raise AssertionError(
                f"the optimizer's state cannot be {verb} here: with kvstore {store.type} it is on "
                "the servers; use sagemaker_mxnet_training.checkpoints.Checkpoint(net, trainer) "
                "or Checkpoint().fit(module, ...), which save and restore it with the weights, "
                "or create the gluon.Trainer with update_on_kvstore=False, which keeps it on the "
                "workers"
            )
        method(store, *args, **options)

    return save_or_load


def _initializing(method: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``KVStore.init`` or ``broadcast`` to reject keys that are in use.

    MXNet would hang with several workers, and treat the weights as a gradient with one.
    """

    @functools.wraps(method)
    def initialize(store: Any, key: Any, *args: Any, **options: Any) -> None:
        used: Set[Any] = vars(store).setdefault("_keys_in_use", set())
        again = [each for each in _listed(key) if each in used]
        if again and _is_distributed(store) and (store._sent or store.num_workers > 1):
            raise RuntimeError(
                f"key {again[0]!r} of kvstore {store.type!r} is in use: a process has one "
                "distributed kvstore, which only one Trainer or Module can use; pass the "
                "parameters of all networks to one Trainer, or use kvstore 'device' for the second"
            )
        method(store, key, *args, **options)
        used.update(_listed(key))

    return initialize


def _is_distributed(store: Any) -> bool:
    return "dist" in store.type and os.environ.get("DMLC_ROLE") == "worker"


def _listed(key: Any) -> Sequence[Any]:
    return key if isinstance(key, (list, tuple)) else (key,)
