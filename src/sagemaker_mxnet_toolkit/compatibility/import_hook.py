"""The import hook: changes what MXNet's own modules import.

A finder on ``sys.meta_path`` gives each of MXNet's modules builtins with another ``__import__``.
For ``import numpy`` this returns a view: a module with all attributes of NumPy and the names that
NumPy has removed. For ``distutils.version`` it returns two functions. Classes and state are NumPy's
own, ``.pyc`` files stay in use, and attributes of the view are as fast as NumPy's. keras-mxnet gets
views of NumPy and ``collections`` in the same way, and Horovod one of ``ctypes``.

Alternatives that were rejected: adding the names to NumPy (visible to ``hasattr(numpy, ...)`` in
all modules); replacing ``sys.modules["numpy"]`` while MXNet is imported (visible to other threads,
and without effect once MXNet's functions run); rewriting MXNet's source or byte code (no ``.pyc``
files).
"""

import builtins
import collections.abc
import os
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, Callable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.compatibility import deferred_imports, import_cache
from sagemaker_mxnet_toolkit.compatibility.numpy_view import (
    DISTUTILS_VERSION,
    is_numpy_2,
    make_view,
    restore_fromstring,
    version_numbers,
)
from sagemaker_mxnet_toolkit.compatibility.repairs import RENDERING_MODULES, REPAIRS, Rendered
from sagemaker_mxnet_toolkit.settings.variables import COMPATIBILITY

NEWEST_PYTHON = (3, 13)
"""The newest CPython that the behaviour tests have run on."""

NEWEST_NUMPY = (2, 5)
"""The newest NumPy that the behaviour tests have run on."""

_LOADS_HOROVOD = ("horovod.common.basics", "horovod.mxnet.mpi_ops")
"""The modules that load Horovod's library (0.28.1)."""


class Status(NamedTuple):
    """State of the compatibility layer in this process.

    Attributes:
        enabled: whether it is enabled.
        installed: whether the finder is installed.
        lent: names that only MXNet's modules see in NumPy; empty before MXNet is imported.
        repaired: modules of MXNet that were patched.
        cached: number of MXNet's generated functions that came from the import cache.
    """

    enabled: bool
    installed: bool
    lent: Tuple[str, ...]
    repaired: Tuple[str, ...]
    cached: int


def enabled() -> bool:
    """Return whether the layer is enabled. ``COMPATIBILITY=0`` disables it."""
    return os.environ.get(COMPATIBILITY, "").strip() != "0"


def install() -> None:
    """Install the finder for later imports of MXNet in this process. Idempotent."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def find_spec(
    name: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
) -> Optional[ModuleSpec]:
    """Install the layer, and find MXNet with it. The ``.pth`` file calls this.

    It does so for ``mxnet``, and for ``horovod.mxnet``, which loads its library with other modules.
    """
    install()
    return _FINDER.find_spec(name, path, target)


def use_cache(directories: Sequence[str]) -> None:
    """Restrict the import cache to these directories for the next import of MXNet."""
    _PROCESS.cache_directories = directories


def after_import(callback: Callable[[], None]) -> None:
    """Call ``callback`` when ``import mxnet`` is complete, or now if it already is.

    This also works if the layer is disabled. Callbacks are called in order; the import raises
    their exceptions.
    """
    if _PROCESS.imported:
        callback()
    else:
        install()
        _PROCESS.callbacks.append(callback)


def status() -> Status:
    """Return the state of the layer in this process."""
    lent = () if _PROCESS.view is None else vars(_PROCESS.view)["__lent__"]
    installed = _FINDER in sys.meta_path
    return Status(enabled(), installed, lent, tuple(_PROCESS.repaired), _PROCESS.cached)


class _Finder:
    """Finds modules of MXNet, keras-mxnet and Horovod, and sets the loaders below."""

    def find_spec(
        self, name: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[ModuleSpec]:
        package, _, module = name.partition(".")
        # Once its MXNet backend is loaded, "keras" is keras-mxnet and not Keras 3.
        of_keras = package == "keras" and module and "keras.backend.mxnet_backend" in sys.modules
        of_horovod = name in _LOADS_HOROVOD and "horovod.mxnet" in sys.modules
        if package != "mxnet" and not of_keras and not of_horovod:
            return None
        spec = PathFinder.find_spec(name, path, target)
        # Extension modules and namespace packages need no changes.
        if spec is not None and type(spec.loader) is SourceFileLoader:
            where = (spec.loader.name, spec.loader.path)
            if package == "mxnet":
                spec.loader = _Loader(*where)
            else:
                own_import = _import_for_keras if of_keras else _import_for_horovod
                spec.loader = _OwnImportLoader(*where, own_import)
        return spec


class _Loader(SourceFileLoader):
    """Executes a module of MXNet with the imports that it expects."""

    def exec_module(self, module: ModuleType) -> None:
        if self.name == "mxnet":
            self._import_mxnet(module)
        else:
            self._execute(module)

    def _execute(self, module: ModuleType) -> None:
        if not enabled():
            super().exec_module(module)
            return
        scope = vars(module)
        # A plain dict, from which CPython reads builtins fastest.
        own = scope["__builtins__"] = {**vars(builtins), "__import__": _import}
        if self.name in RENDERING_MODULES and is_numpy_2(sys.modules["numpy"]):
            scope["str"] = Rendered
        later = _import
        try:
            if self.name in deferred_imports.MODULES:
                own["__import__"] = deferred_imports.deferring(_import)
            if self.name in deferred_imports.IN_FUNCTIONS:
                later = own["__import__"]
            generated = self._operators()
            if generated is not None:
                own["__import__"] = generated.importing(_import)
            super().exec_module(module)
        finally:
            # Imports in functions, which may run at each call, skip the other hooks.
            own["__import__"] = later
        if generated is not None:
            generated.restore(scope)
        if self.name in REPAIRS:
            REPAIRS[self.name](module)
            _PROCESS.repaired.append(self.name)

    def _operators(self) -> Optional[import_cache.Operators]:
        """Return the cache of generated functions if this module generates some, or ``None``."""
        if self.name not in import_cache.MODULES or _PROCESS.imported or not import_cache.enabled():
            return None
        if _PROCESS.operators is None:
            directories = _PROCESS.cache_directories or import_cache.default_directories()
            _PROCESS.operators = import_cache.Operators(sys.modules["mxnet.base"], directories)
        return _PROCESS.operators

    def _import_mxnet(self, module: ModuleType) -> None:
        try:
            self._execute(module)
        except Exception as error:
            # A kvstore server runs inside this import, so MXNet's own errors are those of the job.
            if type(error).__module__.startswith("mxnet."):
                raise
            raise ImportError(_cannot_import(error), name="mxnet") from error
        if enabled():
            _warn_if_untested()
        if _PROCESS.operators is not None:
            _PROCESS.operators.save()
            _PROCESS.cached += _PROCESS.operators.cached
            _PROCESS.operators = None
        _PROCESS.imported = True
        while _PROCESS.callbacks:
            _PROCESS.callbacks.pop(0)()


class _OwnImportLoader(SourceFileLoader):
    """Executes a module of keras-mxnet or Horovod with an ``__import__`` of its own."""

    def __init__(self, name: str, path: str, own_import: Callable[..., Any]) -> None:
        super().__init__(name, path)
        self._own_import = own_import

    def exec_module(self, module: ModuleType) -> None:
        if enabled():
            vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._own_import}
        super().exec_module(module)


def _import_for_keras(name: str, *arguments: Any, **options: Any) -> Any:
    """``__import__`` for the modules of keras-mxnet (last release 2.2.4.3).

    The same as for MXNet, and ``collections`` with the names that CPython 3.10 removed.
    """
    module = _import(name, *arguments, **options)
    if name != "collections" or module is not sys.modules["collections"]:
        return module
    view = ModuleType("collections")
    vars(view).update({**vars(collections.abc), **vars(module)})
    return view


def _import_for_horovod(name: str, *arguments: Any, **options: Any) -> Any:
    """``__import__`` for the modules that load Horovod's library, with another ``ctypes.CDLL``."""
    module = builtins.__import__(name, *arguments, **options)
    if name != "ctypes":
        return module

    def load(path: str, mode: int) -> Any:
        """Load a library, with RTLD_GLOBAL only for MPI, which may need it.

        MXNet's library, on which it depends, would become global too: extensions that are loaded
        later would call C++ functions of MXNet that have the same names as their own, and
        ``import onnx`` ended in a segmentation fault (Horovod 0.28.1, onnx 1.18).
        """
        library = module.CDLL(path)
        if library.horovod_mpi_built() and os.environ.get("HOROVOD_CONTROLLER") != "gloo":
            library = module.CDLL(path, mode)
        return library

    view = ModuleType("ctypes")
    vars(view).update({**vars(module), "CDLL": load})
    return view


def _import(
    name: str,
    globals: Optional[Mapping[str, object]] = None,
    locals: Optional[Mapping[str, object]] = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> Any:
    """``__import__`` for MXNet's modules, with other results for two modules."""
    if name == "distutils.version":
        return DISTUTILS_VERSION
    module = builtins.__import__(name, globals, locals, fromlist, level)
    if module is not sys.modules.get("numpy"):
        return module
    if _PROCESS.view is None:
        restore_fromstring(module)
        _PROCESS.view = make_view(module)
    return _PROCESS.view


def _warn_if_untested() -> None:
    """Warn about a newer CPython or NumPy than MXNet was tested with."""
    numpy = sys.modules.get("numpy")
    found = (sys.version_info[:2], version_numbers(getattr(numpy, "__version__", ""))[:2])
    if found[0] > NEWEST_PYTHON or found[1] > NEWEST_NUMPY:
        names = ["CPython {}.{}", "NumPy {}.{}"]
        here, tested = (
            " and ".join(name.format(*version) for name, version in zip(names, versions))
            for versions in (found, (NEWEST_PYTHON, NEWEST_NUMPY))
        )
        text = f"MXNet 1.9.1 was not tested with {here}, only up to {tested}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def _cannot_import(error: Exception) -> str:
    """Return the message for a failed import, with the versions."""
    numpy = getattr(sys.modules.get("numpy"), "__version__", "none")
    layer = "enabled" if enabled() else f"disabled by {COMPATIBILITY}"
    return (
        f"MXNet cannot be imported on CPython {sys.version.split()[0]} with NumPy {numpy} "
        f"(compatibility layer {layer}): {type(error).__name__}: {error}"
    )


class _Process:
    """State of the layer in this process."""

    def __init__(self) -> None:
        self.view: Optional[ModuleType] = None
        self.imported = False
        self.operators: Optional[import_cache.Operators] = None
        self.cache_directories: Sequence[str] = ()
        self.cached = 0
        self.repaired: List[str] = []
        self.callbacks: List[Callable[[], None]] = []


_FINDER = _Finder()
_PROCESS = _Process()
