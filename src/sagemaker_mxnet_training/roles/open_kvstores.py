"""Closes a worker's distributed kvstores when its script has ended.

MXNet 1.9.1 closes them in the destructor of the Python object, which fails in two ways:

- The destructor may never run, if a reference to the object survives until Python's end: MXNet's
  registry refers to an optimizer class of the script, the class to the script's globals, and these
  to the kvstore. With scikit-learn installed, which MXNet imports, the registry survives. The
  process then exits while the kvstore's threads run, and a successful training ends with "terminate
  called without an active exception" (SIGABRT).
- It runs after MXNet's exit handler, after which the engine drops operations that have not started
  (``ThreadedEngine::NotifyShutdown``). If a script ends without waiting for its last push, other
  workers that wait for it hang.
"""

import atexit
import functools
import os
import signal
import sys
import weakref
from typing import Any

from sagemaker_mxnet_toolkit import compatibility
from sagemaker_mxnet_toolkit.compatibility import kvstore


class OpenKVStores:
    """Tracks the kvstores of this process, starting with MXNet's import."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._stores: weakref.WeakSet[Any] = weakref.WeakSet()
        compatibility.after_import(self._follow)

    def _follow(self) -> None:
        atexit.unregister(kvstore.forget)  # ``close`` is called instead
        store, stores = sys.modules["mxnet.kvstore"].KVStore, self._stores
        initialize = store.__init__

        @functools.wraps(initialize)
        def initialize_and_follow(self: Any, *args: Any, **options: Any) -> None:
            initialize(self, *args, **options)
            stores.add(self)

        store.__init__ = initialize_and_follow

    def close(self) -> None:
        """Wait for all operations of the engine, and close the distributed kvstores.

        Waits until all other workers do the same. Call it before MXNet's exit handler.

        Raises:
            mxnet.base.MXNetError: an asynchronous operation failed.
        """
        # A forked child has the objects, but not the threads.
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
    """Disable signal handlers of the script."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)


def _close(store: Any) -> None:
    """Free a kvstore, so that its destructor does not."""
    base = sys.modules["mxnet.base"]
    handle, store.handle = store.handle, base.KVStoreHandle()
    base.check_call(base._LIB.MXKVStoreFree(handle))
