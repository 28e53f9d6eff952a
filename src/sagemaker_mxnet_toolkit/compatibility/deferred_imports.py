"""Defers imports of packages that MXNet rarely uses until their first use.

``import mxnet`` loads SciPy for sparse matrices and statistics, ``requests`` for a downloader,
``numpy.testing`` for its test tools and ``onnx`` for its export, which takes half of its time. Only
MXNet's modules get placeholders for them; ``sys.modules`` is not changed.
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
        "mxnet.onnx.mx2onnx._export_onnx",
        "mxnet.onnx.mx2onnx._op_translations._op_translations_opset12",
        "mxnet.onnx.mx2onnx._op_translations._op_translations_opset13",
        "mxnet.test_utils",
    )
)
"""MXNet's modules with such imports."""

IN_FUNCTIONS = frozenset(("mxnet.onnx.mx2onnx._export_onnx",))
"""Modules with such imports in functions, too: the decorator of each converter imports onnx."""

_NAMES = frozenset(("numpy.testing", "onnx", "requests", "scipy.sparse", "scipy.stats"))


def deferring(import_: Callable[..., Any]) -> Callable[..., Any]:
    """Return an ``__import__`` that defers these packages, and calls ``import_`` for others."""

    def import_or_defer(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        # Either ``import scipy.sparse as x`` or ``from scipy import stats``.
        full_name = name if not fromlist else f"{name}.{fromlist[0]}"
        if level or full_name not in _NAMES or full_name in sys.modules:
            return import_(name, globals, locals, fromlist, level)
        module = _MODULES.get(full_name)
        if module is None:
            if not _can_defer(full_name):
                return import_(name, globals, locals, fromlist, level)
            module = _MODULES[full_name] = _DeferredModule(full_name)
        submodule = full_name.partition(".")[2]
        # The import statement takes the submodule from what is returned.
        return SimpleNamespace(**{submodule: module}) if submodule else module

    return import_or_defer


def _can_defer(name: str) -> bool:
    """Return whether a package is installed, and no script relies on MXNet's import of it."""
    package = name.partition(".")[0]
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is None:
        return False
    if package == name:
        return True
    # A script may write ``import mxnet, scipy`` and use ``scipy.stats``. This works if the package
    # loads its submodules on demand; SciPy before 1.9 does not.
    try:
        with open(spec.origin, "rb") as file:
            return b"def __getattr__(" in file.read()
    except OSError:
        return False


class _DeferredModule(ModuleType):
    """A module that is loaded when an attribute is first read, set or deleted."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # Attributes such as __doc__ come from the real module.
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
    """``scipy.sparse.csr.csr_matrix`` for ``isinstance``, which each ``mx.nd.array`` calls.

    There are no instances as long as SciPy is not loaded.
    """


_MODULES: Dict[str, _DeferredModule] = {}
