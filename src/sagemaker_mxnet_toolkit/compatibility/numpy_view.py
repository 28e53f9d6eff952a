"""NumPy as MXNet 1.9.1 expects it: its current contents and the names that were removed."""

import functools
import re
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Dict, Tuple


def version_numbers(version: str) -> Tuple[int, ...]:
    """Return the leading numbers of a version."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def is_numpy_2(numpy: Any) -> bool:
    """Return whether this is NumPy 2 or later."""
    return version_numbers(numpy.__version__) >= (2,)


def restore_fromstring(numpy: Any) -> None:
    """Restore the binary mode of ``numpy.fromstring``, which NumPy 2.3 removed.

    This is the only change that all modules of the process see. The MNIST scripts of AWS and MXNet
    need it. It is safe, since it only changes calls that raise ``ValueError`` and adds no name.
    """
    original = numpy.fromstring
    if version_numbers(numpy.__version__) < (2, 3) or hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def fromstring(string: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("sep", "") != "" or "like" in options:
            return original(string, *arguments, **options)
        warnings.warn(
            "NumPy 2.3 removed the binary mode of numpy.fromstring: use numpy.frombuffer",
            DeprecationWarning,
            stacklevel=2,
        )
        options.pop("sep", None)
        data = string.encode() if isinstance(string, str) else string
        return numpy.frombuffer(data, *arguments, **options).copy()

    numpy.fromstring = fromstring


# MXNet uses distutils to compare NumPy's version with 1.6, 1.15 and 1.17. A package ``distutils``
# in sys.modules would conflict with that of setuptools, and that of CPython 3.10 and 3.11 warns.
DISTUTILS_VERSION = SimpleNamespace(LooseVersion=version_numbers, StrictVersion=version_numbers)


def make_view(numpy: Any) -> ModuleType:
    """Return a module with NumPy's contents and removed names, which ``__lent__`` lists."""
    view = ModuleType("numpy", numpy.__doc__)
    lent = _removed_names(numpy)
    vars(view).update(vars(numpy))
    vars(view).update(lent)
    # For submodules that are imported later, and for NumPy's errors about missing names.
    vars(view).update(__getattr__=functools.partial(getattr, numpy), __lent__=tuple(sorted(lent)))
    return view


def _removed_names(numpy: Any) -> Dict[str, Any]:
    """Return the names that MXNet uses and this NumPy does not have.

    A renamed function is a new object, since MXNet registers implementations by function and
    ``product`` must not replace ``prod``.
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
    names.update({name: _removed_function(name) for name in _FINANCIAL if name not in own})
    for old, (new, arguments) in renamed.items():
        if old not in own and new in own:
            names[old] = functools.partial(own[new], **arguments)
    if is_numpy_2(numpy):
        names["array"] = _wrapping(numpy, numpy.array)
        names["asarray"] = _wrapping(numpy, numpy.asarray)
        names["compat"] = SimpleNamespace(basestring=str)
        # numpy.core still exists, but warns at each use.
        normalize = numpy.lib.array_utils.normalize_axis_tuple
        names["core"] = SimpleNamespace(numeric=SimpleNamespace(normalize_axis_tuple=normalize))
        if "in1d" not in own:
            names["in1d"] = functools.partial(_in1d, numpy)
    return names


_FINANCIAL = ("mirr", "npv", "pmt", "ppmt", "pv", "rate")


def _removed_function(name: str) -> Callable[..., Any]:
    """Return a function, for ``mxnet.numpy``, that raises an error with the replacement.

    NumPy 1.20 to 1.26 has such functions itself, and warns when they are looked up.
    """

    def function(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"NumPy 1.20 removed numpy.{name}: use numpy_financial.{name}")

    function.__name__ = function.__qualname__ = name
    return function


def _in1d(numpy: Any, ar1: Any, ar2: Any, assume_unique: bool = False, invert: bool = False) -> Any:
    """Replace ``numpy.in1d``, which NumPy 2.4 removed."""
    return numpy.isin(numpy.ravel(ar1), ar2, assume_unique=assume_unique, invert=invert)


def _wrapping(numpy: Any, create: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap Python integers that do not fit the dtype, as before NumPy 2.

    ``mx.nd.array([-1], dtype="uint8")`` contains 255 there, and NumPy 2 raises OverflowError.
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
