"""The import hook: what MXNet's own modules see when they import.

A finder on ``sys.meta_path`` gives each of MXNet's modules builtins with an ``__import__`` of its
own, which answers ``import numpy`` with a view (a module holding all that NumPy holds and the names
it removed) and ``distutils.version`` with two functions. Values, classes and state are NumPy's own,
byte code caches stay in use, and an attribute of the view costs what one of NumPy costs.

Rejected: adding the names to NumPy (every ``hasattr(numpy, ...)`` in the process would see them);
exchanging ``sys.modules["numpy"]`` while MXNet imports (seen by other threads, and by what MXNet
imports, and over before MXNet's functions run); rewriting MXNet's source or byte code (no cache).
"""

import builtins
import os
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, Callable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from sagemaker_mxnet_toolkit.compatibility import cache_file, deferred_imports, operators
from sagemaker_mxnet_toolkit.compatibility.numpy_view import (
    DISTUTILS_VERSION,
    is_numpy_2,
    make_view,
    mend_fromstring,
    version_numbers,
)
from sagemaker_mxnet_toolkit.compatibility.repairs import RENDERING_MODULES, REPAIRS, Rendered

VARIABLE = "SAGEMAKER_MXNET_COMPATIBILITY"
"""The environment variable that switches the layer off when it is ``0``."""

NEWEST_PYTHON = (3, 13)
"""The newest CPython that the behaviour tests have run on."""

NEWEST_NUMPY = (2, 5)
"""The newest NumPy that the behaviour tests have run on."""


class Status(NamedTuple):
    """What the layer is doing in this process.

    Attributes:
        enabled: false where the variable switched it off.
        installed: whether the finder is in place.
        lent: names that MXNet sees in NumPy and no one else does; empty before MXNet is imported.
        repaired: MXNet's modules that were adapted after they were loaded.
        cached: how many of MXNet's generated functions came from the import cache.
    """

    enabled: bool
    installed: bool
    lent: Tuple[str, ...]
    repaired: Tuple[str, ...]
    cached: int


def enabled() -> bool:
    """Tell whether the layer may act; only the value ``0`` of the variable forbids it."""
    return os.environ.get(VARIABLE, "").strip() != "0"


def install() -> None:
    """Make every later import of MXNet in this process go through the layer. Idempotent."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def find_spec(
    name: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
) -> Optional[ModuleSpec]:
    """Install the layer and find MXNet with it; this is what the ``.pth`` file calls."""
    install()
    return _FINDER.find_spec(name, path, target)


def use_cache(places: Sequence[cache_file.Place]) -> None:
    """Have the next import of MXNet use the import cache in ``places``, not in the usual ones."""
    _PROCESS.places = places


def after_import(callback: Callable[[], None]) -> None:
    """Have ``callback`` called as soon as ``import mxnet`` is complete, or now if it is.

    It is called where the layer is switched off, too. Callbacks run in the order given; what one
    raises is raised by the import.
    """
    if _PROCESS.imported:
        callback()
    else:
        install()
        _PROCESS.callbacks.append(callback)


def status() -> Status:
    """Tell what the layer did so far in this process."""
    lent = () if _PROCESS.view is None else vars(_PROCESS.view)["__lent__"]
    installed = _FINDER in sys.meta_path
    return Status(enabled(), installed, lent, tuple(_PROCESS.repaired), _PROCESS.cached)


class _Finder:
    """Finds MXNet where the import system finds it, and has ``_Loader`` load its source."""

    def find_spec(
        self, name: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[ModuleSpec]:
        if name != "mxnet" and not name.startswith("mxnet."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        # Extension modules and namespace packages have nothing to adapt.
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Executes a module of MXNet with the imports it expects."""

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
        # A copy: CPython reads builtins fastest from a plain dict, and all that differs is this.
        own = scope["__builtins__"] = {**vars(builtins), "__import__": _import}
        if self.name in RENDERING_MODULES and is_numpy_2(sys.modules["numpy"]):
            scope["str"] = Rendered
        try:
            if self.name in deferred_imports.MODULES:
                own["__import__"] = deferred_imports.deferring(_import)
            generated = self._operators()
            if generated is not None:
                own["__import__"] = generated.importing(_import)
            super().exec_module(module)
        finally:
            # What the module's functions import, at each call perhaps, takes the short way.
            own["__import__"] = _import
        if generated is not None:
            generated.restore(scope)
        if self.name in REPAIRS:
            REPAIRS[self.name](module)
            _PROCESS.repaired.append(self.name)

    def _operators(self) -> Optional[operators.Operators]:
        """Return what serves this module with generated functions, if it has them generated."""
        if self.name not in operators.MODULES or _PROCESS.imported or not cache_file.enabled():
            return None
        if _PROCESS.operators is None:
            places = _PROCESS.places or cache_file.usual_places()
            _PROCESS.operators = operators.Operators(sys.modules["mxnet.base"], places)
        return _PROCESS.operators

    def _import_mxnet(self, module: ModuleType) -> None:
        try:
            self._execute(module)
        except Exception as error:
            # A kvstore server lives and dies within this import; its errors are MXNet's own.
            if type(error).__module__.startswith("mxnet."):
                raise
            raise ImportError(_cannot_import(error), name="mxnet") from error
        if enabled():
            _warn_of_the_untested()
        if _PROCESS.operators is not None:
            _PROCESS.operators.save()
            _PROCESS.cached += _PROCESS.operators.cached
            _PROCESS.operators = None
        _PROCESS.imported = True
        while _PROCESS.callbacks:
            _PROCESS.callbacks.pop(0)()


def _import(
    name: str,
    globals: Optional[Mapping[str, object]] = None,
    locals: Optional[Mapping[str, object]] = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> Any:
    """Import for MXNet's modules: as everybody's, but for NumPy and ``distutils.version``."""
    if name == "distutils.version":
        return DISTUTILS_VERSION
    module = builtins.__import__(name, globals, locals, fromlist, level)
    if module is not sys.modules.get("numpy"):
        return module
    if _PROCESS.view is None:
        mend_fromstring(module)
        _PROCESS.view = make_view(module)
    return _PROCESS.view


def _warn_of_the_untested() -> None:
    """Say so, in one sentence, where nobody has tried this combination."""
    numpy = sys.modules.get("numpy")
    found = (sys.version_info[:2], version_numbers(getattr(numpy, "__version__", ""))[:2])
    if found[0] > NEWEST_PYTHON or found[1] > NEWEST_NUMPY:
        names = ["CPython {}.{}", "NumPy {}.{}"]
        here, tested = (
            " and ".join(name.format(*version) for name, version in zip(names, versions))
            for versions in (found, (NEWEST_PYTHON, NEWEST_NUMPY))
        )
        text = f"MXNet 1.9.1 was never tested with {here}, only up to {tested}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def _cannot_import(error: Exception) -> str:
    """Return one sentence: what failed, with which versions, and what to do."""
    numpy = getattr(sys.modules.get("numpy"), "__version__", "none")
    layer = "on" if enabled() else f"off, by {VARIABLE}"
    return (
        f"MXNet cannot be imported on CPython {sys.version.split()[0]} with NumPy {numpy} "
        f"(compatibility layer {layer}): {type(error).__name__}: {error}"
    )


class _Process:
    """What has happened in this process so far."""

    def __init__(self) -> None:
        self.view: Optional[ModuleType] = None
        self.imported = False
        self.operators: Optional[operators.Operators] = None
        self.places: Sequence[cache_file.Place] = ()
        self.cached = 0
        self.repaired: List[str] = []
        self.callbacks: List[Callable[[], None]] = []


_FINDER = _Finder()
_PROCESS = _Process()
