"""NumPy as MXNet 1.9.1 knows it: the module's own contents, and the names that it removed since."""

import functools
import re
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Dict, Tuple


def version_numbers(version: str) -> Tuple[int, ...]:
    """Return the leading numbers of a version, which is all that MXNet compares."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def is_numpy_2(numpy: Any) -> bool:
    """Tell whether this is NumPy 2 or later."""
    return version_numbers(numpy.__version__) >= (2,)


def mend_fromstring(numpy: Any) -> None:
    """Have ``numpy.fromstring`` read bytes again, as it did before NumPy 2.3.

    It is the one change that every module of the process sees. The MNIST scripts of AWS and of
    MXNet itself read their data so. It is safe where names such as ``numpy.float`` would not be:
    each call that it changes is one that raises ``ValueError``, and ``hasattr`` sees no new name.
    """
    original = numpy.fromstring
    if version_numbers(numpy.__version__) < (2, 3) or hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def fromstring(string: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("sep", "") != "" or "like" in options:
            return original(string, *arguments, **options)
        warnings.warn(
            "the binary mode of numpy.fromstring left NumPy with 2.3: use numpy.frombuffer",
            DeprecationWarning,
            stacklevel=2,
        )
        options.pop("sep", None)
        data = string.encode() if isinstance(string, str) else string
        return numpy.frombuffer(data, *arguments, **options).copy()

    numpy.fromstring = fromstring


# What MXNet takes from distutils compares NumPy's version with 1.6, 1.15 and 1.17. A package
# ``distutils`` in sys.modules would get in the way of the one that setuptools brings, and the one
# of CPython 3.10 and 3.11 warns.
DISTUTILS_VERSION = SimpleNamespace(LooseVersion=version_numbers, StrictVersion=version_numbers)


def make_view(numpy: Any) -> ModuleType:
    """Return a module with all that NumPy holds and the names it removed, as ``__lent__`` lists."""
    view = ModuleType("numpy", numpy.__doc__)
    lent = _removed_names(numpy)
    vars(view).update(vars(numpy))
    vars(view).update(lent)
    # Submodules that are imported later, and NumPy's own messages for names it lacks.
    vars(view).update(__getattr__=functools.partial(getattr, numpy), __lent__=tuple(sorted(lent)))
    return view


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
    if is_numpy_2(numpy):
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
