"""Keeps MXNet 1.9.1, its last release, importable and right on current CPython and NumPy.

MXNet asks for NumPy below 1.24 and for ``distutils``; both are gone where CPython 3.12 and NumPy
2 are. Nothing is patched on disk and nothing is added to NumPy, whose namespace, like
``sys.modules``, is every program's. What changes is what MXNet's own modules *see*: a finder on
``sys.meta_path`` gives each of them builtins with an ``__import__`` of its own, which answers
``import numpy`` with a view (a module holding all that NumPy holds and the names it removed) and
``distutils.version`` with two functions. Values, classes and state are NumPy's own, byte code
caches stay in use, and an attribute of the view costs what one of NumPy costs.

Rejected: adding the names to NumPy (every ``hasattr(numpy, ...)`` in the process would see them);
exchanging ``sys.modules["numpy"]`` while MXNet imports (seen by other threads, and by what MXNet
imports, and over before MXNet's functions run); rewriting MXNet's source or byte code (no cache).

``sagemaker-mxnet-training.pth`` makes every interpreter call ``find_spec`` here when ``mxnet`` is
first imported, and not before: neither this module nor MXNet nor NumPy is loaded until then. The
job's processes call ``install`` as well, for installations whose ``.pth`` files are not read.

``SAGEMAKER_MXNET_COMPATIBILITY=0`` switches it off. The variable is read here, not in
``configuration``, since this module also serves interpreters that run no job.

Facts are those of the wheel ``mxnet-1.9.1-py3-none-manylinux2014_x86_64`` and of NumPy's release
notes: 1.20 (financial functions), 1.24 (``np.bool``), 2.0 (expired names, ``np.core``, NEP 50,
NEP 51, ufunc names), 2.3 (``tostring``), 2.4 (``in1d``, ``trapz``).
"""

import builtins
import functools
import os
import re
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

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
    """

    enabled: bool
    installed: bool
    lent: Tuple[str, ...]
    repaired: Tuple[str, ...]


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
    return Status(enabled(), _FINDER in sys.meta_path, lent, tuple(_PROCESS.repaired))


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
        scope["__builtins__"] = {**vars(builtins), "__import__": _import}
        if self.name in _RENDERING_MODULES and _is_numpy_2(sys.modules["numpy"]):
            scope["str"] = _Rendered
        super().exec_module(module)
        if self.name in _REPAIRS:
            _REPAIRS[self.name](module)
            _PROCESS.repaired.append(self.name)

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
        return _DISTUTILS_VERSION
    module = builtins.__import__(name, globals, locals, fromlist, level)
    return _view_of(module) if module is sys.modules.get("numpy") else module


def _numbers(version: str) -> Tuple[int, ...]:
    """Return the leading numbers of a version, which is all that MXNet compares."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _is_numpy_2(numpy: Any) -> bool:
    return _numbers(numpy.__version__) >= (2,)


# What MXNet takes from distutils compares NumPy's version with 1.6, 1.15 and 1.17. A package
# ``distutils`` in sys.modules would get in the way of the one that setuptools brings, and the one
# of CPython 3.10 and 3.11 warns.
_DISTUTILS_VERSION = SimpleNamespace(LooseVersion=_numbers, StrictVersion=_numbers)


def _view_of(numpy: Any) -> ModuleType:
    """Return NumPy as MXNet knows it: the module's own contents and the names it removed."""
    if _PROCESS.view is None:
        view = ModuleType("numpy", numpy.__doc__)
        lent = _removed_names(numpy)
        vars(view).update(vars(numpy))
        vars(view).update(lent)
        # Submodules that are imported later, and NumPy's own messages for names it lacks.
        vars(view).update(
            __getattr__=functools.partial(getattr, numpy), __lent__=tuple(sorted(lent))
        )
        _PROCESS.view = view
    return _PROCESS.view


def _removed_names(numpy: Any) -> Dict[str, Any]:
    """Return what MXNet uses of NumPy and this NumPy does not have.

    A renamed function is lent as a new object: MXNet registers implementations by function, and
    ``product`` must not replace ``prod`` there.
    """
    names: Dict[str, Any] = {"bool": bool, "int": int}
    constants = {
        "Inf": numpy.inf,
        "PINF": numpy.inf,
        "NINF": -numpy.inf,
        "NAN": numpy.nan,
        "NaN": numpy.nan,
        "PZERO": 0.0,
        "NZERO": -0.0,
    }
    renamed = {
        "alltrue": ("all", {}),
        "sometrue": ("any", {}),
        "product": ("prod", {}),
        "round_": ("round", {}),
        "msort": ("sort", {"axis": 0}),
        "trapz": ("trapezoid", {}),
    }
    own = vars(numpy)
    names.update({name: value for name, value in constants.items() if name not in own})
    names.update({name: _gone(name) for name in _FINANCIAL if name not in own})
    for old, (new, arguments) in renamed.items():
        if old not in own and new in own:
            names[old] = functools.partial(own[new], **arguments)
    if _is_numpy_2(numpy):
        names["array"] = _wrapping(numpy, numpy.array)
        names["asarray"] = _wrapping(numpy, numpy.asarray)
        names["compat"] = SimpleNamespace(basestring=str)
        # numpy.core answers still, with a warning at each use.
        normalize = numpy.lib.array_utils.normalize_axis_tuple
        names["core"] = SimpleNamespace(numeric=SimpleNamespace(normalize_axis_tuple=normalize))
        if "in1d" not in own:
            names["in1d"] = functools.partial(_in1d, numpy)
    return names


_FINANCIAL = ("mirr", "npv", "pmt", "ppmt", "pv", "rate")


def _gone(name: str) -> Callable[..., Any]:
    """Return a function that says where ``name`` went; ``mxnet.numpy`` offers it under that name.

    NumPy 1.20 to 1.26 has such functions itself, and warns as soon as they are looked up.
    """

    def function(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"numpy.{name} left NumPy with release 1.20; numpy_financial.{name} replaces it"
        )

    function.__name__ = function.__qualname__ = name
    return function


def _in1d(numpy: Any, ar1: Any, ar2: Any, assume_unique: bool = False, invert: bool = False) -> Any:
    """Do what ``numpy.in1d`` did before NumPy 2.4 removed it."""
    return numpy.isin(numpy.ravel(ar1), ar2, assume_unique=assume_unique, invert=invert)


def _wrapping(numpy: Any, create: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``create`` wrap Python integers that do not fit the dtype, as before NumPy 2.

    ``mx.nd.array([-1], dtype="uint8")`` holds 255 there, and raises OverflowError in NumPy 2.
    """

    @functools.wraps(create)
    def function(source: Any, dtype: Any = None, **options: Any) -> Any:
        try:
            return create(source, dtype=dtype, **options)
        except OverflowError:
            if dtype is None:
                raise
            return create(numpy.array(source).astype(dtype), **options)

    return function


class _Rendering(type):
    """Takes the place of ``str`` where MXNet turns operator parameters into text for its library.

    NumPy 2 writes the elements of a tuple as ``np.int64(3)`` (NEP 51), which the library cannot
    read, although numbers on their own are written as they always were.
    """

    def __call__(cls, value: Any = "") -> str:
        text = str(value)
        # Nearly every parameter ends here: this runs several times for each operator.
        if "np." not in text or not isinstance(value, (tuple, list)):
            return text
        return str(_plain(value))

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, str)


class _Rendered(metaclass=_Rendering):
    """``str``, in the modules of ``_RENDERING_MODULES``."""


_RENDERING_MODULES = frozenset(
    (
        "mxnet._ctypes.ndarray",
        "mxnet._ctypes.symbol",
        "mxnet.io.io",
        "mxnet.symbol.symbol",
    )
)


def _plain(value: Any) -> Any:
    """Return ``value`` with NumPy's scalars in tuples and lists made Python's."""
    if isinstance(value, (tuple, list)):
        plain = [_plain(element) for element in value]
        return tuple(plain) if isinstance(value, tuple) else plain
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.floating):
        return float(str(value))  # float32(0.1) was written as 0.1, not as 0.10000000149011612
    return value.item() if isinstance(value, numpy.generic) else value


def _repair_recordio(module: Any) -> None:
    """``ndarray.tostring`` is ``tobytes`` since NumPy 1.9, and nothing else since 2.3."""
    for function in (module.pack, module.pack_img):
        _recode(function, "co_names", lambda name: "tobytes" if name == "tostring" else name)


def _repair_metric(module: Any) -> None:
    """Keep the running sums of metrics in double precision, as they were before NumPy 2.

    ``0.0 + numpy.float32(x)`` was a float64 and is a float32 now (NEP 50): the sum of many
    batches would lose its digits, and above 2**24 stop growing.
    """
    numpy = sys.modules["numpy"]
    sums = frozenset(("sum_metric", "global_sum_metric", "num_inst", "global_num_inst"))

    def set_attribute(metric: Any, name: str, value: Any) -> None:
        if name in sums and isinstance(value, numpy.floating):
            value = numpy.float64(value)
        object.__setattr__(metric, name, value)

    module.EvalMetric.__setattr__ = set_attribute

    # Sums in local variables, `0.` and `0` at first: NumPy's own zeros keep their precision.
    def strong(constant: Any) -> Any:
        zeros = {int: numpy.int64(0), float: numpy.float64(0)}
        return zeros.get(type(constant), constant) if constant == 0 else constant

    _recode(module.Perplexity.update, "co_consts", strong)


def _repair_dispatch(module: Any) -> None:
    """``numpy.divide`` was named ``true_divide`` up to NumPy 1.22, and is looked up by name.

    Without this MXNet hands the division to NumPy, and refuses to do that in ``autograd.record``.
    """
    ufuncs = module._NUMPY_ARRAY_UFUNC_DICT
    ufuncs.setdefault("divide", ufuncs["true_divide"])


def _repair_multiarray(module: Any) -> None:
    """``numpy.linalg.qr`` gives a named tuple since NumPy 1.25, which takes no list as argument."""
    convert = module._as_mx_np_array

    def function(object: Any, ctx: Any = None) -> Any:
        return convert(tuple(object) if isinstance(object, tuple) else object, ctx)

    module._as_mx_np_array = function


_REPAIRS: Dict[str, Callable[[Any], None]] = {
    "mxnet.metric": _repair_metric,
    "mxnet.numpy.multiarray": _repair_multiarray,
    "mxnet.numpy_dispatch_protocol": _repair_dispatch,
    "mxnet.recordio": _repair_recordio,
}


def _recode(function: FunctionType, part: str, exchange: Callable[[Any], Any]) -> None:
    """Exchange the names (``co_names``) or constants (``co_consts``) of a function's code."""
    code: Any = function.__code__
    function.__code__ = code.replace(**{part: tuple(map(exchange, getattr(code, part)))})


def _warn_of_the_untested() -> None:
    """Say so, in one sentence, where nobody has tried this combination."""
    numpy = sys.modules.get("numpy")
    found = (sys.version_info[:2], _numbers(getattr(numpy, "__version__", ""))[:2])
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
        self.repaired: List[str] = []
        self.callbacks: List[Callable[[], None]] = []


_FINDER = _Finder()
_PROCESS = _Process()
