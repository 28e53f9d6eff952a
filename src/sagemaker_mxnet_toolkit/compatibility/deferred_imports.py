"""Packages that MXNet imports and hardly ever uses, loaded at their first use.

``import mxnet`` loads SciPy for sparse matrices and statistics, ``requests`` for a downloader and
``numpy.testing`` for its test tools: that is half of its time. MXNet's modules are given stand-ins
for them. Nobody else is: ``sys.modules`` holds the real modules once they are loaded, and nothing
before.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Dict, List

MODULES = frozenset(
    (
        "mxnet.contrib.quantization",
        "mxnet.gluon.utils",
        "mxnet.ndarray.sparse",
        "mxnet.ndarray.utils",
        "mxnet.test_utils",
    )
)
"""MXNet's modules whose imports are looked at while they are executed."""

_NAMES = frozenset(("numpy.testing", "requests", "scipy.sparse", "scipy.stats"))


def deferring(import_: Callable[..., Any]) -> Callable[..., Any]:
    """Return an ``__import__`` that defers what can wait, and leaves the rest to ``import_``."""

    def import_or_defer(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        # ``import scipy.sparse as x`` and ``from scipy import stats`` alike.
        wanted = name if not fromlist else f"{name}.{fromlist[0]}"
        if level or wanted not in _NAMES or not _can_wait(wanted):
            return import_(name, globals, locals, fromlist, level)
        submodule = wanted.partition(".")[2]
        module = _MODULES.setdefault(wanted, _DeferredModule(wanted))
        # The import statement takes the submodule from what is returned.
        return SimpleNamespace(**{submodule: module}) if submodule else module

    return import_or_defer


def _can_wait(name: str) -> bool:
    """Tell whether a package is installed, not loaded, and needed by no script through MXNet."""
    if name in sys.modules:
        return False
    package = name.partition(".")[0]
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is None:
        return False
    if package == name:
        return True
    # A script may write ``import mxnet, scipy`` and use ``scipy.stats``. Packages that load their
    # submodules on demand allow that; SciPy before 1.9 relies on somebody having imported them.
    try:
        with open(spec.origin, "rb") as file:
            return b"def __getattr__(" in file.read()
    except OSError:
        return False


class _DeferredModule(ModuleType):
    """A module that is loaded when an attribute is first asked for, set or deleted."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # What the real module says of itself is the real module's to answer.
        vars(self).clear()
        vars(self)["__name__"] = name
        if name == "scipy.sparse":
            vars(self)["csr"] = SimpleNamespace(csr_matrix=_CSRMatrix)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(importlib.import_module(self.__name__), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(importlib.import_module(self.__name__), name)

    def __dir__(self) -> List[str]:
        return dir(importlib.import_module(self.__name__))


class _InstancesOfLoaded(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, getattr(sys.modules.get("scipy.sparse"), "csr_matrix", ()))


class _CSRMatrix(metaclass=_InstancesOfLoaded):
    """``scipy.sparse.csr.csr_matrix`` in ``isinstance``, which each ``mx.nd.array`` calls.

    Nothing is one as long as SciPy is not loaded.
    """


_MODULES: Dict[str, _DeferredModule] = {}
