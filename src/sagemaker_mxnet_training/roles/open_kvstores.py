"""Closes a worker's distributed kvstores when its script has ended.

MXNet 1.9.1 leaves that to the destructor of the Python object, which fails in two ways:

- The destructor may never run. Python calls none at its end for an object to which something that
  survives refers: MXNet's registry refers to an optimizer class of the script, the class to the
  script's names, and these to the kvstore; with scikit-learn installed, which MXNet imports, the
  registry survives. The process then exits under the kvstore's threads, and a successful training
  ends with "terminate called without an active exception" (SIGABRT).
- It runs after MXNet's exit handler, from which on the engine drops operations that have not begun
  (``ThreadedEngine::NotifyShutdown``). Where a script ends without waiting for its last push, the
  other workers, which may wait for it, wait for ever.
"""

import functools
import os
import signal
import sys
import weakref
from typing import Any

from sagemaker_mxnet_toolkit import compatibility


class OpenKVStores:
    """The kvstores of this process, from MXNet's import on."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._stores: weakref.WeakSet[Any] = weakref.WeakSet()
        compatibility.after_import(self._follow)

    def _follow(self) -> None:
        store, stores = sys.modules["mxnet.kvstore"].KVStore, self._stores
        initialize = store.__init__

        @functools.wraps(initialize)
        def initialize_and_follow(self: Any, *args: Any, **options: Any) -> None:
            initialize(self, *args, **options)
            stores.add(self)

        store.__init__ = initialize_and_follow

    def close(self) -> None:
        """Finish what the engine has to do, and close the distributed kvstores.

        Waits until all other workers do so, too. To be called before MXNet's exit handler.

        Raises:
            mxnet.base.MXNetError: when an operation fails for whose result nobody waited.
        """
        # A forked child has the objects, but none of the threads.
        if os.getpid() != self._pid:
            return
        stores = [store for store in self._stores if "dist" in store.type]
        if stores:
            _ignore_signals()
            try:
                sys.modules["mxnet"].nd.waitall()
            finally:
                for store in stores:
                    _close(store)


def _ignore_signals() -> None:
    """Call no handler of the script from here on, as Python calls none in its destructors."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)


def _close(store: Any) -> None:
    """Free a kvstore, and leave nothing for its destructor."""
    base = sys.modules["mxnet.base"]
    handle, store.handle = store.handle, base.KVStoreHandle()
    base.check_call(base._LIB.MXKVStoreFree(handle))
